//! The secrets bundle: all that makes a Talos cluster this cluster and no other.
//!
//! It is read and written as `talosctl gen secrets` writes it, `secrets.yaml`, and read as JSON too, whose keys are the same
//! words in camel case (siderolabs/talos, pkg/machinery/config/generate/secrets/secrets.go). Certificates and keys are PEM
//! in base64.
//!
//! Ugly facts. An Ed25519 key bears a label of Talos' own, see [`super::pem`]. Bundles from before 1.3 encrypt by AES-CBC and
//! not by secretbox, and service account keys from before 1.7 are ECDSA; both still work and must not be made anew.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::pem;
use crate::platform::STAND_IN;
use crate::secret::Secret;

/// The secrets of one cluster.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Names the cluster to the discovery service: 32 bytes, base64 for URLs.
    pub cluster_id: String,
    /// Encrypts what is said to the discovery service: 32 bytes, base64.
    pub cluster_secret: Secret<String>,
    /// Lets kubelets in: `[a-z0-9]{6}.[a-z0-9]{16}`.
    pub bootstrap_token: Secret<String>,
    /// Encrypts the API's secrets in etcd.
    pub encryption: Encryption,
    /// Lets machines ask for a certificate of Talos' API: `[a-z0-9]{6}.[a-z0-9]{16}`.
    pub trustd_token: Secret<String>,
    /// The CA of etcd.
    pub etcd: Certified,
    /// The CA of Kubernetes.
    pub kubernetes: Certified,
    /// The CA of the API's aggregation layer.
    pub aggregator: Certified,
    /// Signs the tokens of service accounts: a private key as PEM.
    pub service_account: Secret<String>,
    /// The CA of Talos' own API.
    pub os: Certified,
}

/// A certificate and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: Secret<String>,
}

impl Certified {
    /// A pair that nobody believes.
    pub(in crate::platform) fn stand_in() -> Self {
        Self {
            certificate: STAND_IN.to_owned(),
            // Unlike the tokens that every member has, for no worker may be told a key.
            key: Secret::new(format!("{STAND_IN} KEY")),
        }
    }
}

/// How the API's secrets are encrypted in etcd, with 32 bytes as base64.
#[derive(Clone, Debug)]
pub enum Encryption {
    /// XSalsa20 and Poly1305; from 1.3 on.
    Secretbox(Secret<String>),
    /// AES-CBC; bundles of older releases.
    AesCbc(Secret<String>),
}

/// What is wrong with a bundle, and where. It never repeats a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{key} {problem}; {remedy}", .line.map(|line| format!("line {line}: ")).unwrap_or_default())]
pub struct BundleFault {
    /// The line it stands in, counted from 1; `None` for what is missing.
    pub line: Option<u64>,
    /// Its key, in the words of `secrets.yaml`: `certs.os.key`.
    pub key: String,
    /// What is wrong, in one clause.
    pub problem: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Bundle {
    /// A bundle that opens nothing.
    pub(in crate::platform) fn stand_in() -> Self {
        let secret = || Secret::new(STAND_IN.to_owned());
        Self {
            cluster_id: STAND_IN.to_owned(),
            cluster_secret: secret(),
            bootstrap_token: secret(),
            encryption: Encryption::Secretbox(secret()),
            trustd_token: secret(),
            etcd: Certified::stand_in(),
            kubernetes: Certified::stand_in(),
            aggregator: Certified::stand_in(),
            service_account: Certified::stand_in().key,
            os: Certified::stand_in(),
        }
    }

    /// Reads `secrets.yaml`, or the same as JSON.
    ///
    /// # Errors
    /// Every value that Talos would not take, what is missing, and keys that mean nothing.
    pub fn read(text: &str) -> Result<Self, Vec<BundleFault>> {
        let tree = serde_saphyr::from_str::<Spanned<Tree>>(text).map_err(|error| {
            vec![BundleFault {
                line: error.location().map(|place| place.line()),
                key: "the file".to_owned(),
                // The parser's own words may quote a secret.
                problem: "is not YAML".to_owned(),
                remedy: "take the file as `talosctl gen secrets` wrote it",
            }]
        })?;
        let mut reading = Reading {
            values: BTreeMap::new(),
            faults: Vec::new(),
        };
        reading.collect(String::new(), tree);
        let bundle = reading.bundle();
        reading.unknown();
        match bundle {
            Some(bundle) if reading.faults.is_empty() => Ok(bundle),
            _ => Err(reading.faults),
        }
    }

    /// The bundle as `secrets.yaml`.
    #[must_use]
    pub fn yaml(&self) -> Secret<String> {
        let (name, encryption) = match &self.encryption {
            Encryption::Secretbox(secret) => ("secretboxencryptionsecret", secret),
            Encryption::AesCbc(secret) => ("aescbcencryptionsecret", secret),
        };
        let certified = |name: &str, of: &Certified| {
            format!(
                "    {name}:\n        crt: {}\n        key: {}\n",
                STANDARD.encode(&of.certificate),
                STANDARD.encode(of.key.expose())
            )
        };
        // Tokens may be all digits, which would be a number without quotes.
        let text = format!(
            "cluster:\n    id: \"{}\"\n    secret: \"{}\"\n\
             secrets:\n    bootstraptoken: \"{}\"\n    {name}: \"{}\"\n\
             trustdinfo:\n    token: \"{}\"\n\
             certs:\n{}{}{}    k8sserviceaccount:\n        key: {}\n{}",
            self.cluster_id,
            self.cluster_secret.expose(),
            self.bootstrap_token.expose(),
            encryption.expose(),
            self.trustd_token.expose(),
            certified("etcd", &self.etcd),
            certified("k8s", &self.kubernetes),
            certified("k8saggregator", &self.aggregator),
            STANDARD.encode(self.service_account.expose()),
            certified("os", &self.os),
        );
        Secret::new(text)
    }

    /// Every private key of it, as PEM: what no worker may ever hold.
    pub fn private_keys(&self) -> impl Iterator<Item = &Secret<String>> {
        [
            &self.etcd.key,
            &self.kubernetes.key,
            &self.aggregator.key,
            &self.service_account,
            &self.os.key,
        ]
        .into_iter()
    }
}

/// YAML that holds texts, and knows where each stood.
enum Tree {
    Text(Secret<String>),
    Map(BTreeMap<String, Spanned<Self>>),
    Other,
}

struct Reading {
    /// By key in small letters, which YAML and JSON share.
    values: BTreeMap<String, (u64, Option<Secret<String>>)>,
    faults: Vec<BundleFault>,
}

impl Reading {
    fn collect(&mut self, key: String, tree: Spanned<Tree>) {
        let line = tree.referenced.line();
        match tree.value {
            Tree::Map(map) => {
                for (name, below) in map {
                    let name = name.to_ascii_lowercase();
                    let dot = if key.is_empty() { "" } else { "." };
                    self.collect(format!("{key}{dot}{name}"), below);
                }
            }
            Tree::Text(text) => {
                self.values.insert(key, (line, Some(text)));
            }
            Tree::Other => {
                self.values.insert(key, (line, None));
            }
        }
    }

    fn fault(&mut self, line: Option<u64>, key: &str, problem: &str, remedy: &'static str) {
        self.faults.push(BundleFault {
            line,
            key: key.to_owned(),
            problem: problem.to_owned(),
            remedy,
        });
    }

    fn bundle(&mut self) -> Option<Bundle> {
        let cluster_id = self.text("cluster.id", is_plain, "is no base64 without line breaks");
        let cluster_secret = self.text("cluster.secret", is_base64, "is no base64");
        let bootstrap_token = self.text("secrets.bootstraptoken", is_token, TOKEN);
        let encryption = self.encryption();
        let trustd_token = self.text("trustdinfo.token", is_token, TOKEN);
        let etcd = self.certified("certs.etcd");
        let kubernetes = self.certified("certs.k8s");
        let aggregator = self.certified("certs.k8saggregator");
        let service_account = self.pem("certs.k8sserviceaccount.key", is_key);
        let os = self.certified("certs.os");
        Some(Bundle {
            cluster_id: cluster_id?.expose().clone(),
            cluster_secret: cluster_secret?,
            bootstrap_token: bootstrap_token?,
            encryption: encryption?,
            trustd_token: trustd_token?,
            etcd: etcd?,
            kubernetes: kubernetes?,
            aggregator: aggregator?,
            service_account: service_account?,
            os: os?,
        })
    }

    fn text(
        &mut self,
        key: &str,
        sound: fn(&str) -> bool,
        problem: &str,
    ) -> Option<Secret<String>> {
        let (line, text) = match self.values.remove(key) {
            Some((line, Some(text))) if !text.expose().is_empty() => (line, text),
            Some((line, Some(_))) => {
                self.fault(Some(line), key, "is empty", REMEDY);
                return None;
            }
            Some((line, None)) => {
                self.fault(Some(line), key, "is no text", "write it in quotes");
                return None;
            }
            None => {
                self.fault(None, key, "is missing", REMEDY);
                return None;
            }
        };
        if sound(text.expose()) {
            return Some(text);
        }
        self.fault(Some(line), key, problem, REMEDY);
        None
    }

    fn encryption(&mut self) -> Option<Encryption> {
        let [secretbox, aes] = [
            "secrets.secretboxencryptionsecret",
            "secrets.aescbcencryptionsecret",
        ];
        let old = self.values.get(aes).map(|(line, _)| *line);
        if old.is_none() {
            let secret = self.text(secretbox, is_base64, "is no base64")?;
            return Some(Encryption::Secretbox(secret));
        }
        if self.values.remove(secretbox).is_some() {
            self.fault(
                old,
                aes,
                "stands beside secretboxencryptionsecret",
                "keep the one that the cluster uses",
            );
        }
        let secret = self.text(aes, is_base64, "is no base64")?;
        Some(Encryption::AesCbc(secret))
    }

    fn certified(&mut self, key: &str) -> Option<Certified> {
        let certificate = self.pem(&format!("{key}.crt"), |label| label == pem::CERTIFICATE);
        let private = self.pem(&format!("{key}.key"), is_key);
        Some(Certified {
            certificate: certificate?.expose().clone(),
            key: private?,
        })
    }

    fn pem(&mut self, key: &str, wanted: fn(&str) -> bool) -> Option<Secret<String>> {
        let line = self.values.get(key).map(|(line, _)| *line);
        let text = self.text(key, is_base64, "is no base64")?;
        let bytes = STANDARD.decode(text.expose()).unwrap_or_default();
        let text = String::from_utf8(bytes).map(Secret::new).ok();
        let label = text
            .as_ref()
            .and_then(|text| Some(pem::decode(text.expose())?.0.to_owned()));
        match (text, label) {
            (Some(text), Some(label)) if wanted(&label) => Some(text),
            (_, Some(label)) => {
                let problem = format!("holds PEM of the kind {label:.32}");
                self.fault(
                    line,
                    key,
                    &problem,
                    "certificates belong to crt, private keys to key",
                );
                None
            }
            _ => {
                self.fault(line, key, "holds no whole PEM block", REMEDY);
                None
            }
        }
    }

    /// Names what nobody asked for.
    fn unknown(&mut self) {
        for (key, (line, _)) in std::mem::take(&mut self.values) {
            let key: String = key.chars().take(64).collect();
            self.fault(
                Some(line),
                &key,
                "is no key of a secrets bundle",
                "remove it",
            );
        }
    }
}

const REMEDY: &str = "take it from the file that `talosctl gen secrets` wrote";
const TOKEN: &str = "is no token of 6 and 16 letters and digits";

fn is_plain(text: &str) -> bool {
    text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_=+/".contains(&byte))
}

fn is_base64(text: &str) -> bool {
    STANDARD.decode(text).is_ok_and(|bytes| !bytes.is_empty())
}

fn is_token(text: &str) -> bool {
    let part = |part: &str, length: usize| {
        let small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        part.len() == length && part.bytes().all(small)
    };
    text.split_once('.')
        .is_some_and(|(id, secret)| part(id, 6) && part(secret, 16))
}

fn is_key(label: &str) -> bool {
    [pem::EC_KEY, pem::ED25519_KEY, pem::RSA_KEY, pem::PKCS8_KEY].contains(&label)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Tree;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a map of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::Text(Secret::new(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_i128<E>(self, _: i128) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_u128<E>(self, _: u128) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                while seq.next_element::<Tree>()?.is_some() {}
                Ok(Tree::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut tree = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    tree.insert(key, value);
                }
                Ok(Tree::Map(tree))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
