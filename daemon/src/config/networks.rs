//! `site.yaml` to settings and networks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use netboot::net::{Destination, Malformed, NetworkName};
use netboot::spec::{AdmissionPolicy, Mode, Network};

use super::fault::{Faults, Place};
use super::file;
use super::host;
use super::judge::{address, list, loaders, missing, need, parse, seconds};
use super::read::{Given, Table};
use super::site::{SiteFile, Written};
use super::{Settings, TftpEngine, balancer, dns};

const LEASE_SECONDS_MIN: u32 = 120;
const LEASE_SECONDS_MAX: u32 = 365 * 86_400;
/// RFC 791, 3.1: "All hosts must be prepared to accept datagrams of up to 576 octets".
const MTU_MIN: u16 = 576;
/// One option of one packet. Longer ones would have to be split, and firmware joins none.
const OPTION_BYTES_MAX: usize = 255;

/// Judges `site.yaml`.
pub(super) fn judge(given: Given<file::Site>, whole: Place, faults: &Faults) -> SiteFile {
    let mut site = SiteFile::default();
    let Given::Good(place, file) = given else {
        if given.is_absent() {
            faults.add(
                whole,
                "",
                "",
                "is empty",
                "begin with `site:` and `networks:`",
            );
        }
        site.incomplete = true;
        return site;
    };
    let file::Site {
        site: name,
        admission,
        links,
        host: host_given,
        networks,
        http,
        tftp,
        dns,
        ntp,
        balancer,
        control,
    } = file;
    // A site's name follows the rule of every other name.
    let name_parsed: Option<NetworkName> = need(faults, "site", &name, place);
    site.settings = settings(
        name_parsed.map(|name| name.to_string()),
        http.value(),
        tftp.value(),
        control.value(),
        faults,
    );
    site.admission = match admission.value() {
        Some(file::Admission::Manual) => AdmissionPolicy::Manual,
        Some(file::Admission::Listed) | None => AdmissionPolicy::Listed,
    };
    match networks {
        Given::Absent => missing(faults, "networks", place),
        Given::Bad(_) => site.incomplete = true,
        Given::Good(_, networks) => {
            for given in networks {
                let Given::Good(place, entry) = given else {
                    site.incomplete = true;
                    continue;
                };
                match network(&entry, place, faults) {
                    Some(network) => {
                        site.networks.push(network);
                        site.written.push(Written { place, entry });
                    }
                    None => match entry.name.value() {
                        Some(name) => {
                            site.broken.insert(name.clone());
                        }
                        None => site.incomplete = true,
                    },
                }
            }
        }
    }
    site.dns = dns::judge(&dns, &site.networks, faults);
    balancer::judge(&balancer, &mut site, faults);
    let ntp = ntp.value().and_then(|ntp| ntp.serve.value());
    site.serve_time = ntp.copied().unwrap_or(false);
    site.host = host::judge(links, host_given, &site, faults);
    site
}

fn settings(
    site: Option<String>,
    http: Option<&file::Http>,
    tftp: Option<&file::Tftp>,
    control: Option<&file::Control>,
    faults: &Faults,
) -> Settings {
    let mut settings = Settings::default();
    settings.site = site.unwrap_or(settings.site);
    if let Some(http) = http {
        let port = |key, given: &Given<u16>, default| match given.good() {
            Some((place, 0)) => {
                faults.add(place, key, "0", "is not a port", "write 1 to 65535");
                default
            }
            Some((_, port)) => *port,
            None => default,
        };
        settings.http_port = port("port", &http.port, settings.http_port);
        settings.tls_port = port("tls_port", &http.tls_port, settings.tls_port);
        settings.events_port = port("events_port", &http.events_port, settings.events_port);
        if let Some((place, same)) = http.tls_port.good().or(http.port.good())
            && settings.http_port == settings.tls_port
        {
            faults.add(
                place,
                "tls_port",
                &same.to_string(),
                "is the port for plain HTTP too",
                "choose two different ports",
            );
        }
        let boot = [settings.http_port, settings.tls_port];
        let written = [&http.events_port, &http.tls_port, &http.port];
        if boot.contains(&settings.events_port)
            && let Some((place, _)) = written.into_iter().find_map(Given::good)
        {
            let same = settings.events_port.to_string();
            let problem = "is a port for boot HTTP too";
            let remedy = "choose three different ports";
            faults.add(place, "events_port", &same, problem, remedy);
        }
    }
    settings.tftp_engine = match tftp.and_then(|tftp| tftp.engine.value()) {
        Some(file::TftpEngine::AsyncTftp) => TftpEngine::AsyncTftp,
        Some(file::TftpEngine::Builtin) | None => TftpEngine::Builtin,
    };
    if let Some(control) = control {
        if let Some(group) = group("group", &control.group, faults) {
            settings.group = group;
        }
        settings.read_group = group("read_group", &control.read_group, faults);
        settings.listen = loopback(&control.listen, faults);
    }
    settings
}

fn loopback(given: &Given<String>, faults: &Faults) -> Option<SocketAddr> {
    let (place, text) = given.good()?;
    let address = text.parse().ok().filter(|address: &SocketAddr| {
        // The page and the metrics ask for no token, so they never leave the host.
        address.ip().is_loopback() && address.port() != 0
    });
    if address.is_none() {
        let problem = "is not a loopback address and port";
        faults.add(place, "listen", text, problem, "write 127.0.0.1:8067");
    }
    address
}

fn group(key: &str, given: &Given<String>, faults: &Faults) -> Option<String> {
    let (place, text) = given.good()?;
    let sound = (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !sound {
        faults.add(
            place,
            key,
            text,
            "is not the name of a group",
            "write a name that `getent group` knows",
        );
    }
    sound.then(|| text.clone())
}

fn network(entry: &file::Network, place: Place, faults: &Faults) -> Option<Network> {
    let file::Network {
        name,
        link,
        subnet,
        mode,
        range,
        router,
        dns,
        ntp,
        domain,
        search,
        mtu,
        lease,
        routes,
        options: raw,
        loaders: table,
        relayed,
        quiet_ipv6,
        discovery,
    } = entry;
    let name = need(faults, "name", name, place);
    let link = need(faults, "link", link, place);
    let subnet = need(faults, "subnet", subnet, place);
    let mtu = mtu.good().and_then(|(place, mtu)| {
        if *mtu < MTU_MIN {
            let value = mtu.to_string();
            faults.add(
                place,
                "mtu",
                &value,
                "is less than IPv4 needs",
                "write 576 to 65535; 1500 is usual",
            );
            return None;
        }
        Some(*mtu)
    });
    let mode = match mode.value() {
        Some(file::Mode::Pool) => Mode::Pool,
        Some(file::Mode::Proxy) => Mode::Proxy,
        Some(file::Mode::Off) => Mode::Off,
        Some(file::Mode::Reservation) | None => Mode::Reservation,
    };
    let optional = Network {
        range: parse(faults, "range", range),
        mode,
        relayed: relayed.value().copied().unwrap_or(false),
        router: address(faults, "router", router),
        dns: list(faults, "dns", dns, address),
        ntp: list(faults, "ntp", ntp, address),
        domain: parse(faults, "domain", domain),
        search: list(faults, "search", search, parse),
        mtu,
        routes: static_routes(routes, faults),
        lease_seconds: lease_seconds(lease, faults),
        options: options(raw, faults),
        loaders: loaders(faults, table),
        quiet_ipv6: quiet_ipv6.value().copied().unwrap_or(true),
        discovery: parse(faults, "discovery", discovery),
        name: name?,
        link: link?,
        subnet: subnet?,
    };
    if let Some(place) = discovery.place().filter(|_| mode != Mode::Pool) {
        let value = discovery.value().map_or("", String::as_str);
        faults.add(
            place,
            "discovery",
            value,
            "is asked for only where addresses are lent to machines that are not listed",
            "set `mode: pool` and a range, or remove it",
        );
    }
    Some(optional)
}

fn static_routes(
    given: &Given<Vec<Given<file::Route>>>,
    faults: &Faults,
) -> Vec<(Destination, Ipv4Addr)> {
    let mut routes = Vec::new();
    for (place, route) in given.value().into_iter().flatten().filter_map(Given::good) {
        let to = need(faults, "to", &route.to, place);
        if route.via.is_absent() {
            missing(faults, "via", place);
        }
        routes.extend(to.zip(address(faults, "via", &route.via)));
    }
    routes
}

fn lease_seconds(given: &Given<String>, faults: &Faults) -> u32 {
    let Some((place, text)) = given.good() else {
        return Network::LEASE_SECONDS;
    };
    let seconds = seconds(text);
    match seconds {
        Some(seconds) if (LEASE_SECONDS_MIN..=LEASE_SECONDS_MAX).contains(&seconds) => seconds,
        _ => {
            let malformed = Malformed::new(
                "lease",
                text,
                "write a number and s, m, h or d, from 120s to 365d, such as 12h",
            );
            faults.add_malformed(place, "lease", &malformed);
            Network::LEASE_SECONDS
        }
    }
}

fn options(given: &Given<Table<file::OptionValue>>, faults: &Faults) -> BTreeMap<u8, Vec<u8>> {
    let mut options = BTreeMap::new();
    for (key, value) in given.value().map_or(&[][..], |table| &table.0) {
        let Some((place, text)) = key.good() else {
            continue;
        };
        let code = match text.parse::<u8>() {
            Ok(code) if (1..=254).contains(&code) => code,
            _ => {
                faults.add(
                    place,
                    "options",
                    text,
                    "is not an option code",
                    "write a number from 1 to 254",
                );
                continue;
            }
        };
        if let Some(remedy) = reserved(code) {
            faults.add(place, "options", text, "can't be set here", remedy);
        }
        if let Some((place, value)) = value.good()
            && let Some(bytes) = option_bytes(place, value, faults)
        {
            options.insert(code, bytes);
        }
    }
    options
}

/// What to do instead of setting an option raw that the daemon works out.
fn reserved(code: u8) -> Option<&'static str> {
    match code {
        1 | 28 => Some("it follows from `subnet`; remove it"),
        3 => Some("use `router:`"),
        6 => Some("use `dns:`"),
        12 => Some("use the machine's `hostname:`"),
        15 => Some("use `domain:`"),
        26 => Some("use `mtu:`"),
        42 => Some("use `ntp:`"),
        51 | 58 | 59 => Some("use `lease:`"),
        119 => Some("use `search:`"),
        121 => Some("use `routes:`"),
        50 | 52..=57 | 61 | 82 => Some("it is part of the protocol; remove it"),
        _ => None,
    }
}

fn option_bytes(place: Place, value: &file::OptionValue, faults: &Faults) -> Option<Vec<u8>> {
    let bytes = match value {
        file::OptionValue::Text(text) => text.clone().into_bytes(),
        file::OptionValue::Bytes(file::OptionBytes {
            hex,
            address: one,
            addresses: many,
        }) => {
            let given = [!hex.is_absent(), !one.is_absent(), !many.is_absent()];
            if given.into_iter().filter(|given| *given).count() != 1 {
                faults.add(
                    place,
                    "options",
                    "",
                    "must be told by exactly one of hex, address and addresses",
                    "keep one; write plain text without any of them",
                );
                return None;
            }
            if let Some((place, text)) = hex.good() {
                hexadecimal(place, text, faults)?
            } else {
                let one = address(faults, "address", one);
                let many = list(faults, "addresses", many, address);
                one.iter().chain(&many).flat_map(Ipv4Addr::octets).collect()
            }
        }
    };
    if bytes.len() > OPTION_BYTES_MAX {
        let problem = format!("is {} bytes long", bytes.len());
        faults.add(
            place,
            "options",
            "",
            problem,
            "keep an option within 255 bytes",
        );
        return None;
    }
    Some(bytes)
}

fn hexadecimal(place: Place, text: &str, faults: &Faults) -> Option<Vec<u8>> {
    let digits: String = text
        .chars()
        .filter(|c| !matches!(c, ':' | '-' | ' '))
        .collect();
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs
        .iter()
        .map(|pair| {
            let pair = str::from_utf8(pair).ok()?;
            let digits = pair.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(pair, 16).ok().filter(|_| digits)
        })
        .collect();
    let bytes = bytes.filter(|_| rest.is_empty());
    if bytes.is_none() {
        faults.add(
            place,
            "hex",
            text,
            "is not hexadecimal",
            "write two digits a byte, such as 0a6b0001",
        );
    }
    bytes
}
