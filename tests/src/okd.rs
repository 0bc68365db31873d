//! Sets as openshift-install writes them, of any age. Fakes: certificates and pointers are of the real shapes, and what
//! they would start is not there.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ignition::platform::okd::{File, InstallerSet, SetFault};
use ignition::secret::Secret;
use netboot::net::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::kube_fake::Authority;

const HOUR: u64 = 3600;

/// Now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.expect("after 1970").as_millis();
    Timestamp::from_millis(u64::try_from(millis).expect("a moment of this age"))
}

/// A CA of a day that was made some hours ago, and its key.
pub fn certificate(hours_ago: u64) -> (String, String) {
    let made = now().millis() / 1000 - hours_ago * HOUR;
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    let moment = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = moment(made);
    params.not_after = moment(made + 24 * HOUR);
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// A `data` URL as the installer writes them.
pub fn data(text: &str) -> String {
    format!("data:text/plain;charset=utf-8;base64,{}", base64(text))
}

/// What a `data` URL in base64 holds.
///
/// # Panics
/// When it is none.
pub fn undo(url: &str) -> String {
    let (_, body) = url.split_once("base64,").expect("a data URL");
    let bytes = STANDARD.decode(body).expect("base64");
    String::from_utf8(bytes).expect("text")
}

/// The files of a set of the cluster `lab` below `example.test`.
pub fn files(hours_ago: u64) -> BTreeMap<File, String> {
    let (ca, key) = certificate(hours_ago);
    let (admin, admin_key) = certificate(hours_ago);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: lab\n  cluster:\n    server: https://api.lab.example.test:6443\n    \
         certificate-authority-data: {}\ncontexts:\n- name: admin\n  context:\n    cluster: lab\n    user: admin\n\
         current-context: admin\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        base64(&ca),
        base64(&admin),
        base64(&admin_key)
    );
    let file = |path: &str, text: &str| json!({ "path": path, "mode": 0o600, "overwrite": true, "contents": { "source": data(text) } });
    let bootstrap = json!({
        "ignition": { "version": "3.2.0" },
        "storage": { "files": [
            file("/opt/openshift/tls/root-ca.crt", &ca),
            file("/opt/openshift/tls/root-ca.key", &key),
            file("/opt/openshift/auth/kubeconfig", &kubeconfig),
            file("/etc/motd", "the bootstrap of lab\n"),
        ] },
        "systemd": { "units": [{
            "name": "bootkube.service",
            "enabled": true,
            "contents": "[Service]\nExecStart=/usr/local/bin/bootkube.sh\n[Install]\nWantedBy=multi-user.target\n",
        }] },
    });
    BTreeMap::from([
        (File::Bootstrap, bootstrap.to_string()),
        (File::Master, pointer("master", &ca).to_string()),
        (File::Worker, pointer("worker", &ca).to_string()),
        (File::Kubeconfig, kubeconfig),
        (File::Password, "aaaaa-bbbbb-ccccc-ddddd".to_owned()),
        (
            File::Metadata,
            json!({ "clusterName": "lab", "clusterID": "c", "infraID": "lab-x" }).to_string(),
        ),
    ])
}

/// The authority of a set, which vouches for its API and its machine-config server.
///
/// # Panics
/// When its bootstrap config holds none.
pub fn authority(files: &BTreeMap<File, String>) -> Authority {
    let bootstrap: Value = serde_json::from_str(&files[&File::Bootstrap]).expect("JSON");
    let file = |path: &str| {
        let all = bootstrap["storage"]["files"].as_array().expect("files");
        let found = all.iter().find(|file| file["path"] == path);
        let source = found.and_then(|file| file["contents"]["source"].as_str());
        undo(source.expect("a file of the bootstrap"))
    };
    Authority::of(
        &file("/opt/openshift/tls/root-ca.crt"),
        &file("/opt/openshift/tls/root-ca.key"),
    )
}

/// A pointer config.
pub fn pointer(role: &str, ca: &str) -> Value {
    let source = format!("https://api-int.lab.example.test:22623/config/{role}");
    json!({ "ignition": {
        "version": "3.2.0",
        "config": { "merge": [{ "source": source }] },
        "security": { "tls": { "certificateAuthorities": [{ "source": data(ca) }] } },
    } })
}

/// Reads a set.
pub fn read(files: &BTreeMap<File, String>) -> Result<InstallerSet, Vec<SetFault>> {
    InstallerSet::read(|file| files.get(&file).cloned().map(Secret::new))
}

/// Writes a set as the installer would.
///
/// # Panics
/// When it can't be written.
pub fn write(directory: &Path, files: &BTreeMap<File, String>) {
    std::fs::create_dir_all(directory.join("auth")).expect("made");
    for (file, text) in files {
        std::fs::write(directory.join(file.path()), text).expect("written");
    }
}
