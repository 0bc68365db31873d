//! Profiles, the artefacts they name in the depot, and the documents they name beside themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use images::{ArtifactName, Depot};
use netboot::net::{Digest, Malformed, ProfileName};
use netboot::spec::{Artifact, ConfigSource, Format, Profile, Purpose};

use super::build;
use super::fault::{Faults, Place};
use super::file;
use super::judge::{disk, missing, need, parse, template_name};
use super::read::{self, Given, Table};
use super::site::Written;
use super::source::{Source, Text};
use super::yaml;

/// The profiles of a site, side by side with what was written.
#[derive(Default)]
pub(super) struct Profiles {
    pub(super) profiles: Vec<Profile>,
    pub(super) written: Vec<Written<Documents>>,
}

impl Profiles {
    /// Where a template of a profile stands that doesn't render.
    pub(super) fn place_of(&self, name: &ProfileName, field: &str, line: Option<usize>) -> Place {
        let index = self
            .profiles
            .iter()
            .position(|profile| profile.name == *name);
        index
            .and_then(|index| self.written.get(index))
            .map_or(Place::default(), |written| written.place_of(field, line))
    }
}

/// Where the templates of a profile stand.
#[derive(Default)]
pub(super) struct Documents {
    pub(super) arguments: Option<Place>,
    /// By key, such as `config.file`.
    pub(super) documents: BTreeMap<&'static str, Place>,
}

impl Written<Documents> {
    /// Where a template stands that doesn't render: the line in its own file.
    fn place_of(&self, field: &str, line: Option<usize>) -> Place {
        let documents = &self.entry;
        match documents.documents.get(field) {
            Some(document) => Place {
                line: line.and_then(|line| u32::try_from(line).ok()).unwrap_or(0),
                column: u32::from(line.is_some()),
                ..*document
            },
            None => documents.arguments.unwrap_or(self.place),
        }
    }
}

/// Reads every profile of the site.
pub(super) fn read(source: &mut Source<'_>, depot: &Path, faults: &Faults) -> Profiles {
    let shelf = Shelf::look(depot, faults);
    let mut read = Profiles::default();
    for text in source.profiles() {
        let mut documents = Documents::default();
        if let Some(profile) = profile(&text, &shelf, source, &mut documents, faults) {
            read.profiles.push(profile);
            read.written.push(Written {
                place: text.place,
                entry: documents,
            });
        }
    }
    read
}

/// One profile. What is faulty in it is left empty: machines that name the profile are not at fault.
fn profile(
    text: &Text,
    shelf: &Shelf,
    source: &mut Source<'_>,
    documents: &mut Documents,
    faults: &Faults,
) -> Option<Profile> {
    let name: ProfileName = match text.stem.parse() {
        Ok(name) => name,
        Err(malformed) => {
            let Malformed { rule, .. } = malformed;
            let remedy = format!("rename the file: {rule}");
            faults.add(
                text.place,
                "",
                &text.stem,
                "can't be a profile's name",
                remedy,
            );
            return None;
        }
    };
    let tree = yaml::parse(&text.text, text.place, faults);
    let given: Given<file::Profile> = tree
        .as_ref()
        .map_or(Given::Absent, |t| read::read(t, faults));
    if tree.is_some() && given.is_absent() {
        faults.add(text.place, "", "", "is empty", "begin with `kernel:`");
    }
    let place = given.place().unwrap_or(text.place);
    let file::Profile {
        kernel,
        initrds,
        artifacts,
        arguments,
        config,
        purpose,
        disk: rule,
    } = match given {
        Given::Good(_, profile) => profile,
        Given::Absent | Given::Bad(_) => file::Profile::default(),
    };
    if kernel.is_absent() && tree.is_some() {
        missing(faults, "kernel", place);
    }
    documents.arguments = arguments.place();
    let arguments = judged_arguments(&arguments, faults);
    build::is_one(&kernel, &initrds, &artifacts, &arguments, faults);
    Some(Profile {
        name,
        kernel: shelf
            .find("kernel", "kernel", &kernel, faults)
            .unwrap_or_else(nothing),
        initrds: initrds
            .value()
            .into_iter()
            .flatten()
            .filter_map(|initrd| shelf.find("initrds", "initrd", initrd, faults))
            .collect(),
        artifacts: named(&artifacts, shelf, faults),
        arguments,
        config: config_source(&config, source, documents, faults),
        purpose: match purpose.value() {
            Some(file::Purpose::Live) => Purpose::Live,
            Some(file::Purpose::Install) | None => Purpose::Install,
        },
        disk: disk(faults, &rule),
    })
}

fn nothing() -> Artifact {
    Artifact {
        file: String::new(),
        digest: Digest::from_bytes([0; 32]),
        size: 0,
    }
}

/// The files that templates name by their URL.
fn named(
    given: &Given<Table<file::Artifact>>,
    shelf: &Shelf,
    faults: &Faults,
) -> BTreeMap<String, Artifact> {
    let mut named = BTreeMap::new();
    for (key, given) in given.value().map_or(&[][..], |table| &table.0) {
        let Some((place, name)) = template_name(faults, "artifacts", key) else {
            continue;
        };
        if given.is_absent() {
            let remedy = "write a name of `reveille image list`, or { sha256: … }";
            faults.add(place, "artifacts", name, "names no file", remedy);
        }
        if let Some(artifact) = shelf.find(name, name, given, faults) {
            named.insert(name.to_owned(), artifact);
        }
    }
    named
}

fn judged_arguments(given: &Given<Vec<Given<String>>>, faults: &Faults) -> Vec<String> {
    let mut arguments = Vec::new();
    for (place, text) in given.value().into_iter().flatten().filter_map(Given::good) {
        if text.chars().any(char::is_control) {
            faults.add(
                place,
                "arguments",
                text,
                "holds a line break or another control character",
                "write one argument an entry",
            );
        } else if syntax_is_sound("arguments", text, |_| place, faults) {
            arguments.push(text.clone());
        }
    }
    arguments
}

fn config_source(
    given: &Given<file::Config>,
    source: &mut Source<'_>,
    documents: &mut Documents,
    faults: &Faults,
) -> ConfigSource {
    let Some((place, config)) = given.good() else {
        return ConfigSource::None;
    };
    let file::Config {
        format,
        file,
        user_data,
        vendor_data,
        network_config,
    } = config;
    if format.is_absent() {
        missing(faults, "format", place);
    }
    let Some((_, format)) = format.good() else {
        return ConfigSource::None;
    };
    let keys = [
        ("config.file", file),
        ("config.user_data", user_data),
        ("config.vendor_data", vendor_data),
        ("config.network_config", network_config),
    ];
    let (needed, others): (&str, &[&str]) = match format {
        file::Format::None => ("", &[]),
        file::Format::Ignition | file::Format::Talos => ("config.file", &[]),
        file::Format::CloudInit => (
            "config.user_data",
            &["config.vendor_data", "config.network_config"],
        ),
    };
    let mut texts: BTreeMap<&str, Arc<str>> = BTreeMap::new();
    for (field, given) in keys {
        let key = field.strip_prefix("config.").unwrap_or(field);
        if field == needed || others.contains(&field) {
            let extras = keys
                .iter()
                .any(|(key, given)| others.contains(key) && !given.is_absent());
            if given.is_absent() && field == needed && extras {
                missing(faults, key, place);
            }
            let Some((place, name)) = given.good() else {
                continue;
            };
            if let Some((document, text)) = source.document(key, name, place) {
                let at = |line: Option<usize>| Place {
                    line: line.and_then(|line| u32::try_from(line).ok()).unwrap_or(1),
                    column: 1,
                    ..document
                };
                syntax_is_sound(field, &text, at, faults);
                documents.documents.insert(field, document);
                texts.insert(field, text.into());
            }
        } else if let Some(place) = given.place() {
            let value = given.value().map_or("", String::as_str);
            let remedy = match format {
                file::Format::None => "remove it, or name another format".to_owned(),
                file::Format::Ignition | file::Format::CloudInit | file::Format::Talos => format!(
                    "use `{}:`, or another format",
                    needed.trim_start_matches("config.")
                ),
            };
            faults.add(place, key, value, "is not read in this format", remedy);
        }
    }
    let mut take = |field: &str| texts.remove(field);
    // What was named and can't be read is a fault already; it must not look like a cluster's.
    let left_out = keys.iter().all(|(_, given)| given.is_absent());
    if let (true, Some(format)) = (left_out, platform_format(*format)) {
        return ConfigSource::Platform(format);
    }
    match format {
        file::Format::None => None,
        file::Format::Ignition => take(needed).map(ConfigSource::Ignition),
        file::Format::Talos => take(needed).map(ConfigSource::Talos),
        file::Format::CloudInit => take(needed).map(|user_data| ConfigSource::CloudInit {
            user_data,
            vendor_data: take("config.vendor_data"),
            network_config: take("config.network_config"),
        }),
    }
    .unwrap_or(ConfigSource::None)
}

fn platform_format(format: file::Format) -> Option<Format> {
    match format {
        file::Format::Ignition => Some(Format::Ignition),
        file::Format::CloudInit => Some(Format::CloudInit),
        file::Format::Talos => Some(Format::Talos),
        file::Format::None => None,
    }
}

/// True when the template can be parsed; otherwise a fault at the place of its line.
fn syntax_is_sound(
    field: &'static str,
    text: &str,
    at: impl Fn(Option<usize>) -> Place,
    faults: &Faults,
) -> bool {
    match ignition::syntax(field, text) {
        Ok(()) => true,
        Err(fault) => {
            let key = field.strip_prefix("config.").unwrap_or(field);
            faults.add(at(fault.line), key, "", fault.problem, fault.remedy);
            false
        }
    }
}

/// What the depot has, by name and by digest.
struct Shelf {
    by_name: BTreeMap<ArtifactName, Artifact>,
    depot: Option<Depot>,
}

impl Shelf {
    fn look(root: &Path, faults: &Faults) -> Self {
        let mut shelf = Self {
            by_name: BTreeMap::new(),
            depot: None,
        };
        // Opening makes a depot's directories, and judging a site must leave nothing behind.
        if !root.join("names").is_dir() {
            return shelf;
        }
        let listed = Depot::open(root).and_then(|depot| Ok((depot.list()?, depot)));
        match listed {
            Ok((artifacts, depot)) => {
                for images::Artifact {
                    name, digest, size, ..
                } in artifacts
                {
                    let artifact = Artifact {
                        file: name.file().to_owned(),
                        digest,
                        size,
                    };
                    shelf.by_name.insert(name, artifact);
                }
                shelf.depot = Some(depot);
            }
            Err(error) => {
                let place = faults.open(root);
                let problem = format!("the depot can't be read: {error}");
                let remedy =
                    "run as root or as the daemon's user, or name the state directory with --state";
                faults.add(place, "", "", problem, remedy);
            }
        }
        shelf
    }

    /// `unnamed` is what a file is called in URLs that has no name in the depot.
    fn find(
        &self,
        key: &str,
        unnamed: &str,
        given: &Given<file::Artifact>,
        faults: &Faults,
    ) -> Option<Artifact> {
        match given.good()? {
            (place, file::Artifact::Name(text)) => self.by_name(key, text, place, faults),
            (place, file::Artifact::Digest(file::ArtifactDigest { sha256 })) => {
                let digest = need(faults, "sha256", sha256, place)?;
                self.by_digest(unnamed, digest, sha256.place().unwrap_or(place), faults)
            }
        }
    }

    fn by_name(&self, key: &str, text: &str, place: Place, faults: &Faults) -> Option<Artifact> {
        let given = Given::Good(place, text.to_owned());
        let name: ArtifactName = parse(faults, key, &given)?;
        let found = self.by_name.get(&name).cloned();
        if found.is_none() {
            let names = self.by_name.keys().map(ArtifactName::as_str);
            let import = format!("`reveille image import FILE --name {text}` brings it in");
            let remedy = match netboot::net::nearest(text, names) {
                Some(near) => format!("did you mean {near}? otherwise {import}"),
                None => format!("{import}; `reveille image list` shows what is there"),
            };
            faults.add(place, key, text, "is not in the depot", remedy);
        }
        found
    }

    fn by_digest(
        &self,
        unnamed: &str,
        digest: Digest,
        place: Place,
        faults: &Faults,
    ) -> Option<Artifact> {
        let named = self
            .by_name
            .values()
            .find(|artifact| artifact.digest == digest);
        if let Some(artifact) = named {
            return Some(artifact.clone());
        }
        let file = self.depot.as_ref().map(|depot| depot.file(&digest));
        if let Some(Ok(Some(file))) = file
            && let Ok(metadata) = file.metadata()
        {
            return Some(Artifact {
                file: unnamed.to_owned(),
                digest,
                size: metadata.len(),
            });
        }
        let remedy =
            format!("`reveille image import FILE --name NAME --sha256 {digest}` brings it in");
        faults.add(
            place,
            "sha256",
            &digest.to_string(),
            "is not in the depot",
            remedy,
        );
        None
    }
}
