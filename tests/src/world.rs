//! A site, its bastion, its machines, a person, a clock and a lossy wire, all from one seed. The bastion
//! here is the pure core with a disk that keeps exactly what was committed: it is killed between any two
//! instructions that matter. After every step the promises are checked against what the machines
//! really did, not against what the bastion believes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use netboot::boot::{ATTEMPTS_MAX, BootDecision, BootRequest};
use netboot::cluster::{ClusterName, ClusterRecord};
use netboot::dhcp::{self, LinkContext, Port, Verdict};
use netboot::event::{Change, Event, Outcome, ScriptAsked, ServedBoot};
use netboot::loader::{Architecture, Client};
use netboot::net::{AddressRange, Digest, MacAddress, NetworkName, NodeName, Timestamp};
use netboot::node::{DiskRule, NodeLink, NodeRecord, NodeSpec, Report};
use netboot::release::Asker;
use netboot::site::{Lease, Memory, Site};
use netboot::spec::{Artifact, ConfigSource, Mode, Network, Profile, Purpose, SiteParts, SiteSpec};

use uuid::Uuid;

use crate::chance::Chance;
use crate::machine::{Disk, Doing, Heard, Machine, Wish};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);

/// How unkind the world is, in percent of steps.
#[derive(Clone, Copy, Debug)]
pub struct Unkindness {
    /// A message is lost, either way.
    pub loss: u64,
    /// A machine loses power in a step.
    pub power_cut: u64,
    /// The bastion is killed in an exchange.
    pub kill: u64,
    /// A person does something.
    pub person: u64,
    /// A stranger tries to read a config with a token it overheard.
    pub thief: u64,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    dice: Chance,
    now: Timestamp,
    unkindness: Unkindness,
    site: Site,
    disk: Durable,
    machines: Vec<Machine>,
    history: BTreeMap<NodeName, History>,
    next_token: u64,
    /// Steps taken.
    pub steps: u64,
}

/// What the bastion's disk holds: the committed values, by key.
#[derive(Debug, Default)]
struct Durable {
    generation: u64,
    records: BTreeMap<NodeName, NodeRecord>,
    leases: BTreeMap<Ipv4Addr, Lease>,
    clusters: BTreeMap<ClusterName, ClusterRecord>,
}

/// What really happened to one listed machine, as the promises need it.
#[derive(Clone, Debug, Default)]
struct History {
    /// The machine knows that its install is known, and has not been wiped since.
    precious: bool,
    /// A person consented to lose the disk, and until when.
    consent: Option<Timestamp>,
    /// Scripts served in a row without success, permit or person's word.
    scripts: u32,
    generation: u32,
    attempts: u32,
}

impl World {
    /// A world of `machines` listed machines, and a few that are not.
    #[must_use]
    pub fn new(seed: u64, machines: usize, unkindness: Unkindness) -> Self {
        let spec = Arc::new(spec(machines));
        let mut all: Vec<Machine> = (0..machines)
            .map(|index| Machine::new(mac(index), Some(uuid(index))))
            .collect();
        all.push(Machine::new(mac(machines), None));
        all.push(Machine::new(mac(machines + 1), None));
        // A swapped board: the first machine's UUID behind a card that nobody listed.
        all.push(Machine::new(mac(machines + 2), Some(uuid(0))));
        Self {
            dice: Chance::new(seed),
            now: Timestamp::from_millis(1_800_000_000_000),
            unkindness,
            site: Site::new(spec),
            disk: Durable::default(),
            machines: all,
            history: BTreeMap::new(),
            next_token: 0,
            steps: 0,
        }
    }

    /// One step of one machine, or of a person, with every promise checked after it.
    pub fn step(&mut self) {
        self.steps += 1;
        self.now = Timestamp::from_millis(self.now.millis() + 200 + self.dice.number() % 3000);
        if self.dice.happens(self.unkindness.person) {
            self.person_acts();
        }
        if self.dice.happens(self.unkindness.thief) {
            self.thief_tries();
        }
        let index = self.dice.below(self.machines.len());
        if self.machines[index].now == Doing::Off || self.dice.happens(self.unkindness.power_cut) {
            self.machines[index].power_cycle();
        }
        let wish = self.machines[index].wish();
        if wish != Wish::Nothing && !self.dice.happens(self.unkindness.loss) {
            let answer = self.ask(index, wish);
            if let Some(heard) = answer.filter(|_| !self.dice.happens(self.unkindness.loss)) {
                self.machine_hears(index, heard);
            }
        }
        self.promises_hold();
    }

    /// Makes the world kind from here on, so that stories can end.
    pub fn becomes_kind(&mut self) {
        self.unkindness = Unkindness {
            loss: 0,
            power_cut: 0,
            kill: 0,
            person: 0,
            thief: 0,
        };
    }

    /// Listed machines whose story neither ended well nor waits for a person.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        let listed = self
            .machines
            .iter()
            .filter(|machine| self.site.spec().node_by_mac(machine.mac).is_some());
        listed
            .filter(|machine| {
                machine.now != Doing::Running { heard: true } && machine.told.is_none()
            })
            .map(|machine| format!("{machine:?}"))
            .collect()
    }

    /// Machines whose system runs and was heard.
    #[must_use]
    pub fn running(&self) -> usize {
        self.machines
            .iter()
            .filter(|machine| machine.now == Doing::Running { heard: true })
            .count()
    }

    fn ask(&mut self, index: usize, wish: Wish) -> Option<Heard> {
        match wish {
            Wish::Nothing => None,
            Wish::Dhcp => self.ask_dhcp(index),
            Wish::Script => self.ask_script(index),
            Wish::Config => self.ask_config(index),
            Wish::ReportInstalled => self.report(index, Report::Installed),
            Wish::ReportBooted => self.report(index, Report::Booted),
        }
    }

    /// A whole DHCP exchange in real packets, each of which may be lost.
    fn ask_dhcp(&mut self, index: usize) -> Option<Heard> {
        let offer = self.dhcp(index, None)?;
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        if self.dice.happens(self.unkindness.loss) {
            return None;
        }
        let reply = self.dhcp(index, Some(offer.yiaddr()))?;
        assert_eq!(
            reply.opts().msg_type(),
            Some(MessageType::Ack),
            "what was offered is given"
        );
        assert_eq!(
            reply.yiaddr(),
            offer.yiaddr(),
            "an address changes in the middle of an exchange"
        );
        let address = reply.yiaddr();
        let reserved = self
            .site
            .spec()
            .node_by_mac(self.machines[index].mac)
            .map(|node| node.boot_link().address);
        assert!(
            reserved.is_none_or(|reserved| reserved == address),
            "a listed machine was given {address}"
        );
        match reply.opts().get(OptionCode::BootfileName) {
            Some(DhcpOption::BootfileName(name)) if name.starts_with(b"snponly.efi") => {
                Some(Heard::Loader(address))
            }
            Some(other) => panic!("firmware that reads no scripts was sent {other:?}"),
            None => Some(Heard::Wait("nothing to boot".to_owned())),
        }
    }

    /// One packet there and, when there is an answer, one back.
    fn dhcp(&mut self, index: usize, requested: Option<Ipv4Addr>) -> Option<Message> {
        let bytes = packet(&self.machines[index], requested);
        let link = LinkContext {
            name: "eth1.107".parse().expect("a link"),
            server: SERVER,
            http_port: 8080,
            mtu: 1500,
        };
        let heard = dhcp::Heard {
            port: Port::Server,
            unicast: false,
            chainloads: 0,
        };
        let request = dhcp::Request::parse(&bytes).expect("a real client's packet");
        let (mut out, site) = (Vec::new(), self.site.clone());
        let Verdict::Reply(reply) =
            dhcp::answer(&site, &link, &request, heard, self.now, &mut out).verdict
        else {
            return None;
        };
        if let Some(lease) = reply.lease
            && !matches!(self.happen(Event::LeaseAsked(lease))?, Outcome::Lease(true))
        {
            return None;
        }
        Some(Message::decode(&mut Decoder::new(&out)).expect("a reply that a client can read"))
    }

    fn ask_script(&mut self, index: usize) -> Option<Heard> {
        let machine = &self.machines[index];
        let (mac, uuid, network) = (machine.mac, machine.uuid, network_name());
        let client = Client::Ipxe(Architecture::X64_UEFI);
        let request = BootRequest {
            mac,
            client,
            network: &network,
            uuid,
            serial: None,
            chainloads: 0,
        };
        let site = self.site.clone();
        let decision = site.decide(&request, self.now).answer;
        assert_eq!(
            decision,
            site.decide(&request, self.now).answer,
            "one question has one answer"
        );
        if let BootDecision::Boot(boot) = &decision
            && boot.node.is_none()
        {
            assert_eq!(
                boot.profile.purpose,
                Purpose::Live,
                "a machine that is not listed is never installed"
            );
            return Some(Heard::Wait("discovery".to_owned()));
        }
        if !matches!(decision, BootDecision::Boot(_)) {
            return Some(told(&decision));
        }
        self.next_token += 1;
        let number = self.next_token;
        let asked = ScriptAsked {
            mac,
            client,
            network: network.clone(),
            uuid,
            serial: None,
            token: token(number),
        };
        let Outcome::Script(served) = self.happen(Event::ScriptAsked(asked))? else {
            panic!("a script was asked for and something else answered");
        };
        let Some(served) = served else {
            return Some(told(&self.site.decide(&request, self.now).answer));
        };
        Some(Heard::Boot(number, served.profile.purpose))
    }

    fn ask_config(&mut self, index: usize) -> Option<Heard> {
        let machine = &self.machines[index];
        let asker = self.asker(machine, machine.token?)?;
        match self.happen(Event::ConfigAsked(asker))? {
            Outcome::Config(Ok(release)) => {
                let owner = &self.machines[index];
                assert!(
                    release.node.macs().any(|mac| mac == owner.mac),
                    "a config left for another machine"
                );
                Some(Heard::Config)
            }
            Outcome::Config(Err(_)) => Some(Heard::ConfigRefused),
            other @ (Outcome::Done
            | Outcome::Refused(_)
            | Outcome::Script(_)
            | Outcome::Secret(_)
            | Outcome::Report(_)
            | Outcome::Lease(_)
            | Outcome::Bootstrap(_)) => panic!("a config was asked for and {other:?} answered"),
        }
    }

    fn report(&mut self, index: usize, report: Report) -> Option<Heard> {
        let machine = &self.machines[index];
        // A system on a disk learns its address like everybody else.
        let node = self.site.spec().node_by_mac(machine.mac)?;
        self.machines[index].address = Some(node.boot_link().address);
        let machine = &self.machines[index];
        let asker = self.asker(machine, machine.token?)?;
        match self.happen(Event::Reported { asker, report })? {
            Outcome::Report(Ok(_)) => Some(Heard::Acknowledged),
            // The token is no longer in force: a newer script was served meanwhile.
            Outcome::Report(Err(_)) => None,
            other @ (Outcome::Done
            | Outcome::Refused(_)
            | Outcome::Script(_)
            | Outcome::Config(_)
            | Outcome::Secret(_)
            | Outcome::Lease(_)
            | Outcome::Bootstrap(_)) => panic!("a report was made and {other:?} answered"),
        }
    }

    fn asker(&self, machine: &Machine, number: u64) -> Option<Asker> {
        Some(Asker {
            token: token(number),
            address: machine.address?,
            neighbour: Some(machine.mac),
        })
    }

    fn machine_hears(&mut self, index: usize, heard: Heard) {
        let acknowledged =
            heard == Heard::Acknowledged && self.machines[index].now == Doing::Reporting;
        let mac = self.machines[index].mac;
        self.machines[index].hear(heard, &mut self.dice);
        if let Some(node) = self.site.spec().node_by_mac(mac) {
            let installs = self
                .site
                .profile_of(node)
                .is_some_and(|profile| profile.purpose == Purpose::Install);
            let history = self.history.entry(node.name.clone()).or_default();
            history.precious |= acknowledged && installs;
        }
    }

    /// Applies an event as the daemon does: apply, commit, publish, answer. A kill before the commit loses
    /// the event; a kill after it loses only the answer. `None` when the asker hears nothing.
    fn happen(&mut self, event: Event) -> Option<Outcome> {
        let said = event.clone();
        let applied = self.site.apply(event, self.now);
        let killed = self.dice.happens(self.unkindness.kill);
        if killed && self.dice.happens(50) {
            self.restart();
            return None;
        }
        for change in &applied.changes {
            self.disk.keep(change, &applied.site);
        }
        self.disk.generation = applied.site.generation();
        self.site = applied.site;
        self.remember(&said, &applied.outcome);
        if killed {
            self.restart();
            return None;
        }
        Some(applied.outcome)
    }

    /// Remembers what was committed, whether or not anybody heard of it.
    fn remember(&mut self, said: &Event, outcome: &Outcome) {
        let now = self.now;
        match (said, outcome) {
            (_, Outcome::Script(Some(served))) => self
                .history_of(&served.node.name)
                .script_served(served, now),
            (_, Outcome::Report(Ok(node))) | (Event::Approved(node), Outcome::Done) => {
                self.history_of(node).scripts = 0
            }
            (_, Outcome::Config(Ok(release))) if release.profile.purpose == Purpose::Live => {
                self.history_of(&release.node.name).scripts = 0;
            }
            (Event::PermitGiven { node, seconds, .. }, Outcome::Done) => {
                self.history_of(node).consent = Some(now.plus_seconds(*seconds));
            }
            (Event::Rejected(node), Outcome::Done) => self.history_of(node).consent = None,
            _ => {}
        }
    }

    fn history_of(&mut self, node: &NodeName) -> &mut History {
        self.history.entry(node.clone()).or_default()
    }

    fn restart(&mut self) {
        let memory = Memory {
            generation: self.disk.generation,
            recovered: None,
            records: self.disk.records.clone().into_iter().collect(),
            leases: self.disk.leases.clone().into_iter().collect(),
            clusters: self.disk.clusters.clone(),
        };
        self.site = Site::restore(Arc::clone(self.site.spec()), memory);
    }

    fn person_acts(&mut self) {
        let names: Vec<NodeName> = self
            .site
            .spec()
            .nodes()
            .map(|node| node.name.clone())
            .collect();
        let node = self.dice.pick(&names).clone();
        let word = self.dice.below(8);
        let event = match word {
            0 => Event::Cordoned(node.clone()),
            1 | 2 => Event::Uncordoned(node.clone()),
            3 => Event::Rejected(node.clone()),
            4 | 5 => Event::Approved(node.clone()),
            _ => {
                let seconds = [60, 3600][self.dice.below(2)];
                Event::PermitGiven {
                    node: node.clone(),
                    disk: "SN-DISK".to_owned(),
                    seconds,
                    by: "root".to_owned(),
                }
            }
        };
        // Whether the answer came through changes nothing: what counts is what was written down.
        let _ = self.happen(event);
    }

    /// A stranger on the wire overheard a token. It has an address and a MAC of its own, and may spoof the
    /// victim's address; what it can't have is the victim's entry in the neighbour table.
    fn thief_tries(&mut self) {
        if self.next_token == 0 {
            return;
        }
        let overheard = 1 + self.dice.number() % self.next_token;
        let thief = MacAddress::from_octets([0x52, 0x54, 0, 0x66, 0x66, 0x66])
            .expect("a station's address");
        let victim = self.dice.pick(&self.machines).address;
        let address = if self.dice.happens(50) {
            victim
        } else {
            Some(Ipv4Addr::new(10, 107, 255, 250))
        };
        let neighbour = if self.dice.happens(80) {
            Some(thief)
        } else {
            None
        };
        let Some(address) = address else { return };
        let asker = Asker {
            token: token(overheard),
            address,
            neighbour,
        };
        let stolen = self.happen(Event::ConfigAsked(asker));
        assert!(
            !matches!(stolen, Some(Outcome::Config(Ok(_)))),
            "a stranger was given a config"
        );
        let report = Event::Reported {
            asker,
            report: Report::Installed,
        };
        let forged = self.happen(report);
        assert!(
            !matches!(forged, Some(Outcome::Report(Ok(_)))),
            "a stranger's report was taken"
        );
    }

    fn promises_hold(&mut self) {
        for node in self.site.spec().nodes() {
            let record = self.site.record(&node.name);
            let history = self.history.entry(node.name.clone()).or_default();
            assert!(
                record.generation >= history.generation,
                "{}: generations only grow",
                node.name
            );
            assert!(
                record.attempts_ever >= history.attempts,
                "{}: attempts only grow",
                node.name
            );
            assert!(
                history.scripts <= u32::from(ATTEMPTS_MAX),
                "{}: served without a person's word",
                node.name
            );
            history.generation = record.generation;
            history.attempts = record.attempts_ever;
            assert_eq!(
                self.disk
                    .records
                    .get(&node.name)
                    .cloned()
                    .unwrap_or_default(),
                *record,
                "seen and not on disk"
            );
        }
        let mut holders = BTreeMap::new();
        for machine in &self.machines {
            let Some(address) = machine.address else {
                continue;
            };
            let other = holders.insert(address, machine.mac);
            assert_eq!(other, None, "two machines hold {address}");
        }
        for machine in &self.machines {
            let stranger = self.site.spec().node_by_mac(machine.mac).is_none();
            assert!(
                !stranger || machine.disk == Disk::Blank,
                "a machine that is not listed was installed: {machine:?}"
            );
        }
    }
}

impl History {
    fn script_served(&mut self, served: &ServedBoot, now: Timestamp) {
        if self.precious && served.profile.purpose == Purpose::Install {
            let consented = self.consent.is_some_and(|until| now < until);
            assert!(
                consented,
                "{}: an acknowledged install was offered an installer unasked",
                served.node.name
            );
            self.precious = false;
        }
        if self.consent.take().is_some() {
            self.scripts = 0;
        }
        self.scripts += 1;
    }
}

impl Durable {
    fn keep(&mut self, change: &Change, site: &Site) {
        match change {
            Change::Record(node) => {
                self.records.insert(node.clone(), site.record(node).clone());
            }
            Change::Recovery => {}
            Change::Cluster(cluster) | Change::Member(cluster, _) => {
                match site.cluster_record(cluster) {
                    Some(record) => self.clusters.insert(cluster.clone(), record.clone()),
                    None => self.clusters.remove(cluster),
                };
            }
            Change::Lease(address) => {
                match site.leases().find(|(held, _)| *held == address) {
                    Some((_, lease)) => self.leases.insert(*address, lease.clone()),
                    None => self.leases.remove(address),
                };
            }
        }
    }
}

fn told(decision: &BootDecision<'_>) -> Heard {
    match decision {
        BootDecision::LocalDisk => Heard::LocalDisk,
        BootDecision::Hold(hold) => Heard::Wait(hold.to_string()),
        BootDecision::Refuse(refusal) => Heard::Wait(refusal.to_string()),
        BootDecision::Boot(_) | BootDecision::Chainload(_) => {
            panic!("not an answer to wait by: {decision:?}")
        }
    }
}

/// What EDK2's PXE client sends, as far as a server's answer depends on it.
fn packet(machine: &Machine, requested: Option<Ipv4Addr>) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new(zero, zero, zero, zero, &machine.mac.octets());
    message.set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    let kind = if requested.is_some() {
        MessageType::Request
    } else {
        MessageType::Discover
    };
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::BootfileName,
    ]));
    options.insert(DhcpOption::ClassIdentifier(
        b"PXEClient:Arch:00007:UNDI:003000".to_vec(),
    ));
    options.insert(DhcpOption::ClientSystemArchitecture(
        dhcproto::v4::Architecture::from(7),
    ));
    if let Some(uuid) = machine.uuid {
        let mut identifier = vec![0];
        identifier.extend(uuid.to_bytes_le());
        options.insert(DhcpOption::ClientMachineIdentifier(identifier));
    }
    if let Some(address) = requested {
        options.insert(DhcpOption::RequestedIpAddress(address));
        options.insert(DhcpOption::ServerIdentifier(SERVER));
    }
    message.to_vec().expect("a packet")
}

fn network_name() -> NetworkName {
    "lab".parse().expect("a name")
}

fn mac(index: usize) -> MacAddress {
    let [high, low] = u16::try_from(index).expect("few machines").to_be_bytes();
    MacAddress::from_octets([0x52, 0x54, 0, 0xaa, high, low]).expect("a station's address")
}

fn uuid(index: usize) -> Uuid {
    Uuid::from_u128(0x4c4c_4544_0000_1070_8000_0000_0000_0000 + index as u128)
}

fn token(number: u64) -> Digest {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Digest::from_bytes(bytes)
}

fn spec(machines: usize) -> SiteSpec {
    let network = Network {
        mode: Mode::Pool,
        range: AddressRange::new([10, 107, 200, 1].into(), [10, 107, 200, 4].into()),
        lease_seconds: 600,
        ..Network::plain(
            network_name(),
            "eth1.107".parse().expect("a link"),
            "10.107.0.0/16".parse().expect("a subnet"),
        )
    };
    let profile = |name: &str, purpose, disk| Profile {
        name: name.parse().expect("a name"),
        kernel: Artifact {
            file: "vmlinuz".to_owned(),
            digest: token(0),
            size: 1,
        },
        initrds: Vec::new(),
        artifacts: BTreeMap::new(),
        arguments: Vec::new(),
        config: ConfigSource::Ignition("{}".into()),
        purpose,
        disk,
    };
    let disk = Some(DiskRule::Serial("SN-DISK".to_owned()));
    let nodes = (0..machines).map(|index| NodeSpec {
        name: format!("node-{index}").parse().expect("a name"),
        links: vec![NodeLink {
            macs: vec![mac(index)],
            network: network_name(),
            address: Ipv4Addr::from(0x0a6b_0a00 + u32::try_from(index).expect("few machines")),
            name: None,
            default_route: false,
        }],
        system: Vec::new(),
        uuid: Some(uuid(index)),
        serial: None,
        hostname: format!("node-{index}").parse().expect("a name"),
        profile: Some(
            if index % 4 == 3 { "live" } else { "install" }
                .parse()
                .expect("a name"),
        ),
        labels: BTreeMap::new(),
        rack: None,
        variables: BTreeMap::new(),
        loaders: BTreeMap::new(),
        disk: None,
    });
    SiteSpec::new(SiteParts {
        networks: vec![network],
        nodes: nodes.collect(),
        profiles: vec![
            profile("install", Purpose::Install, disk),
            profile("live", Purpose::Live, None),
        ],
        ..SiteParts::default()
    })
    .expect("the world's own site is sound")
}
