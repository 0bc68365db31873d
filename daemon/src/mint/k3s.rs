//! The secrets of a new k3s cluster, and its admin's kubeconfig.

use std::time::Duration;

use ignition::platform::k3s::Secrets;
use ignition::secret::Secret;
use netboot::net::Timestamp;
use rcgen::DnType;

use super::{Key, MintError, name, symbols};

const DAY: Duration = Duration::from_secs(86_400);
/// Authorities live as long as those that k3s makes for itself: ten years.
const AUTHORITY_DAYS: u32 = 3652;
/// The admin's certificate lives a year and is made anew whenever a kubeconfig is asked for.
const ADMIN_DAYS: u32 = 365;
/// Letters and digits of a password.
const PASSWORD: usize = 48;

/// Makes the secrets of a cluster.
///
/// # Errors
/// [`MintError`]
pub fn secrets(now: Timestamp) -> Result<Secrets, MintError> {
    let authority = |subject: &'static str| {
        let named = name(&[(DnType::CommonName, subject)]);
        Key::ecdsa()?.authority(subject, named, now, DAY * AUTHORITY_DAYS)
    };
    let password = || Secret::new(symbols(PASSWORD));
    Ok(Secrets {
        server_ca: authority("k3s-server-ca")?,
        client_ca: authority("k3s-client-ca")?,
        request_header_ca: authority("k3s-request-header-ca")?,
        etcd_server_ca: authority("k3s-etcd-server-ca")?,
        etcd_peer_ca: authority("k3s-etcd-peer-ca")?,
        service_key: Key::ecdsa()?.pem,
        server_password: password(),
        agent_password: password(),
    })
}

/// A kubeconfig of the cluster's admin. `api` is the host that everybody reaches the API by.
///
/// # Errors
/// [`MintError`]
pub fn kubeconfig(
    secrets: &Secrets,
    cluster: &str,
    api: &str,
    now: Timestamp,
) -> Result<Secret<String>, MintError> {
    // The group that may do everything (kubernetes, the binding `cluster-admin`).
    let named = name(&[
        (DnType::OrganizationName, "system:masters"),
        (DnType::CommonName, "system:admin"),
    ]);
    let admin = Key::ecdsa()?.client(
        "system:admin",
        named,
        now,
        DAY * ADMIN_DAYS,
        &secrets.client_ca,
    )?;
    Ok(secrets.kubeconfig(cluster, api, &admin))
}
