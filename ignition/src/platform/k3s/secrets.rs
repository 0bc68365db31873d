//! The secrets of one k3s cluster: five authorities, the key of service accounts, two passwords.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::platform::talos::Certified;
use crate::platform::{STAND_IN, kubeconfig};
use crate::secret::Secret;

/// Everything that would open the cluster.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// Vouches for the API server and the kubelets.
    pub server_ca: Certified,
    /// Vouches for the API's clients.
    pub client_ca: Certified,
    /// Vouches for the API server towards aggregated ones.
    pub request_header_ca: Certified,
    /// Vouches for etcd towards the API server.
    pub etcd_server_ca: Certified,
    /// Vouches for etcd's members towards each other.
    pub etcd_peer_ca: Certified,
    /// Signs service accounts' tokens; PEM.
    pub service_key: Secret<String>,
    /// What makes a machine a server, and seals what etcd keeps of the secrets.
    pub server_password: Secret<String>,
    /// What makes a machine an agent.
    pub agent_password: Secret<String>,
}

/// As the vault keeps them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    version: u32,
    authorities: Vec<(String, String)>,
    service_key: String,
    server_password: String,
    agent_password: String,
}

impl Drop for Sealed {
    fn drop(&mut self) {
        for (_, key) in &mut self.authorities {
            key.zeroize();
        }
        self.service_key.zeroize();
        self.server_password.zeroize();
        self.agent_password.zeroize();
    }
}

impl Secrets {
    /// Secrets that open nothing.
    pub(in crate::platform) fn stand_in() -> Self {
        let secret = || Secret::new(STAND_IN.to_owned());
        Self {
            server_ca: Certified::stand_in(),
            client_ca: Certified::stand_in(),
            request_header_ca: Certified::stand_in(),
            etcd_server_ca: Certified::stand_in(),
            etcd_peer_ca: Certified::stand_in(),
            service_key: secret(),
            server_password: secret(),
            agent_password: secret(),
        }
    }

    /// The token with which servers join.
    #[must_use]
    pub fn server_token(&self) -> Secret<String> {
        self.token("server", &self.server_password)
    }

    /// The token with which agents join.
    #[must_use]
    pub fn agent_token(&self) -> Secret<String> {
        self.token("node", &self.agent_password)
    }

    fn token(&self, user: &str, password: &Secret<String>) -> Secret<String> {
        let digest = Sha256::digest(self.server_ca.certificate.as_bytes());
        let mut token = "K10".to_owned();
        for byte in digest {
            token += &format!("{byte:02x}");
        }
        token += &format!("::{user}:{}", password.expose());
        Secret::new(token)
    }

    /// The files below `/var/lib/rancher/k3s/server/tls` that k3s takes for its own where they are there before its first
    /// start (k3s, docs/cli/certificate.md): path, mode, content.
    pub(super) fn files(&self) -> Vec<(String, u32, String)> {
        let names = [
            "server-ca",
            "client-ca",
            "request-header-ca",
            "etcd/server-ca",
            "etcd/peer-ca",
        ];
        let mut files = Vec::new();
        for (name, authority) in names.into_iter().zip(self.authorities()) {
            files.push((format!("{name}.crt"), 0o644, authority.certificate.clone()));
            files.push((format!("{name}.key"), 0o600, authority.key.expose().clone()));
        }
        let key = self.service_key.expose().clone();
        files.push(("service.key".to_owned(), 0o600, key));
        files
    }

    fn authorities(&self) -> [&Certified; 5] {
        let Self {
            server_ca,
            client_ca,
            request_header_ca,
            etcd_server_ca,
            etcd_peer_ca,
            service_key: _,
            server_password: _,
            agent_password: _,
        } = self;
        [
            server_ca,
            client_ca,
            request_header_ca,
            etcd_server_ca,
            etcd_peer_ca,
        ]
    }

    /// The admin's kubeconfig; `admin` is a client's certificate that [`Secrets::client_ca`] vouches for.
    #[must_use]
    pub fn kubeconfig(&self, cluster: &str, api: &str, admin: &Certified) -> Secret<String> {
        let authority = &self.server_ca.certificate;
        kubeconfig::kubeconfig(cluster, api, authority, &admin.certificate, &admin.key)
    }

    /// Bytes for the vault.
    #[must_use]
    pub fn seal(&self) -> Secret<Vec<u8>> {
        let pair = |authority: &Certified| {
            (
                authority.certificate.clone(),
                authority.key.expose().clone(),
            )
        };
        let sealed = Sealed {
            version: 1,
            authorities: self.authorities().map(pair).into(),
            service_key: self.service_key.expose().clone(),
            server_password: self.server_password.expose().clone(),
            agent_password: self.agent_password.expose().clone(),
        };
        Secret::new(serde_json::to_vec(&sealed).expect("a record of texts is always JSON"))
    }

    /// From the vault; `None` when the bytes are of no version that this program knows.
    #[must_use]
    pub fn unseal(bytes: &Secret<Vec<u8>>) -> Option<Self> {
        let sealed: Sealed = serde_json::from_slice(bytes.expose()).ok()?;
        let authorities = sealed
            .authorities
            .iter()
            .map(|(certificate, key)| Certified {
                certificate: certificate.clone(),
                key: Secret::new(key.clone()),
            });
        let authorities: [Certified; 5] = authorities.collect::<Vec<_>>().try_into().ok()?;
        let [
            server_ca,
            client_ca,
            request_header_ca,
            etcd_server_ca,
            etcd_peer_ca,
        ] = authorities;
        (sealed.version == 1).then(|| Self {
            server_ca,
            client_ca,
            request_header_ca,
            etcd_server_ca,
            etcd_peer_ca,
            service_key: Secret::new(sealed.service_key.clone()),
            server_password: Secret::new(sealed.server_password.clone()),
            agent_password: Secret::new(sealed.agent_password.clone()),
        })
    }
}
