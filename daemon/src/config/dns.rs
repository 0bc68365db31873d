//! `site.yaml`'s `dns` and `ntp`: who answers for names, and who tells the time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netboot::net::{LinkName, Malformed};
use netboot::spec::{Mode, Network};
use netboot::zone::{DnsMode, DnsSpec, DomainName};

use super::fault::Faults;
use super::file;
use super::judge::{ip_address, list, parse, seconds};
use super::read::{Given, Table};

const PORT: u16 = 53;
/// More servers than these are never asked.
const FORWARD_MAX: usize = 8;
/// Addresses of one name that fit into any answer.
const ADDRESSES_MAX: usize = 16;
const TTL_SECONDS_MAX: u32 = 86_400;

/// Judges `dns`; `networks` are those of the same file. Without the key nothing is served.
pub(super) fn judge(given: &Given<file::Dns>, networks: &[Network], faults: &Faults) -> DnsSpec {
    let Some(dns) = given.value() else {
        return DnsSpec::default();
    };
    let file::Dns {
        mode,
        forward,
        ttl,
        public,
        records,
    } = dns;
    let spec = DnsSpec {
        mode: match mode.value() {
            None | Some(file::DnsMode::Serve) => DnsMode::Serve,
            Some(file::DnsMode::External) => DnsMode::External,
            Some(file::DnsMode::Off) => DnsMode::Off,
        },
        forward: list(faults, "forward", forward, server),
        ttl_seconds: ttl_seconds(ttl, faults),
        public: links_without_machines(
            public,
            networks,
            "name a link on which no machine boots; machines see every name without it",
            faults,
        ),
        records: addresses(records, faults),
        // What follows from `balancer`, which is judged later.
        balanced: None,
        met_on: BTreeSet::new(),
    };
    if let Some((place, _)) = forward.good()
        && spec.forward.len() > FORWARD_MAX
    {
        let problem = format!("names {} servers", spec.forward.len());
        let remedy = "keep the best 8; more are never asked";
        faults.add(place, "forward", "", problem, remedy);
    }
    let serves = spec.mode == DnsMode::Serve;
    for (key, place) in [("forward", forward.place()), ("public", public.place())] {
        if let Some(place) = place.filter(|_| !serves) {
            let problem = "is asked for only where this bastion serves DNS";
            faults.add(place, key, "", problem, "set `mode: serve`, or remove it");
        }
    }
    spec
}

fn server(faults: &Faults, key: &str, given: &Given<String>) -> Option<SocketAddr> {
    let (place, text) = given.good()?;
    let with_port = text.parse::<SocketAddr>();
    let server = with_port.or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT)));
    let usable = |server: &SocketAddr| {
        !server.ip().is_unspecified() && !server.ip().is_multicast() && server.port() > 0
    };
    let server = server.ok().filter(usable);
    if server.is_none() {
        let rule = "write a server's address, such as 192.0.2.53 or 192.0.2.53:5353";
        faults.add_malformed(place, key, &Malformed::new("DNS server", text, rule));
    }
    server
}

fn ttl_seconds(given: &Given<String>, faults: &Faults) -> u32 {
    let Some((place, text)) = given.good() else {
        return DnsSpec::TTL_SECONDS;
    };
    seconds(text)
        .filter(|seconds| (1..=TTL_SECONDS_MAX).contains(seconds))
        .unwrap_or_else(|| {
            let rule = "write 1s to 1d; 60s is usual";
            faults.add_malformed(place, "ttl", &Malformed::new("time to live", text, rule));
            DnsSpec::TTL_SECONDS
        })
}

/// The links of `public`, which is where nobody boots.
pub(super) fn links_without_machines(
    given: &Given<Vec<Given<String>>>,
    networks: &[Network],
    remedy: &str,
    faults: &Faults,
) -> BTreeSet<LinkName> {
    let mut links = BTreeSet::new();
    for entry in given.value().into_iter().flatten() {
        let Some((place, link)) = entry
            .place()
            .zip(parse::<LinkName>(faults, "public", entry))
        else {
            continue;
        };
        let served = |network: &&Network| network.link == link && network.mode != Mode::Off;
        if let Some(network) = networks.iter().find(served) {
            let problem = format!("is the link of network {}", network.name);
            faults.add(place, "public", link.as_str(), problem, remedy);
        }
        links.insert(link);
    }
    links
}

fn addresses(
    given: &Given<Table<Vec<Given<String>>>>,
    faults: &Faults,
) -> BTreeMap<DomainName, Vec<IpAddr>> {
    let mut records = BTreeMap::new();
    for (key, value) in given.value().map_or(&[][..], |table| &table.0) {
        let (name, addresses) = (
            parse::<DomainName>(faults, "records", key),
            list(faults, "records", value, ip_address),
        );
        let Some((name, (place, text))) = name.zip(key.good()) else {
            continue;
        };
        if addresses.len() > ADDRESSES_MAX || value.value().is_some_and(Vec::is_empty) {
            let problem = format!("has {} addresses", addresses.len());
            faults.add(place, "records", text, problem, "give it 1 to 16");
        } else if records.insert(name, addresses).is_some() {
            let problem = "is the name of two records";
            faults.add(
                place,
                "records",
                text,
                problem,
                "put all its addresses into one list",
            );
        }
    }
    records
}
