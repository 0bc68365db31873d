//! What a reply says: the lease, the boot file in its client's dialect, and what was asked for.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, MessageType};
use dhcproto::{Name, NameError};
use ipnet::Ipv4Net;

use super::answer::{Port, Question};
use super::options::{Header, Writer};
use super::pxe::{BootFile, NO_PROXY_DHCP, vendor_options};
use crate::loader::Client;
use crate::net::Destination;
use crate::spec::Mode;

impl Question<'_, '_> {
    /// Writes an offer or an acknowledgement; tells the first option that did not fit.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        message: MessageType,
        client: Option<Ipv4Addr>,
        yours: Option<Ipv4Addr>,
        file: Option<&BootFile>,
    ) -> Option<u8> {
        let header = Header {
            client,
            yours,
            next_server: file.map(|_| self.link.server),
            file: file.map(BootFile::bytes),
            broadcast: false,
        };
        let information = self.request.option(82).unwrap_or_default();
        let mut writer = Writer::new(out, self.request, &header, &information, self.link.mtu);
        writer.put(53, &DhcpOption::MessageType(message));
        writer.put(54, &DhcpOption::ServerIdentifier(self.server_id()));
        if yours.is_some() {
            let seconds = self.network.lease_seconds;
            writer.put(51, &DhcpOption::AddressLeaseTime(seconds));
            writer.put(58, &DhcpOption::Renewal(seconds / 2));
            writer.put(59, &DhcpOption::Rebinding(seconds / 8 * 7));
            writer.put(1, &DhcpOption::SubnetMask(self.network.subnet.mask()));
        }
        if let Some(file) = file {
            self.put_boot(&mut writer, file);
        }
        self.put_client_id(&mut writer);
        if self.network.mode != Mode::Proxy {
            self.put_wanted(&mut writer);
        }
        writer.finish()
    }

    /// RFC 6842, section 3: the server returns the client identifier, unaltered.
    pub(super) fn put_client_id(&self, writer: &mut Writer<'_>) {
        if let Some(id) = self.request.option(61).filter(|id| !id.is_empty()) {
            writer.put_raw(61, &id);
        }
    }

    fn put_boot(&self, writer: &mut Writer<'_>, file: &BootFile) {
        let proxied = self.network.mode == Mode::Proxy || self.heard.port == Port::BootServer;
        let vendor_class = self.request.option(60).unwrap_or_default();
        match self.client {
            Client::HttpBoot(_) => writer.put_raw(60, b"HTTPClient"),
            // A ProxyDHCP offer is known by this class, for iPXE too; from the server that gives the
            // address, iPXE needs no such sign.
            Client::Ipxe(_) if !proxied => writer.put_raw(175, &NO_PROXY_DHCP),
            Client::Pxe(_) | Client::Ipxe(_) if vendor_class.starts_with(b"PXEClient") => {
                writer.put_raw(60, b"PXEClient");
                writer.put_raw(43, &vendor_options(self.request));
            }
            Client::Pxe(_) | Client::Ipxe(_) | Client::System => {}
        }
        // RFC 4578, section 2.3: the machine's identifier goes back as it came.
        if let Some(id) = self.request.option(97).filter(|id| !id.is_empty()) {
            writer.put_raw(97, &id);
        }
        let mut name = file.bytes().to_vec();
        name.push(0);
        writer.put_raw(67, &name);
        let wanted = self.request.wanted();
        if wanted.is_empty() || wanted.contains(&66) {
            writer.put_raw(66, self.link.server.to_string().as_bytes());
        }
    }

    fn put_wanted(&self, writer: &mut Writer<'_>) {
        let wanted = self.request.wanted();
        // A client without a list gets what any client can use.
        let wanted = if wanted.is_empty() {
            &[3, 6, 12, 15, 28, 42]
        } else {
            wanted.as_ref()
        };
        for code in wanted.iter().copied() {
            if writer.has(code) || is_protocols(code) {
                continue;
            }
            if let Some(value) = self.network.options.get(&code) {
                writer.put_raw(code, value);
                continue;
            }
            self.put_known(writer, code);
        }
    }

    fn put_known(&self, writer: &mut Writer<'_>, code: u8) {
        let network = self.network;
        match code {
            1 => writer.put(1, &DhcpOption::SubnetMask(network.subnet.mask())),
            3 => {
                if let Some(router) = network.router.filter(|_| self.leads_out()) {
                    writer.put(3, &DhcpOption::Router(vec![router]));
                }
            }
            6 => {
                let servers = self.site.spec().dns_servers(network, self.link.server);
                if !servers.is_empty() {
                    writer.put(6, &DhcpOption::DomainNameServer(servers));
                }
            }
            12 => {
                if let Some(node) = self.node {
                    writer.put_raw(12, node.hostname.as_str().as_bytes());
                }
            }
            15 => {
                if let Some(domain) = &network.domain {
                    writer.put_raw(15, domain.as_str().as_bytes());
                }
            }
            26 => {
                if let Some(mtu) = network.mtu {
                    writer.put(26, &DhcpOption::InterfaceMtu(mtu));
                }
            }
            28 => writer.put(28, &DhcpOption::BroadcastAddr(network.subnet.broadcast())),
            42 => {
                let servers = self.site.spec().time_servers(network, self.link.server);
                if !servers.is_empty() {
                    writer.put(42, &DhcpOption::NtpServers(servers));
                }
            }
            119 if !network.search.is_empty() => {
                let names: Result<Vec<Name>, NameError> = network
                    .search
                    .iter()
                    .map(|name| Name::from_ascii(name.as_str()))
                    .collect();
                if let Ok(names) = names {
                    writer.put(119, &DhcpOption::DomainSearch(names));
                }
            }
            121 => {
                let routes = self.routes();
                if !routes.is_empty() {
                    writer.put(121, &DhcpOption::ClasslessStaticRoute(routes));
                }
            }
            _ => {}
        }
    }

    /// Whether this network gives the client its default route. A machine with links on several networks has one way
    /// out, and a default route from each of the others would lead its answers astray.
    ///
    /// Firmware behind a relay is told the router all the same: without it, it can't reach us, and it has one link.
    fn leads_out(&self) -> bool {
        let way_out = self.node.and_then(|node| self.site.spec().way_out(node));
        let here = way_out.is_none_or(|(link, _)| {
            link.network == self.network.name && link.macs.contains(&self.mac)
        });
        here || (self.network.relayed && self.client != Client::System)
    }

    /// RFC 3442: "If the DHCP server returns both a Classless Static Routes option and a Router option,
    /// the DHCP client MUST ignore the Router option." So the default route is one of them, where it is due. A system
    /// behind a relay that leaves by another network still gets the way to us.
    fn routes(&self) -> Vec<(Ipv4Net, Ipv4Addr)> {
        let network = self.network;
        let everywhere = Destination::everywhere();
        let leads_out = self.leads_out();
        let named = network.routes.iter().filter(|(to, _)| *to != everywhere);
        let mut routes: Vec<(Ipv4Net, Ipv4Addr)> =
            named.map(|(to, via)| (to.prefix(), *via)).collect();
        match network.gateway() {
            Some(gateway) if leads_out => {
                // Option 3 says as much to a client that needs no other route.
                let said = routes.is_empty() && network.router == Some(gateway);
                let default = (everywhere.prefix(), gateway);
                routes.extend(Some(default).filter(|_| !said));
            }
            Some(gateway) if network.relayed => {
                routes.push((Ipv4Net::from(self.link.server), gateway));
            }
            Some(_) | None => {}
        }
        routes
    }
}

/// Options whose value follows from the exchange itself; the site's raw options may not replace them.
fn is_protocols(code: u8) -> bool {
    matches!(code, 0 | 50..=55 | 57..=59 | 61 | 82 | 255)
}
