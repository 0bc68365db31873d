//! What an administrator of a cluster whose secrets are ours is given for the API of Kubernetes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::format::yaml_unfolded;
use crate::secret::Secret;

/// A `kubeconfig` with one context, for the API behind the host name `api`, which `authority` vouches for. `certificate` and
/// `key` are the administrator's; all three are PEM.
pub(super) fn kubeconfig(
    cluster: &str,
    api: &str,
    authority: &str,
    certificate: &str,
    key: &Secret<String>,
) -> Secret<String> {
    let user = format!("admin@{cluster}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": {
                "server": format!("https://{api}:6443"),
                "certificate-authority-data": STANDARD.encode(authority),
            },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(certificate),
                "client-key-data": STANDARD.encode(key.expose()),
            },
        }],
        "contexts": [{
            "name": user,
            "context": { "cluster": cluster, "user": user, "namespace": "default" },
        }],
        "current-context": user,
    });
    Secret::new(yaml_unfolded(&config))
}
