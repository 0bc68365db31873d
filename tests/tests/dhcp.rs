//! Real DHCP clients against the daemon, each in a namespace of its own: what they end up with is what counts.

use netboot::spec::Mode;
use tests::dhcp::{self, Bastion, address, mac};
use tests::netns::Netns;

/// A served namespace, and a client's namespace on the same cable whose card has this MAC address.
fn cable(client_mac: &str) -> (Netns, Netns) {
    let (server, client) = (Netns::new(), Netns::new());
    server.cable("eth0", &client, "eth0");
    server.ip("addr add 10.107.0.1/16 dev eth0");
    client.ip("link set eth0 down");
    client.ip(&format!("link set eth0 address {client_mac} up"));
    (server, client)
}

/// The output of a client that is given half a minute, with scratch directories of its own.
fn client(netns: &Netns, command: &str) -> String {
    let script = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /var/lib/dhcp /var/lib/dhcpcd && ({command}) 2>&1"
    );
    netns.output(
        "unshare",
        &["--mount", "--", "timeout", "30", "sh", "-c", &script],
    )
}

#[test]
fn dhclient_is_bound_to_the_reserved_address() {
    let (server, machine) = cable(&mac(1).to_string());
    let _bastion = Bastion::serving(&server, dhcp::site(dhcp::network(Mode::Reservation), 3));
    let said = client(
        &machine,
        "dhclient -1 -v eth0 && ip -4 addr show eth0 && hostname && ip route",
    );
    assert!(said.contains(&format!("bound to {}", address(1))), "{said}");
    assert!(said.contains(&format!("inet {}/16", address(1))), "{said}");
}

#[test]
fn udhcpc_is_bound_to_the_reserved_address() {
    let (server, machine) = cable(&mac(2).to_string());
    let _bastion = Bastion::serving(&server, dhcp::site(dhcp::network(Mode::Reservation), 3));
    let said = client(&machine, "busybox udhcpc -f -q -n -i eth0 -s /bin/true");
    assert!(
        said.contains(&format!("lease of {} obtained", address(2))),
        "{said}"
    );
}
