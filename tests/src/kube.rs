//! A real Kubernetes API: kube-apiserver 1.20 and etcd in a namespace of a laboratory, with CAs and certificates of our own, asked
//! by curl as whoever a test wants to be.
//!
//! `tests/lab/kube-apiserver.sh` builds the two programs; `KUBE_APISERVER` names the first, the second lies beside it. There is
//! no kubelet, no controller and no scheduler: nodes and their conditions are written by tests, and nobody signs what was approved.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::probe::kube::{KubeAccess, Server};
use ignition::secret::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use crate::lab::{BASTION, Lab, until};
use crate::process::{self, Process};

/// What a start takes on a machine with eight compilers, five times over.
const START_LIMIT: Duration = Duration::from_secs(180);
pub const TOKEN: &str = "abcdef.0123456789abcdef";
pub const TOKEN_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

pub struct Kube {
    pub lab: Lab,
    pub address: SocketAddr,
    name: String,
    /// Who vouches for its users.
    ca: Issuer<'static, KeyPair>,
    /// Who vouches for the server.
    ca_pem: String,
    apiserver: Process,
    _etcd: Process,
}

/// A certificate of an authority and its key (PKCS #8), both in PEM.
#[derive(Clone, Copy)]
pub struct Authority<'a> {
    pub certificate: &'a str,
    pub key: &'a str,
}

/// An API server that is to be: its port on the bastion, its name, and the authorities of servers and of users.
pub struct Place<'a> {
    pub port: u16,
    pub name: &'a str,
    pub servers: Authority<'a>,
    pub users: Authority<'a>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub enum As<'a> {
    /// The user of a certificate made by [`Kube::user`].
    User(&'a str),
    /// Whoever bears this token.
    Token(&'a str),
}

/// Where the real API server is; if it isn't, that is said where nobody captures it.
pub fn apiserver() -> Option<PathBuf> {
    let path = std::env::var_os("KUBE_APISERVER").filter(|path| !path.is_empty());
    if path.is_none() {
        let _ = std::io::stderr().write_all(
            b"\n*** KUBE_APISERVER names no kube-apiserver: Kubernetes is tested against recorded answers only; \
              `make kube` builds one and tests against it ***\n\n",
        );
    }
    path.map(PathBuf::from)
}

impl Kube {
    /// Starts both in a laboratory of their own, by one authority, and waits until the API is ready.
    pub fn start(apiserver: &std::path::Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = named("Reveille test cluster CA", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("a CA").pem();
        let ours = Authority {
            certificate: &certificate,
            key: &key.serialize_pem(),
        };
        let place = Place {
            port: 6443,
            name: "api.lab.example",
            servers: ours,
            users: ours,
        };
        let kube = Self::at(apiserver, Lab::flat(0), &place);
        kube.roles();
        kube
    }

    /// Starts both in a laboratory and waits until the API is ready.
    pub fn at(apiserver: &std::path::Path, lab: Lab, place: &Place<'_>) -> Self {
        let file = |name: &str, text: &str| {
            let path = lab.path(name);
            fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        file("ca.pem", place.servers.certificate);
        let users = file("users.pem", place.users.certificate);
        let mut params = named("kube-apiserver", None);
        params.subject_alt_names = vec![
            SanType::IpAddress(BASTION.into()),
            SanType::DnsName(place.name.try_into().expect("a name")),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer(place.servers));
        let certificate = file("server.pem", &certificate.expect("signed").pem());
        let key = file("server.key", &key.serialize_pem());
        let accounts = KeyPair::generate().expect("a key");
        let accounts_public = file("accounts.pub", &accounts.public_key_pem());
        let accounts = file("accounts.key", &accounts.serialize_pem());

        let mut command = process::command(&apiserver.with_file_name("etcd").display().to_string());
        command.args(["--listen-client-urls", "http://127.0.0.1:2379"]);
        command.args(["--advertise-client-urls", "http://127.0.0.1:2379"]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        command.arg("--data-dir").arg(lab.path("etcd"));
        let etcd = lab.netns.start(&lab.timeline, "etcd", command);

        let mut command = process::command(&apiserver.display().to_string());
        for (name, value) in [
            ("etcd-servers", "http://127.0.0.1:2379"),
            ("bind-address", &BASTION.to_string()),
            ("secure-port", &place.port.to_string()),
            ("tls-cert-file", &certificate),
            ("tls-private-key-file", &key),
            ("client-ca-file", &users),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-account-key-file", &accounts_public),
            ("service-account-signing-key-file", &accounts),
            ("service-cluster-ip-range", "10.96.0.0/24"),
            ("authorization-mode", "Node,RBAC"),
            ("enable-bootstrap-token-auth", "true"),
            ("enable-admission-plugins", "NodeRestriction"),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        let apiserver = lab.netns.start(&lab.timeline, "apiserver", command);
        let mut kube = Self {
            lab,
            address: (BASTION, place.port).into(),
            name: place.name.to_owned(),
            ca: issuer(place.users),
            ca_pem: place.servers.certificate.to_owned(),
            apiserver,
            _etcd: etcd,
        };
        kube.user("admin", "system:masters");
        until("the API to be ready", START_LIMIT, || {
            if let Some(ended) = kube.apiserver.ended() {
                panic!("{}\nkube-apiserver: {ended}", kube.lab.timeline.told());
            }
            kube.ask(As::User("admin"), "GET", "/readyz", None).0 == 200
        });
        kube
    }

    /// A certificate for this user in this group; its files bear the user's name.
    pub fn user(&self, name: &str, group: &str) {
        let mut params = named(name, Some(group));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.ca).expect("a certificate");
        let write = |kind: &str, text: String| {
            let file = format!("{}.{kind}", file_name(name));
            fs::write(self.lab.path(&file), text).expect("written");
        };
        write("pem", certificate.pem());
        write("key", key.serialize_pem());
    }

    /// Our own access, as the administrator.
    pub fn access(&self) -> KubeAccess {
        let read = |name: &str| fs::read(self.lab.path(name)).expect("read");
        let servers = vec![Server::new(self.address, &self.name).expect("a server")];
        let key = Secret::new(read("admin.key"));
        KubeAccess::new(self.ca_pem.as_bytes(), &read("admin.pem"), &key, servers).expect("access")
    }

    /// The administrator's kubeconfig, as installers write them.
    pub fn kubeconfig(&self) -> String {
        let read = |name: &str| {
            use base64::Engine;
            let bytes = fs::read(self.lab.path(name)).expect("read");
            base64::engine::general_purpose::STANDARD.encode(bytes)
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: admin\nclusters:\n- name: lab\n  cluster:\n    server: https://{}:6443\n    \
             certificate-authority-data: {}\ncontexts:\n- name: admin\n  context: {{cluster: lab, user: admin}}\nusers:\n- name: admin\n  user:\n    \
             client-certificate-data: {}\n    client-key-data: {}\n",
            self.name,
            read("ca.pem"),
            read("admin.pem"),
            read("admin.key")
        )
    }

    /// The CA of the server, in PEM.
    pub fn ca_pem(&self) -> String {
        self.ca_pem.clone()
    }

    /// Does asynchronous work inside the namespace.
    pub fn run<F>(&self, work: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.lab.netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            runtime.block_on(work)
        })
    }

    /// Asks with curl: the status, and the answer where it is JSON.
    pub fn ask(&self, who: As<'_>, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let url = format!("https://{}{path}", self.address);
        let text = |name: String| self.lab.path(&name).display().to_string();
        let mut words = vec!["-s".to_owned(), "-X".to_owned(), method.to_owned()];
        let mut add = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
        add(&["--cacert", &text("ca.pem".into()), "--max-time", "20"]);
        add(&["-w", "\n%{http_code}"]);
        match who {
            As::User(name) => {
                add(&["--cert", &text(format!("{}.pem", file_name(name)))]);
                add(&["--key", &text(format!("{}.key", file_name(name)))]);
            }
            As::Token(token) => add(&["-H", &format!("Authorization: Bearer {token}")]),
        }
        if let Some(body) = body {
            let kind = if method == "PATCH" {
                "merge-patch+json"
            } else {
                "json"
            };
            add(&["-H", &format!("Content-Type: application/{kind}")]);
            add(&["--data-binary", &body.to_string()]);
        }
        add(&[&url]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Ok(said) = self.lab.netns.try_output("curl", &words) else {
            return (0, Value::Null);
        };
        let (body, status) = said.rsplit_once('\n').expect("a status");
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        (status.parse().expect("a number"), body)
    }

    /// Makes an object, which must go well.
    pub fn create(&self, who: As<'_>, path: &str, object: &Value) -> Value {
        let (status, made) = self.ask(who, "POST", path, Some(object));
        assert!(status == 201, "{status} for POST {path}: {made}");
        made
    }

    /// Changes part of an object as the administrator.
    pub fn patch(&self, path: &str, change: &Value) {
        let (status, made) = self.ask(As::User("admin"), "PATCH", path, Some(change));
        assert!(status == 200, "{status} for PATCH {path}: {made}");
    }

    /// A token of a service account.
    pub fn account_token(&self, namespace: &str, name: &str) -> String {
        let admin = As::User("admin");
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let wanted =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let made = self.create(admin, &path, &wanted);
        made["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// A custom resource that takes any object of its kind.
    pub fn define(&self, group: &str, kind: &str, plural: &str) {
        let admin = As::User("admin");
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let object = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group,
                "scope": "Cluster",
                "names": {"kind": kind, "plural": plural},
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                }],
            },
        });
        self.create(admin, path, &object);
        let served = format!("/apis/{group}/v1/{plural}");
        until("the new kind to be served", Duration::from_secs(60), || {
            self.ask(admin, "GET", &served, None).0 == 200
        });
    }

    /// Ends the API server, as a power cut does.
    pub fn kill_apiserver(&mut self) {
        self.apiserver.kill();
    }

    /// What clusters of all kinds have: who may join, and two credentials to join with.
    fn roles(&self) {
        let admin = As::User("admin");
        let namespace = "openshift-machine-config-operator";
        let subject = |kind: &str, name: &str, namespace: Option<&str>| {
            let group = if namespace.is_none() {
                "rbac.authorization.k8s.io"
            } else {
                ""
            };
            let mut subject = json!({"kind": kind, "name": name, "apiGroup": group});
            if let Some(namespace) = namespace {
                subject["namespace"] = json!(namespace);
            }
            subject
        };
        self.create(
            admin,
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        );
        self.create(
            admin,
            &format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "node-bootstrapper"}}),
        );
        self.create(
            admin,
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            &json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "joining"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
                "subjects": [
                    subject("Group", "system:bootstrappers", None),
                    subject("ServiceAccount", "node-bootstrapper", Some(namespace)),
                ],
            }),
        );
        let (id, secret) = TOKEN.split_once('.').expect("two parts");
        self.create(
            admin,
            "/api/v1/namespaces/kube-system/secrets",
            &json!({
                "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
                "metadata": {"name": format!("bootstrap-token-{id}")},
                "stringData": {
                    "token-id": id, "token-secret": secret,
                    "usage-bootstrap-authentication": "true",
                    "auth-extra-groups": TOKEN_GROUP,
                },
            }),
        );
    }
}

fn issuer(authority: Authority<'_>) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(authority.key).expect("a key");
    Issuer::from_ca_cert_pem(authority.certificate, key).expect("a certificate")
}

/// curl takes what follows a colon for a password.
fn file_name(user: &str) -> String {
    user.replace(':', "-")
}

fn named(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params
}

/// A condition as objects of all kinds bear them.
pub fn condition(kind: &str, status: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": "Because", "message": message})
}
