//! One round over a cluster's certificate signing requests: each pending one is judged, the expected ones are approved.
//!
//! An approval is written over the very version of the request that was judged, so one that was decided by others in the
//! meantime is refused by the API with 409 and seen as decided in the next round. Nothing is ever denied or deleted.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Request as Build;
use kube::core::params::PostParams;
use netboot::csr::{CLIENT_SIGNER, CsrFacts, CsrState, Expectation, Leave, Verdict, judge};
use netboot::net::Timestamp;
use tokio::time::timeout;

use super::access::KubeAccess;
use super::look::list;
use super::pkcs10;
use super::wire::{Session, Trouble, built};

/// A whole round.
const ROUND_TIME: Duration = Duration::from_secs(20);
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// Requests of one page, and pages: whoever floods the API with more has denied nobody but those that sort behind them.
const PAGE: u32 = 100;
const PAGES_MAX: usize = 50;

/// What became of one pending request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrOutcome {
    /// The request's name.
    pub csr: String,
    /// Who asked, as the API server knows them.
    pub user: String,
    /// What it is worth.
    pub verdict: Verdict,
    /// For one that is to be approved: why that failed. It is tried again in the next round.
    pub failed: Option<String>,
}

/// Judges every pending request and approves what is expected, oldest first. What was decided before is left out.
///
/// May be dropped at any moment: an approval either reached the API or is made in the next round.
///
/// # Errors
/// [`Trouble`] when no control plane listed the requests; those already approved stay so.
pub async fn round(
    access: &KubeAccess,
    mut expected: Expectation,
) -> Result<Vec<CsrOutcome>, Trouble> {
    let mut outcomes = Vec::new();
    let done = timeout(ROUND_TIME, judge_all(access, &mut expected, &mut outcomes)).await;
    match done {
        Ok(Err(trouble)) => Err(trouble),
        // The rest comes next time.
        Ok(Ok(())) | Err(_) => Ok(outcomes),
    }
}

async fn judge_all(
    access: &KubeAccess,
    expected: &mut Expectation,
    outcomes: &mut Vec<CsrOutcome>,
) -> Result<(), Trouble> {
    let (mut session, mut requests, whole) = fetch(access).await?;
    if !whole {
        let shown = requests.len();
        tracing::warn!(
            requests = shown,
            "there are more certificate signing requests than are read; delete the spurious ones"
        );
    }
    requests.sort_by_cached_key(|csr| (created(csr), csr.metadata.name.clone()));
    let facts: Vec<CsrFacts> = requests.iter().map(facts).collect();
    for (csr, facts) in requests.iter().zip(&facts) {
        if facts.state == CsrState::Approved {
            given(expected, facts, created(csr));
        }
    }
    for (csr, facts) in requests.into_iter().zip(facts) {
        let verdict = judge(&facts, expected);
        if verdict == Verdict::Leave(Leave::Decided) {
            continue;
        }
        let made = created(&csr);
        let failed = match verdict {
            // Among those that were not read may be one that the node was given already.
            Verdict::Approve(_) if !whole && facts.signer == CLIENT_SIGNER => {
                Some("there are more requests than are read; delete the spurious ones".to_owned())
            }
            Verdict::Approve(_) => {
                let approved = approve(&mut session, csr, expected.now).await;
                approved.err().map(|trouble| trouble.to_string())
            }
            Verdict::Leave(_) | Verdict::Alarm(_) => None,
        };
        if matches!(verdict, Verdict::Approve(_)) && failed.is_none() {
            given(expected, &facts, made);
        }
        outcomes.push(CsrOutcome {
            csr: facts.name,
            user: facts.user,
            verdict,
            failed,
        });
    }
    Ok(())
}

/// The requests as the first control plane that answers lists them.
async fn fetch(
    access: &KubeAccess,
) -> Result<(Session, Vec<CertificateSigningRequest>, bool), Trouble> {
    let mut last = Trouble::nobody();
    for server in &access.servers {
        let listed = async {
            let mut session = Session::open(server, &access.tls).await?;
            let (requests, whole) = list(&mut session, PATH, PAGE, PAGES_MAX).await?;
            Ok((session, requests, whole))
        };
        match listed.await {
            Ok(listed) => return Ok(listed),
            Err(trouble) => last = trouble,
        }
    }
    Err(last)
}

/// Remembers that a node has had its client certificate since it booted, whoever approved it. Renewals, which a node asks
/// for itself, and what is older than the boot don't count.
fn given(expected: &mut Expectation, facts: &CsrFacts, created: Timestamp) {
    let request = facts.request.as_ref();
    let name = request.and_then(|request| request.common_names.first());
    let name = name.and_then(|name| name.strip_prefix("system:node:"));
    if facts.signer != CLIENT_SIGNER || facts.user.starts_with("system:node:") {
        return;
    }
    let Some(node) = name.and_then(|name| expected.nodes.get_mut(name)) else {
        return;
    };
    if node.released.is_some_and(|released| created >= released) {
        node.given.get_or_insert_with(|| facts.name.clone());
    }
}

/// When the API server took it, in its own time; 0 when it doesn't say.
fn created(csr: &CertificateSigningRequest) -> Timestamp {
    let created = csr.metadata.creation_timestamp.as_ref();
    let millis = created.map_or(0, |time| time.0.as_millisecond());
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn facts(csr: &CertificateSigningRequest) -> CsrFacts {
    let status = csr.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let is = |kind: &str| {
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == kind)
    };
    let state = if is("Denied") || is("Failed") {
        CsrState::Refused
    } else if is("Approved") || status.is_some_and(|status| status.certificate.is_some()) {
        CsrState::Approved
    } else {
        CsrState::Pending
    };
    CsrFacts {
        name: csr.metadata.name.clone().unwrap_or_default(),
        signer: csr.spec.signer_name.clone(),
        user: csr.spec.username.clone().unwrap_or_default(),
        groups: csr.spec.groups.clone().unwrap_or_default(),
        usages: csr.spec.usages.clone().unwrap_or_default(),
        request: pkcs10::parse(&csr.spec.request.0),
        state,
    }
}

async fn approve(
    session: &mut Session,
    mut csr: CertificateSigningRequest,
    now: Timestamp,
) -> Result<(), Trouble> {
    let at = i64::try_from(now.millis()).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(at).ok().map(Time);
    let status = csr.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: "Approved".to_owned(),
        status: "True".to_owned(),
        reason: Some("ReveilleApproved".to_owned()),
        message: Some(
            "This machine was booted from the bastion and asks for what is its own.".to_owned(),
        ),
        last_update_time: at,
        last_transition_time: None,
    });
    let name = csr.metadata.name.clone().unwrap_or_default();
    let body = serde_json::to_vec(&csr).map_err(|error| Trouble::unsaid(&error))?;
    let request =
        Build::new(PATH).replace_subresource("approval", &name, &PostParams::default(), body);
    session.ask(built(request)?).await?;
    Ok(())
}
