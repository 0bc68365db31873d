//! Templates: minijinja, strict, bounded. A template may speak of the machine, its network, its
//! variables, its profile's files and its URLs; a name that is not there is an error, never an empty string.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};

use netboot::spec::Profile;

use crate::{Subject, own};

/// Bytes of one rendered document at the most.
pub const RENDERED_MAX: usize = 4 << 20;
/// Steps one template may take; a loop over a few thousand entries fits.
const FUEL: u64 = 2_000_000;

/// What is wrong with a profile's template or with what it renders to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct Fault {
    /// The profile's key, such as `config.file`.
    pub field: &'static str,
    /// The line in the template's own text, counted from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Renders one template.
pub(crate) fn render(
    field: &'static str,
    source: &str,
    profile: &Profile,
    subject: &Subject<'_>,
) -> Result<String, Fault> {
    if !source.contains('{') {
        return Ok(source.to_owned());
    }
    let rendered = environment()
        .render_str(source, values(field, source, profile, subject)?)
        .map_err(|error| fault(field, &error))?;
    if rendered.len() > RENDERED_MAX {
        let problem = format!("renders to {} bytes", rendered.len());
        let remedy =
            format!("keep it under {RENDERED_MAX} bytes and serve large files as artefacts");
        return Err(Fault {
            field,
            line: None,
            problem,
            remedy,
        });
    }
    Ok(rendered)
}

/// Parses one template.
pub(crate) fn syntax(field: &'static str, source: &str) -> Result<(), Fault> {
    let environment = environment();
    let parsed = environment.template_from_str(source).map(|_| ());
    parsed.map_err(|error| fault(field, &error))
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(true);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default delimiters differ from each other"));
    environment
}

fn values(
    field: &'static str,
    source: &str,
    profile: &Profile,
    subject: &Subject<'_>,
) -> Result<Value, Fault> {
    let own = own::values(field, source, subject)?;
    let Subject {
        site: _,
        node,
        link,
        network,
        disk,
        generation,
        urls,
    } = subject;
    let serial = disk
        .filter(|disk| disk.device().is_none())
        .map(|disk| disk.text().to_owned());
    let boot_mac = link.and_then(|link| link.macs.first());
    let variables = node.map(|node| &node.variables);
    let artifacts = profile.artifacts.iter();
    Ok(context! {
        node => context! {
            name => node.map(|node| node.name.to_string()),
            serial => node.and_then(|node| node.serial.clone()),
            uuid => node.and_then(|node| node.uuid).map(|uuid| uuid.to_string()),
            generation => generation,
        },
        hostname => node.map(|node| node.hostname.to_string()),
        address => link.map(|link| link.address.to_string()),
        mac => boot_mac.map(ToString::to_string),
        network => context! {
            name => network.name.to_string(),
            subnet => network.subnet.to_string(),
            prefix => network.subnet.prefix(),
            mask => network.subnet.mask().to_string(),
            router => network.router.map(|router| router.to_string()),
            dns => network.dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ntp => network.ntp.iter().map(ToString::to_string).collect::<Vec<_>>(),
            domain => network.domain.as_ref().map(ToString::to_string),
            mtu => network.mtu,
        },
        variables => Value::from_pairs(variables.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone()))),
        artifacts => Value::from_pairs(artifacts.map(|(name, artifact)| (name.clone(), artifact.url(&urls.base)))),
        disk => context! { device => disk.and_then(|disk| disk.device()), serial => serial },
        base_url => &urls.base,
        config_url => &urls.config,
        report_url => &urls.report,
        talos_events => &urls.events,
        ..own
    })
}

fn fault(field: &'static str, error: &minijinja::Error) -> Fault {
    let mut problem = error.detail().map_or_else(
        || error.kind().to_string(),
        |detail| format!("{}: {detail}", error.kind()),
    );
    if let Some(range) = error
        .range()
        .and_then(|range| Some((range, error.template_source()?)))
    {
        let (range, source) = range;
        let near: String = source
            .get(range)
            .unwrap_or_default()
            .chars()
            .take(60)
            .collect();
        if !near.is_empty() {
            problem.push_str(&format!(" at {near:?}"));
        }
    }
    let remedy = if error.kind() == ErrorKind::UndefinedError {
        "use node, hostname, address, mac, network, network_arguments, talos_network, talos_documents, talos_events, disk, \
         variables.NAME, artifacts.NAME, base_url, config_url or report_url, and give the machine the variable or the profile the artefact"
    } else {
        "mend the template; a literal {{ is written {{ '{{' }}"
    };
    Fault {
        field,
        line: error.line(),
        problem,
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use netboot::net::Digest;
    use netboot::node::{NodeLink, NodeSpec};
    use netboot::spec::{Artifact, ConfigSource, Network, Purpose, SiteSpec};

    use super::*;
    use crate::sample_urls;

    fn check(source: &str, expected: Result<&str, &str>) {
        let network = Network {
            dns: vec![[10, 107, 0, 1].into()],
            lease_seconds: 3600,
            ..Network::plain(
                "lab".parse().unwrap(),
                "eth1".parse().unwrap(),
                "10.107.0.0/24".parse().unwrap(),
            )
        };
        let link = NodeLink {
            macs: vec!["52:54:00:aa:00:01".parse().unwrap()],
            network: "lab".parse().unwrap(),
            address: [10, 107, 0, 11].into(),
            name: None,
            default_route: false,
        };
        let node = NodeSpec {
            name: "worker-1".parse().unwrap(),
            links: vec![link.clone()],
            system: Vec::new(),
            uuid: None,
            serial: None,
            hostname: "worker-1.lab.example".parse().unwrap(),
            profile: Some("debian".parse().unwrap()),
            labels: Default::default(),
            rack: None,
            variables: BTreeMap::from([("rack".to_owned(), "r1".to_owned())]),
            loaders: BTreeMap::new(),
            disk: None,
        };
        let artifact = |file: &str| Artifact {
            file: file.to_owned(),
            digest: Digest::from_bytes([0xab; 32]),
            size: 1,
        };
        let profile = Profile {
            name: "debian".parse().unwrap(),
            kernel: artifact("vmlinuz"),
            initrds: Vec::new(),
            artifacts: BTreeMap::from([("root".to_owned(), artifact("root.squashfs"))]),
            arguments: Vec::new(),
            config: ConfigSource::None,
            purpose: Purpose::Live,
            disk: None,
        };
        let urls = sample_urls([10, 107, 0, 1].into());
        let subject = Subject {
            site: &SiteSpec::default(),
            node: Some(&node),
            link: Some(&link),
            network: &network,
            disk: None,
            generation: 2,
            urls: &urls,
        };
        match (render("config.file", source, &profile, &subject), expected) {
            (Ok(text), Ok(expected)) => assert_eq!(text, expected),
            (Err(fault), Err(words)) => assert!(fault.to_string().contains(words), "{fault}"),
            (found, expected) => panic!("{source}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_template_speaks_of_its_machine_and_of_nothing_that_is_not_there() {
        check(
            "{{ hostname }} {{ address }} {{ mac }}",
            Ok("worker-1.lab.example 10.107.0.11 52:54:00:aa:00:01"),
        );
        check(
            "{{ variables.rack }}-{{ node.generation }} {{ network.dns[0] }}\n",
            Ok("r1-2 10.107.0.1\n"),
        );
        check(
            "root=live:{{ artifacts.root }}",
            Ok(&format!(
                "root=live:http://10.107.0.1:8080/artifacts/{}/root.squashfs",
                "ab".repeat(32)
            )),
        );
        check("{{ artifacts.rootfs }}", Err("artifacts.rootfs"));
        check("{{ variables.row }}", Err("variables.row"));
        check("{{ hostnam }}", Err("give the machine the variable"));
        check("{{ hostname", Err("mend the template"));
        check(
            "ip=${net0/ip} {not a template}",
            Ok("ip=${net0/ip} {not a template}"),
        );
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        check(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            Err("mend the template"),
        );
    }
}
