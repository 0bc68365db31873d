//! What one DHCP message is answered: RFC 2131's states, each with the rule it obeys.
//!
//! A machine is known by its MAC address alone: firmware, iPXE, initramfs and system each send
//! another client identifier from the same card, and must get the same address.
//!
//! An address is "ours" when the inventory reserves it or the pool lends it. Another server on the
//! wire may have given out any other address, and its clients' requests are broadcast too: so a NAK
//! goes only to a machine of ours that wants an address of ours which it may not have, that speaks to
//! us alone, or that came from another subnet.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, MessageType};
use uuid::Uuid;

use super::options::{Header, Writer};
use super::packet::{Ask, Request};
use super::pxe::{BootFile, boot_file, client_of, is_strangers, uuid_of};
use crate::boot::{BootDecision, BootRequest, Decision, Rule};
use crate::event::{Event, LeaseAsked};
use crate::loader::Client;
use crate::net::{LinkName, MacAddress, Timestamp};
use crate::node::NodeSpec;
use crate::site::Site;
use crate::spec::{Mode, Network};

/// The link a message was heard on.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkContext {
    /// Its name, which the site's networks refer to.
    pub name: LinkName,
    /// Our address on it: server identifier, next server and host of the boot URLs.
    pub server: Ipv4Addr,
    /// The TCP port of the boot URLs there.
    pub http_port: u16,
    /// What a packet on it may measure.
    pub mtu: u16,
}

impl LinkContext {
    /// The bastion's boot HTTP on this link: `http://10.107.0.1:8080`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}:{}", self.server, self.http_port)
    }
}

/// The port a message was heard on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 67.
    Server,
    /// 4011, where PXE firmware asks for its boot file alone.
    BootServer,
}

/// What is known of a message beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The port.
    pub port: Port,
    /// It was sent to our own address, not to everybody.
    pub unicast: bool,
    /// Loaders that this machine was sent since it last asked as iPXE.
    pub chainloads: u8,
}

/// The types of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Offer,
    Ack,
    Nak,
}

/// Where a reply goes (RFC 2131, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To a relay agent, on its port 67.
    Relay(Ipv4Addr),
    /// To an address the client already bears, on port 68.
    Client(Ipv4Addr),
    /// To a station that does not answer ARP yet: a frame to its MAC address.
    Station(MacAddress, Ipv4Addr),
    /// To everybody on the link, on port 68.
    Broadcast,
    /// To the address and port that the message came from.
    Sender,
}

/// A reply; its bytes are in the buffer that was handed in.
#[derive(Clone, Debug)]
pub struct Reply {
    pub kind: Kind,
    pub destination: Destination,
    /// The address given or confirmed.
    pub address: Option<Ipv4Addr>,
    /// The rule that chose what to boot, where something was asked for.
    pub rule: Option<Rule>,
    /// The reply sends the machine a loader and will be believed: it counts against a chain loop.
    pub chainloads: bool,
    /// A lease that must be on disk before this reply leaves.
    pub lease: Option<LeaseAsked>,
    /// The first option that did not fit the client's size limit.
    pub omitted: Option<u8>,
}

/// Why a well-formed message gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    NoNetwork,
    NetworkOff,
    NotListed,
    OtherNetwork,
    PoolExhausted,
    OtherServer,
    OtherServersClient,
    NoAddressNamed,
    NothingToBoot,
    ProxyOnly,
}

impl Ignored {
    /// The reason as a label of a counter and a word of the ledger.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoNetwork => "no_network",
            Self::NetworkOff => "network_off",
            Self::NotListed => "not_listed",
            Self::OtherNetwork => "other_network",
            Self::PoolExhausted => "pool_exhausted",
            Self::OtherServer => "other_server",
            Self::OtherServersClient => "other_servers_client",
            Self::NoAddressNamed => "no_address_named",
            Self::NothingToBoot => "nothing_to_boot",
            Self::ProxyOnly => "proxy_only",
        }
    }
}

/// What is done about a message.
#[derive(Clone, Debug)]
pub enum Verdict {
    Reply(Reply),
    Ignore(Ignored),
    /// DHCPDECLINE: the address is in use by another machine.
    Declined(Ipv4Addr, Option<Event>),
    /// DHCPRELEASE.
    Released(Ipv4Addr, Option<Event>),
}

/// A verdict, and whom it is about.
#[derive(Clone, Debug)]
pub struct Answer<'s> {
    pub verdict: Verdict,
    pub mac: MacAddress,
    pub uuid: Option<Uuid>,
    pub client: Client,
    pub network: Option<&'s Arc<Network>>,
    /// The listed machine.
    pub node: Option<&'s Arc<NodeSpec>>,
}

/// Answers one message; a reply's bytes are left in `out`.
#[must_use]
pub fn answer<'s>(
    site: &'s Site,
    link: &LinkContext,
    request: &Request<'_>,
    heard: Heard,
    now: Timestamp,
    out: &mut Vec<u8>,
) -> Answer<'s> {
    let mac = request.hardware_address();
    let node = site.spec().node_by_mac(mac);
    let network = network_of(site, link, request);
    let client = client_of(request);
    let uuid = uuid_of(request);
    // A relay sends by unicast what its client sent to everybody.
    let unicast = heard.unicast && request.relay_address().is_unspecified();
    let heard = Heard { unicast, ..heard };
    let verdict = match network {
        None => Verdict::Ignore(Ignored::NoNetwork),
        Some(network) => {
            let question = Question {
                site,
                link,
                network,
                node,
                request,
                heard,
                mac,
                client,
                uuid,
                now,
            };
            match (network.mode, heard.port) {
                (Mode::Off, _) => Verdict::Ignore(Ignored::NetworkOff),
                (_, Port::BootServer) => question.boot_server(out),
                (Mode::Proxy, Port::Server) => question.proxy(out),
                (Mode::Reservation | Mode::Pool, Port::Server) => question.server(out),
            }
        }
    };
    Answer {
        verdict,
        mac,
        uuid,
        client,
        network,
        node,
    }
}

/// The network a client is on: behind its relay, else the link's own.
fn network_of<'s>(
    site: &'s Site,
    link: &LinkContext,
    request: &Request<'_>,
) -> Option<&'s Arc<Network>> {
    let relay = request.relay_address();
    let here = |network: &&Arc<Network>| network.link == link.name;
    if !relay.is_unspecified() {
        // RFC 3527: the relay names the client's subnet where its own address is in another one.
        let subnet = request.relay_suboption(5).unwrap_or(relay);
        return site.spec().network_behind(subnet).filter(here);
    }
    // A client behind a relay renews by unicast, past its relay: its own address tells its network.
    let client = request.client_address();
    if !client.is_unspecified()
        && let Some(network) = site.spec().network_behind(client).filter(here)
    {
        return Some(network);
    }
    site.spec().network_on(&link.name, None)
}

/// How the machine comes by an address here.
enum Claim {
    Reserved(Ipv4Addr),
    Pool,
    None(Ignored),
}

/// One message with all that bears on it.
pub(super) struct Question<'s, 'q> {
    pub(super) site: &'s Site,
    pub(super) link: &'q LinkContext,
    pub(super) network: &'s Arc<Network>,
    pub(super) node: Option<&'s Arc<NodeSpec>>,
    pub(super) request: &'q Request<'q>,
    pub(super) heard: Heard,
    pub(super) mac: MacAddress,
    pub(super) client: Client,
    pub(super) uuid: Option<Uuid>,
    pub(super) now: Timestamp,
}

impl Question<'_, '_> {
    fn server(&self, out: &mut Vec<u8>) -> Verdict {
        let claim = self.claim();
        match self.request.ask() {
            Ask::Discover => self.discover(&claim, out),
            Ask::Request => self.requested(&claim, out),
            Ask::Inform => self.inform(&claim, out),
            Ask::Decline => self.decline(&claim),
            Ask::Release => self.release(&claim),
        }
    }

    fn claim(&self) -> Claim {
        match (self.node, self.network.mode) {
            (Some(node), _) => match node.link_on(self.mac, &self.network.name) {
                Some(link) => Claim::Reserved(link.address),
                None => Claim::None(Ignored::OtherNetwork),
            },
            (None, Mode::Pool) => Claim::Pool,
            (None, _) => Claim::None(Ignored::NotListed),
        }
    }

    fn discover(&self, claim: &Claim, out: &mut Vec<u8>) -> Verdict {
        let wanted = self.request.requested();
        match claim {
            Claim::Reserved(address) => self.give(Kind::Offer, *address, None, out),
            Claim::None(reason) => Verdict::Ignore(*reason),
            Claim::Pool => {
                match self
                    .site
                    .address_to_lend(self.network, self.mac, wanted, self.now)
                {
                    Some(address) => self.give(Kind::Offer, address, None, out),
                    None => Verdict::Ignore(Ignored::PoolExhausted),
                }
            }
        }
    }

    fn requested(&self, claim: &Claim, out: &mut Vec<u8>) -> Verdict {
        if let Claim::None(reason) = claim {
            return Verdict::Ignore(*reason);
        }
        if let Some(server) = self.request.server() {
            // RFC 2131, section 4.3.2: "If the DHCPREQUEST message contains a 'server identifier'
            // option, the message is in response to a DHCPOFFER message." One that names another
            // server tells us that our offer was declined.
            if server != self.server_id() {
                return Verdict::Ignore(Ignored::OtherServer);
            }
            let Some(address) = self.request.requested() else {
                return Verdict::Ignore(Ignored::NoAddressNamed);
            };
            return match claim {
                Claim::Reserved(reserved) if address == *reserved => {
                    self.give(Kind::Ack, address, None, out)
                }
                Claim::Pool if self.may_lend(address) => self.lend(address, out),
                Claim::Reserved(_) | Claim::Pool | Claim::None(_) => self.nak(out),
            };
        }
        // RFC 2131, section 4.3.2, INIT-REBOOT: "'server identifier' MUST NOT be filled in,
        // 'requested IP address' option MUST be filled in"; RENEWING and REBINDING have the address
        // in 'ciaddr' instead.
        let ciaddr = self.request.client_address();
        let address = match self.request.requested() {
            Some(address) => address,
            None if !ciaddr.is_unspecified() => ciaddr,
            None => return Verdict::Ignore(Ignored::NoAddressNamed),
        };
        let recorded = || self.site.lease_of(self.network, self.mac);
        match claim {
            Claim::Reserved(reserved) if address == *reserved => {
                self.give(Kind::Ack, address, None, out)
            }
            Claim::Pool
                if (self.heard.unicast || recorded() == Some(address))
                    && self.may_lend(address) =>
            {
                self.lend(address, out)
            }
            // RFC 2131, section 4.3.2: "If the DHCP server has no record of this client, then it
            // MUST remain silent".
            Claim::Pool if !self.heard.unicast && recorded().is_none() => {
                Verdict::Ignore(Ignored::OtherServersClient)
            }
            Claim::Reserved(_) | Claim::Pool | Claim::None(_) => {
                let elsewhere = !self.network.subnet.contains(address);
                if self.heard.unicast || elsewhere || self.is_ours(address) {
                    self.nak(out)
                } else {
                    Verdict::Ignore(Ignored::OtherServersClient)
                }
            }
        }
    }

    /// RFC 2131, section 4.3.5: the client has an address from elsewhere and wants the rest; the
    /// answer goes to that address and says nothing about a lease.
    fn inform(&self, claim: &Claim, out: &mut Vec<u8>) -> Verdict {
        let address = self.request.client_address();
        if !self.network.subnet.has_station(address) {
            return Verdict::Ignore(Ignored::NoAddressNamed);
        }
        if let Claim::None(reason) = claim {
            return Verdict::Ignore(*reason);
        }
        let decision = self.decide();
        let (rule, file) = self.boot(decision.as_ref());
        let omitted = self.write(out, MessageType::Ack, Some(address), None, file.as_ref());
        Verdict::Reply(Reply {
            kind: Kind::Ack,
            destination: Destination::Client(address),
            address: None,
            rule,
            chainloads: false,
            lease: None,
            omitted,
        })
    }

    fn decline(&self, claim: &Claim) -> Verdict {
        let Some(address) = self.request.requested() else {
            return Verdict::Ignore(Ignored::NoAddressNamed);
        };
        if self
            .request
            .server()
            .is_some_and(|server| server != self.server_id())
        {
            return Verdict::Ignore(Ignored::OtherServer);
        }
        let mac = self.mac;
        match claim {
            Claim::Reserved(reserved) if address == *reserved => Verdict::Declined(address, None),
            Claim::Pool if self.is_ours(address) => {
                Verdict::Declined(address, Some(Event::AddressDeclined { address, mac }))
            }
            Claim::None(reason) => Verdict::Ignore(*reason),
            Claim::Reserved(_) | Claim::Pool => Verdict::Ignore(Ignored::OtherServersClient),
        }
    }

    fn release(&self, claim: &Claim) -> Verdict {
        let address = self.request.client_address();
        if self
            .request
            .server()
            .is_some_and(|server| server != self.server_id())
        {
            return Verdict::Ignore(Ignored::OtherServer);
        }
        let mac = self.mac;
        match claim {
            Claim::Reserved(reserved) if address == *reserved => Verdict::Released(address, None),
            Claim::Pool if self.site.lease_of(self.network, mac) == Some(address) => {
                Verdict::Released(address, Some(Event::LeaseReleased { address, mac }))
            }
            Claim::None(reason) => Verdict::Ignore(*reason),
            Claim::Reserved(_) | Claim::Pool => Verdict::Ignore(Ignored::OtherServersClient),
        }
    }

    /// Beside another server: an offer without an address, that says only what to boot.
    fn proxy(&self, out: &mut Vec<u8>) -> Verdict {
        if self.request.ask() != Ask::Discover {
            return Verdict::Ignore(Ignored::ProxyOnly);
        }
        let relay = self.request.relay_address();
        let destination = if relay.is_unspecified() {
            // There is no address yet that a unicast packet could bear.
            Destination::Broadcast
        } else {
            Destination::Relay(relay)
        };
        self.boot_only(Kind::Offer, MessageType::Offer, destination, out)
    }

    /// PXE 2.1, section 2.2.5: the client has its address and asks the boot server's port for the rest.
    fn boot_server(&self, out: &mut Vec<u8>) -> Verdict {
        match self.request.ask() {
            Ask::Discover | Ask::Request | Ask::Inform => {
                self.boot_only(Kind::Ack, MessageType::Ack, Destination::Sender, out)
            }
            Ask::Decline | Ask::Release => Verdict::Ignore(Ignored::ProxyOnly),
        }
    }

    fn boot_only(
        &self,
        kind: Kind,
        message: MessageType,
        destination: Destination,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let Some(decision) = self.decide() else {
            return Verdict::Ignore(Ignored::NothingToBoot);
        };
        if is_strangers(&decision) {
            return Verdict::Ignore(Ignored::NotListed);
        }
        let (rule, Some(file)) = self.boot(Some(&decision)) else {
            return Verdict::Ignore(Ignored::NothingToBoot);
        };
        let client = self.request.client_address();
        let client = Some(client).filter(|_| kind == Kind::Ack);
        let omitted = self.write(out, message, client, None, Some(&file));
        Verdict::Reply(Reply {
            kind,
            destination,
            address: None,
            rule,
            chainloads: is_chainload(&decision),
            lease: None,
            omitted,
        })
    }

    fn lend(&self, address: Ipv4Addr, out: &mut Vec<u8>) -> Verdict {
        let lease = LeaseAsked {
            mac: self.mac,
            network: self.network.name.clone(),
            address,
        };
        self.give(Kind::Ack, address, Some(lease), out)
    }

    fn give(
        &self,
        kind: Kind,
        address: Ipv4Addr,
        lease: Option<LeaseAsked>,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let message = match kind {
            Kind::Offer => MessageType::Offer,
            Kind::Ack | Kind::Nak => MessageType::Ack,
        };
        let decision = self.decide();
        let (rule, file) = self.boot(decision.as_ref());
        let ciaddr = self.request.client_address();
        let confirmed = kind == Kind::Ack && ciaddr == address;
        // RFC 2131, table 3: 'ciaddr' is 0 in an offer, and copied into an acknowledgement.
        let client = confirmed.then_some(ciaddr);
        let omitted = self.write(out, message, client, Some(address), file.as_ref());
        Verdict::Reply(Reply {
            kind,
            destination: self.destination(address, confirmed),
            address: Some(address),
            rule,
            chainloads: kind == Kind::Ack && decision.as_ref().is_some_and(is_chainload),
            lease,
            omitted,
        })
    }

    /// RFC 2131, section 4.1: "If the 'giaddr' field in a DHCP message from a client is non-zero, the
    /// server sends any return messages to the 'DHCP server' port on the BOOTP relay agent [...] If
    /// 'giaddr' is zero and 'ciaddr' is nonzero, then the server unicasts [...] to the address in
    /// 'ciaddr'. If 'giaddr' is zero and 'ciaddr' is zero, and the broadcast bit is set, then the
    /// server broadcasts [...] If the broadcast bit is not set [...] then the server unicasts [...]
    /// to the client's hardware address and 'yiaddr' address."
    fn destination(&self, address: Ipv4Addr, confirmed: bool) -> Destination {
        let relay = self.request.relay_address();
        if !relay.is_unspecified() {
            Destination::Relay(relay)
        } else if confirmed {
            Destination::Client(address)
        } else if self.request.wants_broadcast() {
            Destination::Broadcast
        } else {
            Destination::Station(self.mac, address)
        }
    }

    /// RFC 2131, section 4.3.2: a NAK is broadcast, because the client's address is what is wrong;
    /// through a relay it asks the relay to broadcast.
    fn nak(&self, out: &mut Vec<u8>) -> Verdict {
        let relay = self.request.relay_address();
        let relayed = !relay.is_unspecified();
        let header = Header {
            broadcast: relayed,
            ..Header::default()
        };
        let information = self.request.option(82).unwrap_or_default();
        let mut writer = Writer::new(out, self.request, &header, &information, self.link.mtu);
        writer.put(53, &DhcpOption::MessageType(MessageType::Nak));
        writer.put(54, &DhcpOption::ServerIdentifier(self.server_id()));
        self.put_client_id(&mut writer);
        let omitted = writer.finish();
        Verdict::Reply(Reply {
            kind: Kind::Nak,
            destination: if relayed {
                Destination::Relay(relay)
            } else {
                Destination::Broadcast
            },
            address: None,
            rule: None,
            chainloads: false,
            lease: None,
            omitted,
        })
    }

    /// RFC 5107: a relay may ask that clients take it for their server, so that renewals pass it too.
    pub(super) fn server_id(&self) -> Ipv4Addr {
        let relayed = !self.request.relay_address().is_unspecified();
        let instead = relayed.then(|| self.request.relay_suboption(11)).flatten();
        instead.unwrap_or(self.link.server)
    }

    fn may_lend(&self, address: Ipv4Addr) -> bool {
        self.site
            .may_lend(self.network, self.mac, address, self.now)
    }

    /// True for addresses that no other server should be giving out.
    fn is_ours(&self, address: Ipv4Addr) -> bool {
        let lent = self.network.mode == Mode::Pool
            && self
                .network
                .range
                .is_some_and(|range| range.contains(address));
        lent || self.site.spec().node_by_address(address).is_some()
    }

    fn decide(&self) -> Option<Decision<'_>> {
        if self.client == Client::System {
            return None;
        }
        let request = BootRequest {
            mac: self.mac,
            client: self.client,
            network: &self.network.name,
            uuid: self.uuid,
            serial: None,
            chainloads: self.heard.chainloads,
        };
        Some(self.site.decide(&request, self.now))
    }

    fn boot(&self, decision: Option<&Decision<'_>>) -> (Option<Rule>, Option<BootFile>) {
        let Some(decision) = decision else {
            return (None, None);
        };
        let file = boot_file(decision, self.client, self.mac, self.link);
        (Some(decision.rule), file)
    }
}

fn is_chainload(decision: &Decision<'_>) -> bool {
    matches!(decision.answer, BootDecision::Chainload(_))
}
