//! What administrators are given: `talosconfig` for Talos' API, `kubeconfig` for that of Kubernetes.

use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::bundle::{Bundle, Certified};
use crate::platform::kubeconfig;
use crate::secret::Secret;

/// A `talosconfig` with one context, named after the cluster (siderolabs/talos, pkg/machinery/client/config/config.go).
///
/// `endpoints` are the control planes themselves: Talos' API goes through none of our balancers. A command without
/// `--nodes` asks all `nodes`. `admin` is a certificate for clients with the organisation `os:admin`, and the bundle's `os`
/// vouches for it.
#[must_use]
pub fn talosconfig(
    cluster: &str,
    endpoints: &[Ipv4Addr],
    nodes: &[Ipv4Addr],
    bundle: &Bundle,
    admin: &Certified,
) -> Secret<String> {
    let context = json!({
        "endpoints": endpoints,
        "nodes": nodes,
        "ca": STANDARD.encode(&bundle.os.certificate),
        "crt": STANDARD.encode(&admin.certificate),
        "key": STANDARD.encode(admin.key.expose()),
    });
    let contexts = Map::from_iter([(cluster.to_owned(), context)]);
    yaml(&json!({ "context": cluster, "contexts": contexts }))
}

/// A `kubeconfig` with one context, for the API behind the host name `api`.
///
/// `admin` is a certificate for clients with the organisation `system:masters`, and the bundle's `kubernetes` vouches for it.
#[must_use]
pub fn kubeconfig(cluster: &str, api: &str, bundle: &Bundle, admin: &Certified) -> Secret<String> {
    let authority = &bundle.kubernetes.certificate;
    kubeconfig::kubeconfig(cluster, api, authority, &admin.certificate, &admin.key)
}

fn yaml(value: &Value) -> Secret<String> {
    let text = serde_saphyr::to_string(value).expect("what JSON can say, YAML can");
    Secret::new(text)
}
