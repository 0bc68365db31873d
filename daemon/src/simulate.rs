//! `reveille simulate`: what one machine would be told, byte by byte, and the rule that chose it.
//!
//! Nothing is imitated. A packet like the machine's goes through `netboot::dhcp`, a request for its
//! script through `Site::decide` and the server's own words, its config through `ignition`: the code
//! that answers the wire. Only the token of the attempt is a made-up one, because a real one would
//! count as a boot.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use ignition::platform::Secrets;
use ignition::{Document, Fault, Subject, Urls};
use netboot::boot::{Boot, BootDecision, BootRequest};
use netboot::dhcp::{self, Destination, Heard, LinkContext, Port, Request, Verdict};
use netboot::loader::{Architecture, Client, Transport};
use netboot::net::{LinkName, MacAddress, NetworkName, Timestamp};
use netboot::site::Site;
use netboot::spec::{ConfigSource, Network};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clusters::member;
use crate::http::Ports;
use crate::http::boot::{Words, urls};

/// Stands where an attempt's token would.
const TOKEN: &str = "00000000000000000000000000000000";
const MTU: u16 = 1500;

/// The machine, as it would show itself.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The link it asks from
    #[arg(long)]
    pub mac: MacAddress,
    /// Its processor architecture as DHCP option 93 has it: 0 BIOS, 7 x64 UEFI, 11 arm64 UEFI, 16 x64 HTTP Boot
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<u16>,
    /// DHCP option 60; what firmware of that architecture sends unless given
    #[arg(long, value_name = "TEXT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_class: Option<String>,
    /// DHCP option 77, such as iPXE
    #[arg(long, value_name = "TEXT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_class: Option<String>,
    /// Its SMBIOS UUID
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none", with = "uuid_text")]
    pub uuid: Option<Uuid>,
    /// Its SMBIOS serial number
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The network it asks on; the one it is listed on unless given
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// What it asks for
    #[arg(long, value_enum, default_value_t = Stage::Dhcp)]
    #[serde(default)]
    pub stage: Stage,
}

/// The questions of a boot, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// DISCOVER on port 67
    #[default]
    Dhcp,
    /// REQUEST on port 4011, for the boot file alone
    Proxy,
    /// The boot script
    Ipxe,
    /// The config documents
    Config,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Simulation {
    /// The listed machine, if it is one.
    pub node: Option<String>,
    /// The network it asks on.
    pub network: String,
    /// What it was taken for.
    pub client: String,
    /// What comes of it, in one sentence.
    pub answer: String,
    /// The rule that chose what to boot.
    pub rule: Option<String>,
    /// What would leave, in order.
    pub parts: Vec<Part>,
}

/// One thing that would leave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// What it is, such as `DHCP reply` or `user-data`.
    pub name: String,
    /// The exact bytes, in hexadecimal.
    pub hex: String,
    /// The same for people.
    pub decoded: Vec<String>,
}

/// Where the bastion would be heard.
#[derive(Clone, Debug)]
pub struct Stand {
    /// Its address by link; a link that is not there gets its network's first address.
    pub addresses: BTreeMap<LinkName, Ipv4Addr>,
    /// Its ports.
    pub ports: Ports,
    /// The site's CA, where there is one.
    pub ca_pem: String,
}

/// Answers as the servers would.
///
/// # Errors
/// One sentence, when the question makes no sense.
pub fn simulate(
    site: &Site,
    stand: &Stand,
    question: &Question,
    now: Timestamp,
) -> Result<Simulation, String> {
    let network = network_of(site, question)?;
    let server = stand
        .addresses
        .get(&network.link)
        .copied()
        .unwrap_or_else(|| Ipv4Addr::from(u32::from(network.subnet.network()) + 1));
    let asked = Asked {
        site,
        network,
        server,
        stand,
        question,
        now,
    };
    match question.stage {
        Stage::Dhcp => asked.dhcp(Port::Server),
        Stage::Proxy => asked.dhcp(Port::BootServer),
        Stage::Ipxe => asked.script(),
        Stage::Config => asked.config(),
    }
}

impl Simulation {
    /// The whole for people: the answer, then each part with its bytes and its meaning.
    #[must_use]
    pub fn told(&self) -> String {
        let mut text = format!(
            "machine  {}\nnetwork  {}\nclient   {}\nrule     {}\nanswer   {}\n",
            self.node.as_deref().unwrap_or("not listed"),
            self.network,
            self.client,
            self.rule.as_deref().unwrap_or("none"),
            self.answer
        );
        for part in &self.parts {
            text += &format!("\n{} ({} bytes)\n", part.name, part.hex.len() / 2);
            text += &hexdump(&part.hex);
            for line in &part.decoded {
                text += &format!("  {line}\n");
            }
        }
        text
    }
}

struct Asked<'a> {
    site: &'a Site,
    network: &'a Arc<Network>,
    server: Ipv4Addr,
    stand: &'a Stand,
    question: &'a Question,
    now: Timestamp,
}

impl Asked<'_> {
    fn dhcp(&self, port: Port) -> Result<Simulation, String> {
        let packet = packet::write(self.question, self.address(), port, self.server);
        let request = Request::parse(&packet)
            .map_err(|malformed| format!("the packet is refused: {}", malformed.label()))?;
        let link = LinkContext {
            name: self.network.link.clone(),
            server: self.server,
            http_port: self.stand.ports.plain,
            mtu: MTU,
        };
        let heard = Heard {
            port,
            unicast: port == Port::BootServer,
            chainloads: 0,
        };
        let mut bytes = Vec::new();
        let answered = dhcp::answer(self.site, &link, &request, heard, self.now, &mut bytes);
        let client = answered.client;
        let mut parts = vec![Part::packet("DHCP request", &packet)];
        let (answer, rule) = match answered.verdict {
            Verdict::Reply(reply) => {
                parts.push(Part::packet("DHCP reply", &bytes));
                let address = reply
                    .address
                    .map_or(String::new(), |address| format!(" of {address}"));
                let to = destination(reply.destination);
                (format!("{:?}{address}, {to}", reply.kind), reply.rule)
            }
            Verdict::Ignore(ignored) => {
                let why = ignored.label().replace('_', " ");
                (format!("no answer: {why}"), None)
            }
            Verdict::Declined(..) | Verdict::Released(..) => ("no answer is due".to_owned(), None),
        };
        Ok(self.simulation(client, answer, rule, parts))
    }

    fn script(&self) -> Result<Simulation, String> {
        let client = self.ipxe();
        let words = self.words();
        let request = self.request(client);
        let decision = self.site.decide(&request, self.now);
        let (answer, script) = match decision.answer {
            BootDecision::Boot(boot) => (
                format!("200, boots {}", boot.profile.name),
                words.boot(&boot, &self.urls()).map_err(fault)?,
            ),
            BootDecision::LocalDisk => ("200, leaves for its disk".to_owned(), words.local_disk()),
            BootDecision::Hold(hold) => (
                format!(
                    "200, shows why it waits; asked again: 503, Retry-After: {}",
                    netboot::ipxe::retry_after_seconds(self.question.mac)
                ),
                netboot::ipxe::hold(
                    &hold.to_string(),
                    &netboot::ipxe::script_url(&self.urls().base, self.question.mac),
                ),
            ),
            BootDecision::Refuse(refused) => (
                "200, refused".to_owned(),
                netboot::ipxe::refuse(&words.refusal(&refused)),
            ),
            BootDecision::Chainload(loader) => {
                return Err(format!("iPXE was told to load {loader}; this is a fault"));
            }
        };
        let parts = vec![Part::text("script.ipxe", &script)];
        Ok(self.simulation(client, answer, Some(decision.rule), parts))
    }

    fn config(&self) -> Result<Simulation, String> {
        let client = self.ipxe();
        let request = self.request(client);
        let decision = self.site.decide(&request, self.now);
        let mut parts = Vec::new();
        let answer = match &decision.answer {
            BootDecision::Boot(boot) => {
                parts = self.documents(boot)?;
                "200, once its boot script was served, to its own address and no other".to_owned()
            }
            BootDecision::LocalDisk => "403, its install was acknowledged".to_owned(),
            BootDecision::Hold(hold) => format!("403, it is held: {hold}"),
            BootDecision::Refuse(refused) => format!("403, it is refused: {refused}"),
            BootDecision::Chainload(loader) => {
                return Err(format!("iPXE was told to load {loader}; this is a fault"));
            }
        };
        Ok(self.simulation(client, answer, Some(decision.rule), parts))
    }

    fn documents(&self, boot: &Boot<'_>) -> Result<Vec<Part>, String> {
        let (words, urls) = (self.words(), self.urls());
        let subject = words.subject(boot, &urls);
        let mut parts = Vec::new();
        for file in [
            "config.ign",
            "node.ign",
            "user-data",
            "meta-data",
            "vendor-data",
            "network-config",
            "talos.yaml",
        ] {
            let Some(document) = Document::by_file(file) else {
                continue;
            };
            let text = match self.members(boot, &subject, document).transpose() {
                Some(written) => Some(written.map_err(fault)?),
                None => ignition::document(boot.profile, &subject, document).map_err(fault)?,
            };
            parts.extend(text.map(|text| Part::text(file, &text)));
        }
        Ok(parts)
    }

    /// What its platform writes for a cluster's member, with a word where secrets would stand.
    fn members(
        &self,
        boot: &Boot<'_>,
        subject: &Subject<'_>,
        document: Document,
    ) -> Result<Option<String>, Fault> {
        let ConfigSource::Platform(_) = boot.profile.config else {
            return Ok(None);
        };
        let written = boot.node.and_then(|node| {
            let place = self.site.member(&node.name)?;
            let (spec, state) = self.site.cluster(&place.cluster)?;
            let secrets = Secrets::stand_in(spec.platform.parse().ok()?);
            let peers = member::peers(self.site, place);
            let member = member::membership(spec, state, place, node, self.server, &peers)?;
            Some(secrets.document(&member, boot.profile, subject, document))
        });
        written.unwrap_or(Ok(None))
    }

    fn words(&self) -> Words<'_> {
        Words {
            site: self.site,
            network: self.network,
            mac: self.question.mac,
        }
    }

    fn urls(&self) -> Urls {
        urls(self.server, self.stand.ports, TOKEN, &self.stand.ca_pem)
    }

    fn ipxe(&self) -> Client {
        Client::Ipxe(self.question.arch.map_or(Architecture::BIOS, Architecture))
    }

    fn request(&self, client: Client) -> BootRequest<'_> {
        BootRequest {
            mac: self.question.mac,
            client,
            network: &self.network.name,
            uuid: self.question.uuid,
            serial: self.question.serial.as_deref(),
            chainloads: 0,
        }
    }

    fn address(&self) -> Ipv4Addr {
        let node = self.site.spec().node_by_mac(self.question.mac);
        node.and_then(|node| node.link_on(self.question.mac, &self.network.name))
            .map_or(Ipv4Addr::UNSPECIFIED, |link| link.address)
    }

    fn simulation(
        &self,
        client: Client,
        answer: String,
        rule: Option<&str>,
        parts: Vec<Part>,
    ) -> Simulation {
        let node = self.site.spec().node_by_mac(self.question.mac);
        Simulation {
            node: node.map(|node| node.name.to_string()),
            network: self.network.name.to_string(),
            client: client.to_string(),
            answer,
            rule: rule.map(str::to_owned),
            parts,
        }
    }
}

fn network_of<'a>(site: &'a Site, question: &Question) -> Result<&'a Arc<Network>, String> {
    let spec = site.spec();
    if let Some(name) = &question.network {
        return spec
            .network(name)
            .ok_or_else(|| format!("the site has no network {name}"));
    }
    let listed = spec
        .node_by_mac(question.mac)
        .and_then(|node| node.link_of(question.mac))
        .and_then(|link| spec.network(&link.network));
    let mut all = spec.networks();
    match (listed, all.next(), all.next()) {
        (Some(network), ..) | (None, Some(network), None) => Ok(network),
        _ => {
            Err("the machine is not listed; name the network it asks on with --network".to_owned())
        }
    }
}

fn destination(destination: Destination) -> String {
    match destination {
        Destination::Relay(relay) => format!("to the relay {relay}"),
        Destination::Client(address) => format!("to {address}, port 68"),
        Destination::Station(mac, address) => {
            format!("to {address}, port 68, in a frame to {mac}")
        }
        Destination::Broadcast => "to everybody on the link, port 68".to_owned(),
        Destination::Sender => "to the port it was asked from".to_owned(),
    }
}

fn fault(fault: Fault) -> String {
    format!("{}: {}; {}", fault.field, fault.problem, fault.remedy)
}

impl Part {
    fn packet(name: &str, bytes: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            hex: hex(bytes),
            decoded: packet::read(bytes),
        }
    }

    fn text(name: &str, text: &str) -> Self {
        Self {
            name: name.to_owned(),
            hex: hex(text.as_bytes()),
            decoded: text.lines().map(str::to_owned).collect(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sixteen bytes a line: offset, digits, and the letters among them.
fn hexdump(hex: &str) -> String {
    let mut text = String::new();
    for (line, digits) in hex.as_bytes().chunks(32).enumerate() {
        let pairs: Vec<&str> = digits
            .chunks(2)
            .filter_map(|pair| str::from_utf8(pair).ok())
            .collect();
        let letters: String = pairs
            .iter()
            .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
            .map(|byte| {
                let graphic = byte.is_ascii_graphic() || byte == b' ';
                if graphic { char::from(byte) } else { '.' }
            })
            .collect();
        text += &format!("  {:04x}  {:<47}  {letters}\n", line * 16, pairs.join(" "));
    }
    text
}

mod uuid_text {
    //! A UUID as text on the API, the way `uuid` itself spells it.

    use serde::{Deserialize, Deserializer, Serializer, de};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(
        uuid: &Option<Uuid>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match uuid {
            Some(uuid) => serializer.collect_str(uuid),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Uuid>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let parsed = text.map(|text| text.parse().map_err(de::Error::custom));
        parsed.transpose()
    }
}

mod packet {
    //! A packet as firmware writes it, and a reply as people read it (RFC 2131, section 2).

    use super::{Architecture, Ipv4Addr, Port, Question, Transport, hex};

    /// What PXE firmware and iPXE ask for together.
    const WANTED: [u8; 24] = [
        1, 3, 6, 12, 15, 17, 26, 28, 42, 43, 51, 54, 58, 59, 60, 66, 67, 97, 119, 121, 128, 129,
        175, 203,
    ];
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    const OPTIONS_AT: usize = 240;

    pub(super) fn write(
        question: &Question,
        address: Ipv4Addr,
        port: Port,
        server: Ipv4Addr,
    ) -> Vec<u8> {
        let mut packet = vec![0; OPTIONS_AT];
        packet[..3].copy_from_slice(&[1, 1, 6]);
        packet[4..8].copy_from_slice(&question.mac.octets()[2..]);
        if port == Port::BootServer {
            packet[12..16].copy_from_slice(&address.octets());
        }
        packet[28..34].copy_from_slice(&question.mac.octets());
        packet[236..].copy_from_slice(&COOKIE);
        let mut option = |code: u8, value: &[u8]| {
            let value = &value[..value.len().min(255)];
            packet.push(code);
            packet.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
            packet.extend_from_slice(value);
        };
        match port {
            Port::Server => option(53, &[1]),
            Port::BootServer => {
                option(53, &[3]);
                option(54, &server.octets());
            }
        }
        option(57, &1472u16.to_be_bytes());
        option(55, &WANTED);
        if let Some(arch) = question.arch {
            option(93, &arch.to_be_bytes());
            option(94, &[1, 3, 16]);
        }
        if let Some(class) = vendor_class(question) {
            option(60, class.as_bytes());
        }
        if let Some(class) = &question.user_class {
            option(77, class.as_bytes());
        }
        if let Some(uuid) = question.uuid {
            option(97, &[&[0], uuid.to_bytes_le().as_slice()].concat());
        }
        packet.push(255);
        packet
    }

    fn vendor_class(question: &Question) -> Option<String> {
        let usual = |arch: u16| {
            let class = match Architecture(arch).transport() {
                Transport::Tftp => "PXEClient",
                Transport::Http => "HTTPClient",
            };
            format!("{class}:Arch:{arch:05}:UNDI:003016")
        };
        question.vendor_class.clone().or(question.arch.map(usual))
    }

    pub(super) fn read(bytes: &[u8]) -> Vec<String> {
        let Some(head) = bytes.get(..OPTIONS_AT) else {
            return vec!["too short for a DHCP packet".to_owned()];
        };
        let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
        let mut lines = vec![format!(
            "ciaddr {}  yiaddr {}  siaddr {}  giaddr {}",
            address(12),
            address(16),
            address(20),
            address(24)
        )];
        for (name, field) in [("sname", &head[44..108]), ("file", &head[108..236])] {
            let end = field.iter().position(|byte| *byte == 0);
            let text = &field[..end.unwrap_or(field.len())];
            if !text.is_empty() {
                lines.push(format!("{name} {}", String::from_utf8_lossy(text)));
            }
        }
        let mut rest = &bytes[OPTIONS_AT..];
        while let [code, tail @ ..] = rest {
            match (code, tail) {
                (0, _) => rest = tail,
                (255, _) => break,
                (code, [length, tail @ ..]) if tail.len() >= usize::from(*length) => {
                    let (value, next) = tail.split_at(usize::from(*length));
                    lines.push(option(*code, value));
                    rest = next;
                }
                _ => {
                    lines.push("an option runs past the end".to_owned());
                    break;
                }
            }
        }
        lines
    }

    fn option(code: u8, value: &[u8]) -> String {
        let (name, kind) = known(code);
        let shown = match kind {
            Kind::Addresses if !value.is_empty() && value.len().is_multiple_of(4) => value
                .chunks_exact(4)
                .map(|four| Ipv4Addr::new(four[0], four[1], four[2], four[3]).to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Kind::Number if value.len() <= 4 => value
                .iter()
                .fold(0u32, |sum, byte| sum << 8 | u32::from(*byte))
                .to_string(),
            // EDK2 wants the boot file's name to end with a zero.
            Kind::Text => String::from_utf8_lossy(value)
                .trim_end_matches('\0')
                .to_owned(),
            Kind::List => format!("{value:?}"),
            Kind::Bytes | Kind::Addresses | Kind::Number => hex(value),
        };
        format!("option {code} {name}: {shown}")
    }

    enum Kind {
        Addresses,
        Number,
        Text,
        List,
        Bytes,
    }

    fn known(code: u8) -> (&'static str, Kind) {
        match code {
            1 => ("subnet mask", Kind::Addresses),
            3 => ("router", Kind::Addresses),
            6 => ("DNS servers", Kind::Addresses),
            12 => ("host name", Kind::Text),
            15 => ("domain name", Kind::Text),
            26 => ("interface MTU", Kind::Number),
            28 => ("broadcast address", Kind::Addresses),
            42 => ("NTP servers", Kind::Addresses),
            43 => ("vendor-specific", Kind::Bytes),
            51 => ("lease seconds", Kind::Number),
            53 => ("message type", Kind::Number),
            54 => ("server identifier", Kind::Addresses),
            55 => ("parameter request list", Kind::List),
            57 => ("maximum message size", Kind::Number),
            58 => ("renewal seconds", Kind::Number),
            59 => ("rebinding seconds", Kind::Number),
            60 => ("vendor class", Kind::Text),
            66 => ("TFTP server name", Kind::Text),
            67 => ("boot file", Kind::Text),
            77 => ("user class", Kind::Text),
            82 => ("relay agent information", Kind::Bytes),
            93 => ("client architecture", Kind::Number),
            94 => ("client network interface", Kind::Bytes),
            97 => ("client machine identifier", Kind::Bytes),
            119 => ("domain search", Kind::Bytes),
            121 => ("classless static routes", Kind::Bytes),
            175 => ("iPXE encapsulated", Kind::Bytes),
            _ => ("", Kind::Bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hexdump_shows_offset_digits_and_letters() {
        let shown = hexdump(&hex(b"#!ipxe\necho hello, world"));
        assert_eq!(
            shown,
            "  0000  23 21 69 70 78 65 0a 65 63 68 6f 20 68 65 6c 6c  #!ipxe.echo hell\n  \
             0010  6f 2c 20 77 6f 72 6c 64                          o, world\n"
        );
    }
}
