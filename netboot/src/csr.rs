//! May this node have the certificate it asks its cluster for? A request's facts and what the ledger expects, to a verdict.
//!
//! A kubelet gets two certificates. With the first, asked for by a credential that every joining machine shares, it becomes a
//! node; with the second, asked for by that node, others know its server. Whoever approves the first blindly lets anything on
//! the wire become any node, so it is given to a machine that we booted, between the release of its config and the moment it
//! is Ready, once. The second is renewed for as long as the node is a member.
//!
//! Nothing here denies: a denied request can't be taken back, and a person may know better. What isn't approved stays pending.
//!
//! Ugly facts: kubelets with an ECDSA key ask without "key encipherment" since Kubernetes 1.27 and with it before; a kubelet
//! renews its client certificate as `system:node:NAME`, which the cluster's own controller approves, so that is nobody's alarm;
//! network plugins on OKD's nodes ask as `system:node:NAME` for certificates of their own, of other signers.
//!
//! Sources: Kubernetes documentation, "Certificates and Certificate Signing Requests", section "Kubernetes signers";
//! kubernetes/kubernetes `pkg/apis/certificates/helpers.go`; openshift/cluster-machine-approver `README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::net::Timestamp;

/// Signs the certificate by which a kubelet is known to its API server.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs the certificate by which a kubelet's own server is known.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long after its config left a machine may take to ask for its client certificate, in seconds: six hours. An install
/// that writes a slow disk and boots twice takes one.
pub const JOIN_SECONDS_MAX: u64 = 6 * 3600;

const NODE_USER: &str = "system:node:";
const NODE_GROUP: &str = "system:nodes";
const EVERYBODY: &str = "system:authenticated";
/// Longest piece of a request's own text that a verdict repeats, in characters.
const SHOWN_CHARS_MAX: usize = 64;

/// What a certificate signing request says of itself, already parsed. All of it but the requestor, the name and the state is
/// the requestor's own claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrFacts {
    /// The object's name.
    pub name: String,
    /// `spec.signerName`.
    pub signer: String,
    /// `spec.username`, which the API server wrote.
    pub user: String,
    /// `spec.groups`, which the API server wrote.
    pub groups: Vec<String>,
    /// `spec.usages`.
    pub usages: Vec<String>,
    /// What is to be signed; `None` when it isn't one PKCS #10 request that every parser reads alike.
    pub request: Option<CsrRequest>,
    /// What was decided of it.
    pub state: CsrState,
}

/// What the PKCS #10 request (RFC 2986) asks to have signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CsrRequest {
    /// The subject's common names, in order; a kubelet's has one.
    pub common_names: Vec<String>,
    /// The subject's organizations, in order; a kubelet's has one.
    pub organizations: Vec<String>,
    /// Alternative names of type DNS.
    pub dns: Vec<String>,
    /// Alternative names of type IP.
    pub addresses: Vec<IpAddr>,
    /// Everything else it asks for, in words: other subject attributes, mail addresses, URIs, other extensions.
    pub others: Vec<String>,
}

/// What was decided of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrState {
    /// Nothing yet.
    Pending,
    /// Somebody approved it.
    Approved,
    /// Somebody denied it, or its signer failed it.
    Refused,
}

/// Which requests of a platform's nodes wait for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CsrPolicy {
    /// Who asks for a node's first client certificate; `None` where the platform approves those by itself.
    pub client: Option<Bootstrapper>,
    /// Serving certificates of kubelets wait for us.
    pub serving: bool,
}

/// The credential that joining machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrapper {
    /// A service account's token, as OKD's machine-config server hands out.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name there.
        name: String,
    },
    /// Any bootstrap token that is in this group, such as kubeadm's `system:bootstrappers:kubeadm:default-node-token`.
    BootstrapToken {
        /// The group, which begins with `system:bootstrappers:`.
        group: String,
    },
}

impl Bootstrapper {
    /// True for exactly this credential: no other user, and no group that it doesn't bring along.
    fn is(&self, user: &str, groups: &BTreeSet<&str>) -> bool {
        match self {
            Self::ServiceAccount { namespace, name } => {
                let of_namespace = format!("system:serviceaccounts:{namespace}");
                user == format!("system:serviceaccount:{namespace}:{name}")
                    && *groups
                        == BTreeSet::from(["system:serviceaccounts", &of_namespace, EVERYBODY])
            }
            Self::BootstrapToken { group } => {
                let id = user.strip_prefix("system:bootstrap:").unwrap_or_default();
                let ours = |group: &&str| {
                    *group == EVERYBODY
                        || *group == "system:bootstrappers"
                        || group.starts_with("system:bootstrappers:")
                };
                id.len() == 6
                    && id
                        .bytes()
                        .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
                    && groups.contains(group.as_str())
                    && groups.iter().all(ours)
            }
        }
    }
}

/// What the ledger expects of a cluster's nodes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Now.
    pub now: Timestamp,
    /// What waits for us on this platform.
    pub policy: CsrPolicy,
    /// The members by the name their cluster knows them by, a retired one left out.
    pub nodes: BTreeMap<String, ExpectedNode>,
}

/// What the ledger knows of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedNode {
    /// Its names in DNS, lower case; its serving certificate may bear no other.
    pub dns: Vec<String>,
    /// Its reserved addresses; its serving certificate may bear no other.
    pub addresses: Vec<IpAddr>,
    /// The cluster's phase admits it.
    pub admitted: bool,
    /// We served its boot, and its config left or it reported.
    pub booted: bool,
    /// When the config of its present attempt left.
    pub released: Option<Timestamp>,
    /// It was Ready in its cluster since then.
    pub ready: bool,
    /// The request by which it was given a client certificate since then.
    pub given: Option<String>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what we expect of this member; the name is the cluster's.
    Approve(String),
    /// It isn't ours to decide, and nothing is wrong with it.
    Leave(Leave),
    /// It stays pending, and a person should look.
    Alarm(Alarm),
}

/// Why a request is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Leave {
    /// Approved, denied or failed before.
    #[error("it was decided before")]
    Decided,
    /// Neither its signer nor its requestor nor its subject is a node's.
    #[error("it isn't for a node")]
    NotForNodes,
    /// A kubelet renews its own client certificate.
    #[error("a node renews its own client certificate, which the cluster's controller approves")]
    Renewal,
    /// The platform approves such requests by itself.
    #[error("this platform approves such requests by itself")]
    ByPlatform,
}

/// Why a request for a node's certificate is none that we expect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// Not one PKCS #10 request that every parser reads alike.
    #[error("what it asks to have signed can't be read")]
    Unreadable,
    /// A node's name or credential, but a signer that isn't for nodes.
    #[error("a node's certificate is asked of signer {0}")]
    WrongSigner(Shown),
    /// The subject isn't exactly one node's.
    #[error("its subject is {0} and not CN=system:node:NAME, O=system:nodes")]
    WrongSubject(Shown),
    /// More than a kubelet asks for.
    #[error("it asks for {0}, which no kubelet does")]
    Extra(Shown),
    /// Other usages than a kubelet's.
    #[error("its usages are {0}")]
    WrongUsages(Shown),
    /// Somebody who doesn't ask for this certificate.
    #[error("it is asked for by {0}")]
    WrongRequestor(Shown),
    /// No such member.
    #[error("{0} is no node of this cluster")]
    UnknownNode(Shown),
    /// Its turn has not come.
    #[error("the phase does not admit {0} yet")]
    NotAdmitted(Shown),
    /// Another machine must be asking.
    #[error("{0} was not booted from here")]
    NotBooted(Shown),
    /// The secrets by which it could ask have not left.
    #[error("the config of {0} has not left yet")]
    NotReleased(Shown),
    /// The node has its certificate: this is a replay, or a node that lost it.
    #[error("{0} has joined already")]
    Joined(Shown),
    /// It took too long.
    #[error("the config of {0} left more than {hours} hours ago", hours = JOIN_SECONDS_MAX / 3600)]
    WindowOver(Shown),
    /// One client certificate was given since it booted.
    #[error("{node} was given a client certificate by request {by} since it booted")]
    Second {
        /// Who.
        node: Shown,
        /// By which request.
        by: Shown,
    },
    /// A serving certificate for nobody.
    #[error("it names no server")]
    NoNames,
    /// A server's name or address that isn't this node's.
    #[error("{name} is no name or address of {node}")]
    WrongName {
        /// Whose certificate it is to be.
        node: Shown,
        /// The name.
        name: Shown,
    },
}

impl Alarm {
    /// The stable word in JSON and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable => "csr-unreadable",
            Self::WrongSigner(_) => "csr-wrong-signer",
            Self::WrongSubject(_) => "csr-wrong-subject",
            Self::Extra(_) => "csr-extra",
            Self::WrongUsages(_) => "csr-wrong-usages",
            Self::WrongRequestor(_) => "csr-wrong-requestor",
            Self::UnknownNode(_) => "csr-unknown-node",
            Self::NotAdmitted(_) => "csr-not-admitted",
            Self::NotBooted(_) => "csr-not-booted",
            Self::NotReleased(_) => "csr-not-released",
            Self::Joined(_) => "csr-joined-already",
            Self::WindowOver(_) => "csr-window-over",
            Self::Second { .. } => "csr-second",
            Self::NoNames => "csr-no-names",
            Self::WrongName { .. } => "csr-wrong-name",
        }
    }
}

/// Somebody else's text, cut and with its control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown(String);

impl Shown {
    fn new(text: &str) -> Self {
        let cut = text.chars().take(SHOWN_CHARS_MAX);
        let mut shown: String = cut.flat_map(char::escape_debug).collect();
        if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The two certificates of a kubelet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Client,
    Serving,
}

/// Judges one request. The order is the argument: what isn't ours, what no kubelet asks, who asks, for whom, and when.
#[must_use]
pub fn judge(csr: &CsrFacts, expected: &Expectation) -> Verdict {
    match admit(csr, expected) {
        Ok(node) => Verdict::Approve(node.to_owned()),
        Err(Refusal::Leave(why)) => Verdict::Leave(why),
        Err(Refusal::Alarm(why)) => Verdict::Alarm(why),
    }
}

enum Refusal {
    Leave(Leave),
    Alarm(Alarm),
}

impl From<Leave> for Refusal {
    fn from(why: Leave) -> Self {
        Self::Leave(why)
    }
}

impl From<Alarm> for Refusal {
    fn from(why: Alarm) -> Self {
        Self::Alarm(why)
    }
}

fn admit<'a>(csr: &'a CsrFacts, expected: &Expectation) -> Result<&'a str, Refusal> {
    if csr.state != CsrState::Pending {
        return Err(Leave::Decided.into());
    }
    let groups: BTreeSet<&str> = csr.groups.iter().map(String::as_str).collect();
    let kind = match csr.signer.as_str() {
        CLIENT_SIGNER => Kind::Client,
        SERVING_SIGNER => Kind::Serving,
        other if concerns_nodes(csr, &groups, &expected.policy) => {
            return Err(Alarm::WrongSigner(Shown::new(other)).into());
        }
        _ => return Err(Leave::NotForNodes.into()),
    };
    let request = csr.request.as_ref().ok_or(Alarm::Unreadable)?;
    let name = node_of(request)?;
    let user = csr.user.as_str();
    let is_the_node = user.strip_prefix(NODE_USER) == Some(name)
        && groups == BTreeSet::from([NODE_GROUP, EVERYBODY]);
    match (kind, &expected.policy) {
        (Kind::Client, _) if is_the_node => return Err(Leave::Renewal.into()),
        (Kind::Client, CsrPolicy { client: None, .. })
        | (Kind::Serving, CsrPolicy { serving: false, .. }) => {
            return Err(Leave::ByPlatform.into());
        }
        (
            Kind::Client,
            CsrPolicy {
                client: Some(bootstrapper),
                ..
            },
        ) if bootstrapper.is(user, &groups) => {}
        (Kind::Serving, CsrPolicy { serving: true, .. }) if is_the_node => {}
        (Kind::Client | Kind::Serving, _) => {
            return Err(Alarm::WrongRequestor(Shown::new(user)).into());
        }
    }
    usages_are_a_kubelets(kind, &csr.usages)?;
    let shown = || Shown::new(name);
    let node = expected.nodes.get(name);
    let node = node.ok_or_else(|| Alarm::UnknownNode(shown()))?;
    if !node.admitted {
        return Err(Alarm::NotAdmitted(shown()).into());
    }
    if !node.booted {
        return Err(Alarm::NotBooted(shown()).into());
    }
    match kind {
        Kind::Client => window_is_open(csr, name, node, expected.now)?,
        Kind::Serving => names_are_its_own(request, name, node)?,
    }
    Ok(name)
}

/// True when a node's identity is asked for, or the joining credential asks for any. What a node that has joined asks for
/// besides is its own business.
fn concerns_nodes(csr: &CsrFacts, groups: &BTreeSet<&str>, policy: &CsrPolicy) -> bool {
    let claims = csr.request.as_ref().is_some_and(|request| {
        let node = |name: &String| name.starts_with(NODE_USER);
        request.common_names.iter().any(node)
            || request.organizations.iter().any(|name| name == NODE_GROUP)
    });
    let bootstraps = policy
        .client
        .as_ref()
        .is_some_and(|bootstrapper| bootstrapper.is(&csr.user, groups));
    claims || bootstraps
}

/// The node that the subject names, if it names exactly one and asks for nothing besides.
fn node_of(request: &CsrRequest) -> Result<&str, Alarm> {
    let wrong = || {
        let names = request.common_names.iter().map(|name| format!("CN={name}"));
        let organizations = request.organizations.iter().map(|name| format!("O={name}"));
        let all: Vec<String> = names.chain(organizations).collect();
        Alarm::WrongSubject(Shown::new(&all.join(", ")))
    };
    let [name] = request.common_names.as_slice() else {
        return Err(wrong());
    };
    if request.organizations != [NODE_GROUP] {
        return Err(wrong());
    }
    if let Some(other) = request.others.first() {
        return Err(Alarm::Extra(Shown::new(other)));
    }
    match name.strip_prefix(NODE_USER) {
        Some(node) if !node.is_empty() => Ok(node),
        _ => Err(wrong()),
    }
}

fn usages_are_a_kubelets(kind: Kind, usages: &[String]) -> Result<(), Alarm> {
    let purpose = match kind {
        Kind::Client => "client auth",
        Kind::Serving => "server auth",
    };
    let wanted: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut kubelets = BTreeSet::from(["digital signature", purpose]);
    if wanted == kubelets {
        return Ok(());
    }
    kubelets.insert("key encipherment");
    if wanted == kubelets {
        return Ok(());
    }
    Err(Alarm::WrongUsages(Shown::new(&usages.join(", "))))
}

/// A client certificate: no alternative names, and only between the config's release and the first time the node is Ready.
fn window_is_open(
    csr: &CsrFacts,
    name: &str,
    node: &ExpectedNode,
    now: Timestamp,
) -> Result<(), Alarm> {
    let request = csr.request.iter();
    let names = request.flat_map(|request| {
        let addresses = request.addresses.iter().map(IpAddr::to_string);
        request.dns.iter().cloned().chain(addresses)
    });
    if let Some(name) = names.into_iter().next() {
        return Err(Alarm::Extra(Shown::new(&name)));
    }
    let released = node.released;
    let released = released.ok_or_else(|| Alarm::NotReleased(Shown::new(name)))?;
    if node.ready {
        return Err(Alarm::Joined(Shown::new(name)));
    }
    if now.millis_since(released) > JOIN_SECONDS_MAX * 1000 {
        return Err(Alarm::WindowOver(Shown::new(name)));
    }
    match &node.given {
        Some(by) if *by != csr.name => Err(Alarm::Second {
            node: Shown::new(name),
            by: Shown::new(by),
        }),
        _ => Ok(()),
    }
}

/// A serving certificate: at least one name, and none that isn't the node's (RFC 6125, 6.4.1: DNS names know no case).
fn names_are_its_own(request: &CsrRequest, name: &str, node: &ExpectedNode) -> Result<(), Alarm> {
    let foreign_name = request.dns.iter().find(|dns| {
        let own = |ours: &String| ours.eq_ignore_ascii_case(dns);
        !node.dns.iter().any(own)
    });
    let foreign_address = request
        .addresses
        .iter()
        .find(|address| !node.addresses.contains(address));
    let foreign = foreign_name
        .cloned()
        .or_else(|| foreign_address.map(IpAddr::to_string));
    if let Some(foreign) = foreign {
        return Err(Alarm::WrongName {
            node: Shown::new(name),
            name: Shown::new(&foreign),
        });
    }
    if request.dns.is_empty() && request.addresses.is_empty() {
        return Err(Alarm::NoNames);
    }
    Ok(())
}
