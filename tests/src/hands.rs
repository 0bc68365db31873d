//! The daemon's hands on a host's network, in a namespace: read it, change it, and hold it against the model.

use daemon::host::kernel::{Failed, Kernel};
use netboot::host::{HostState, LinkState, Operation, PresentKind};
use netboot::link::{LinkKind, Route};
use netboot::net::LinkName;

use crate::netns::Netns;

pub fn name(text: &str) -> LinkName {
    text.parse().expect("a link's name")
}

/// Runs something of the daemon's inside the namespace, on a runtime of its own.
pub fn inside<T: Send + 'static>(
    netns: &Netns,
    work: impl AsyncFnOnce(Kernel) -> T + Send + 'static,
) -> T {
    netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let kernel = Kernel::open().await.expect("a kernel that can be read");
            work(kernel).await
        })
    })
}

pub fn read(netns: &Netns) -> HostState {
    inside(netns, async |kernel: Kernel| kernel.read().await).expect("the kernel can be read")
}

pub fn carry_out(netns: &Netns, operation: Operation) -> Result<(), Failed> {
    inside(netns, async move |kernel: Kernel| {
        kernel.carry_out(&operation).await
    })
}

/// Carries it out, and holds the kernel against what the model says of it.
pub fn proven(netns: &Netns, operation: &Operation) -> HostState {
    let before = read(netns);
    let mut foretold = before.clone();
    let in_model = foretold.apply(operation);
    let done = carry_out(netns, operation.clone());
    let after = read(netns);
    assert_eq!(
        in_model.is_ok(),
        done.is_ok(),
        "{operation}: {in_model:?} {done:?}"
    );
    for (name, link) in &mut foretold.links {
        let Some(real) = after.links.get(name) else {
            continue;
        };
        // The kernel's choices: the number of a new link and its MAC; a bridge's MTU, which follows its ports until
        // somebody sets it; the MTU from before it joined, which a freed port gets back from its bond; and the MACs
        // that bridges, bonds and their ports take from each other.
        let is_new = !before.links.contains_key(name);
        let is_bridge = matches!(link.kind, PresentKind::Known(LinkKind::Bridge { .. }));
        if is_new && link.index == 0 {
            link.index = real.index;
        }
        if !is_new || link.mac.is_none() {
            link.mac = real.mac;
        }
        let is_freed = link.master.is_none()
            && before
                .links
                .get(name)
                .is_some_and(|link| link.master.is_some());
        if is_freed || is_bridge && operation.link() != Some(name) {
            link.mtu = real.mtu;
        }
    }
    assert_eq!(after, foretold, "{operation}");
    after
}

pub fn link(state: &HostState, of: &str) -> LinkState {
    state
        .links
        .get(&name(of))
        .cloned()
        .unwrap_or_else(|| panic!("there is {of}: {state:#?}"))
}

pub fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

pub fn add_link(link: &str, kind: LinkKind) -> Operation {
    Operation::AddLink {
        link: name(link),
        kind,
        index: None,
        mac: None,
    }
}

pub fn bridge(stp: bool) -> LinkKind {
    LinkKind::Bridge {
        ports: Vec::new(),
        stp,
    }
}

pub fn up(link: &str) -> Operation {
    Operation::SetUp {
        link: name(link),
        up: true,
    }
}

pub fn down(link: &str) -> Operation {
    Operation::SetUp {
        link: name(link),
        up: false,
    }
}

pub fn join(link: &str, master: &str) -> Operation {
    Operation::SetMaster {
        link: name(link),
        master: Some(name(master)),
    }
}

pub fn free(link: &str) -> Operation {
    Operation::SetMaster {
        link: name(link),
        master: None,
    }
}

pub fn address(link: &str, address: &str) -> Operation {
    Operation::AddAddress {
        link: name(link),
        address: net(address),
    }
}

pub fn no_address(link: &str, address: &str) -> Operation {
    Operation::RemoveAddress {
        link: name(link),
        address: net(address),
    }
}

pub fn a_route(
    to: &str,
    via: Option<&str>,
    source: Option<&str>,
    metric: u32,
    table: u32,
) -> Route {
    let ip = |text: &str| text.parse().expect("an address");
    Route {
        to: net(to),
        via: via.map(ip),
        source: source.map(ip),
        metric,
        table,
    }
}

pub fn route(link: &str, route: Route) -> Operation {
    Operation::AddRoute {
        link: name(link),
        route,
    }
}

pub fn no_route(link: &str, route: Route) -> Operation {
    Operation::RemoveRoute {
        link: name(link),
        route,
    }
}

/// A namespace with two cables, `eth1` and `eth2`, down, and a macvlan that others made.
pub fn host() -> Netns {
    let netns = Netns::new();
    for link in ["eth1", "eth2"] {
        netns.ip(&format!("link add {link} type veth peer name {link}far"));
        netns.ip(&format!("link set {link}far up"));
        netns.sysctl(&format!("ipv6/conf/{link}/addr_gen_mode"), "1");
    }
    netns.ip("link add m0 link eth2far type macvlan");
    netns
}
