//! What `openshift-install create ignition-configs` leaves in a directory: six files that belong together and are
//! worth nothing after a day.
//!
//! ```text
//!   bootstrap.ign            the whole cluster: CA keys, pull secret, manifests
//!   master.ign worker.ign    pointers to the machine-config server, and the CA to know it by
//!   auth/kubeconfig, auth/kubeadmin-password, metadata.json
//! ```
//!
//! They are opaque: read for what must be known before a machine boots, and handed on byte for byte.
//!
//! Ugly facts. The first certificates live 24 hours (openshift/installer, pkg/asset/tls/tls.go, `ValidityOneDay`) and
//! the cluster renews them only once it runs. The installer keeps hidden state beside its files, so running it twice in
//! one directory gives old certificates with a new date of file: only what is inside the certificates counts.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use netboot::net::{Hostname, Timestamp};
use serde_json::Value;

use crate::secret::Secret;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Hours after which an unused set is warned of: the installer's own documentation says so.
pub const AGING_HOURS: u64 = 12;
/// Hours an install may need: the installer waits 20 minutes for the API, 60 for the bootstrap, 60 for the install and 30
/// for the operators to settle (cmd/openshift-install).
pub const INSTALL_HOURS: u64 = 3;
/// Bytes of one file at the most.
pub const FILE_MAX: usize = 3 << 20;
/// Bytes that are looked at of one compressed content.
const INFLATED_MAX: usize = 16 << 20;

const SECONDS_AN_HOUR: u64 = 3600;
const AGAIN: &str = "run openshift-install anew in an empty directory and import that";

/// The files of a set, in the order they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// `bootstrap.ign`
    Bootstrap,
    /// `master.ign`
    Master,
    /// `worker.ign`
    Worker,
    /// `auth/kubeconfig`
    Kubeconfig,
    /// `auth/kubeadmin-password`
    Password,
    /// `metadata.json`
    Metadata,
}

impl File {
    /// Every file of a set.
    pub const ALL: [Self; 6] = [
        Self::Bootstrap,
        Self::Master,
        Self::Worker,
        Self::Kubeconfig,
        Self::Password,
        Self::Metadata,
    ];

    /// Where the installer writes it, below its directory.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap.ign",
            Self::Master => "master.ign",
            Self::Worker => "worker.ign",
            Self::Kubeconfig => "auth/kubeconfig",
            Self::Password => "auth/kubeadmin-password",
            Self::Metadata => "metadata.json",
        }
    }
}

/// What is wrong with a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}; {remedy}", file.path())]
pub struct SetFault {
    /// In which file.
    pub file: File,
    /// What, in one clause.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

fn fault(file: File, problem: impl Into<String>, remedy: impl Into<String>) -> SetFault {
    SetFault {
        file,
        problem: problem.into(),
        remedy: remedy.into(),
    }
}

/// A sound set.
#[derive(Clone, Debug)]
pub struct InstallerSet {
    files: BTreeMap<File, Secret<String>>,
    versions: BTreeMap<File, String>,
    cluster: String,
    hosts: BTreeMap<File, String>,
    life: Life,
}

impl InstallerSet {
    /// A set whose configs do nothing.
    pub(in crate::platform) fn stand_in() -> Self {
        let config = r#"{"ignition":{"version":"3.2.0"}}"#;
        let files = File::ALL.map(|file| (file, Secret::new(config.to_owned())));
        Self {
            files: files.into_iter().collect(),
            versions: BTreeMap::new(),
            cluster: String::new(),
            hosts: BTreeMap::new(),
            life: Life::default(),
        }
    }

    /// Reads a set; `text` gives each file, `None` where there is none.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(
        mut text: impl FnMut(File) -> Option<Secret<String>>,
    ) -> Result<Self, Vec<SetFault>> {
        let (mut files, mut faults) = (BTreeMap::new(), Vec::new());
        for file in File::ALL {
            match text(file) {
                None => faults.push(fault(file, "is missing", AGAIN)),
                Some(text) if text.expose().len() > FILE_MAX => {
                    let problem = format!("has more than {FILE_MAX} bytes");
                    faults.push(fault(file, problem, AGAIN));
                }
                Some(text) => {
                    files.insert(file, text);
                }
            }
        }
        let mut set = Self {
            files,
            versions: BTreeMap::new(),
            cluster: String::new(),
            hosts: BTreeMap::new(),
            life: Life::default(),
        };
        let mut lives = Vec::new();
        for file in [File::Bootstrap, File::Master, File::Worker] {
            if let Err(fault) = set.read_ignition(file, &mut lives) {
                faults.push(fault);
            }
        }
        for read in [Self::read_kubeconfig, Self::read_metadata] {
            if let Err(fault) = read(&mut set, &mut lives) {
                faults.push(fault);
            }
        }
        match Life::of(&lives) {
            Some(life) => set.life = life,
            None if faults.is_empty() => {
                let problem = "holds no certificate, so nobody knows how long it may be used";
                faults.push(fault(File::Bootstrap, problem, AGAIN));
            }
            None => {}
        }
        if faults.is_empty() {
            Ok(set)
        } else {
            Err(faults)
        }
    }

    fn read_ignition(&mut self, file: File, lives: &mut Vec<Life>) -> Result<(), SetFault> {
        let Some(text) = self.files.get(&file) else {
            return Ok(());
        };
        let text = text.expose();
        let config: Value = serde_json::from_str(text).map_err(|error| {
            let problem = format!("is no JSON at line {}", error.line());
            fault(file, problem, AGAIN)
        })?;
        let version = config
            .pointer("/ignition/version")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match version.split_once('.') {
            Some(("3", rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => {}
            Some(("2", _)) => {
                let problem =
                    format!("is of Ignition spec {version}, which today's CoreOS refuses");
                let remedy = "use openshift-install of 4.6 or later";
                return Err(fault(file, problem, remedy));
            }
            _ => {
                let problem = format!("says ignition.version {version:?}");
                return Err(fault(file, problem, "give an Ignition config of spec 3"));
            }
        }
        let payloads = payloads(&config);
        if file == File::Bootstrap {
            let own =
                |path: &str| !path.starts_with("/etc/pki/") && !path.contains("user-ca-bundle");
            for (_, text) in payloads.iter().filter(|(path, _)| own(path)) {
                certificates(text, lives);
            }
        } else {
            let keys = |text: &str| {
                let mut found = text.contains(PRIVATE_KEY);
                nested(text, |inner| found |= inner.contains(PRIVATE_KEY));
                found
            };
            if keys(text) || payloads.iter().any(|(_, text)| keys(text)) {
                let problem = "holds a private key, and every machine of its role would have it";
                let remedy =
                    "give the pointer that openshift-install wrote, not a config of the bootstrap";
                return Err(fault(file, problem, remedy));
            }
            for (_, text) in authorities(&config) {
                certificates(&text, lives);
            }
            let source = config.pointer("/ignition/config/merge/0/source");
            let host = source.and_then(Value::as_str).and_then(host);
            let Some(host) = host else {
                let problem = "points to no machine-config server";
                return Err(fault(file, problem, AGAIN));
            };
            self.hosts.insert(file, host.to_owned());
        }
        self.versions.insert(file, version.to_owned());
        Ok(())
    }

    fn read_kubeconfig(&mut self, lives: &mut Vec<Life>) -> Result<(), SetFault> {
        const FILE: File = File::Kubeconfig;
        let Some(text) = self.files.get(&FILE) else {
            return Ok(());
        };
        let text = text.expose();
        certificates(text, lives);
        let read: Result<Value, _> = serde_saphyr::from_str(text);
        let server = read.ok().and_then(|config| {
            let server = config.pointer("/clusters/0/cluster/server")?.as_str()?;
            host(server).map(str::to_owned)
        });
        let host = server.ok_or_else(|| fault(FILE, "names no API server", AGAIN))?;
        self.hosts.insert(FILE, host);
        Ok(())
    }

    fn read_metadata(&mut self, _: &mut Vec<Life>) -> Result<(), SetFault> {
        const FILE: File = File::Metadata;
        let Some(text) = self.files.get(&FILE) else {
            return Ok(());
        };
        let read: Option<Value> = serde_json::from_str(text.expose()).ok();
        let name = read.as_ref().and_then(|read| read["clusterName"].as_str());
        let name = name.ok_or_else(|| fault(FILE, "has no clusterName", AGAIN))?;
        self.cluster = name.to_owned();
        Ok(())
    }

    /// What makes it another cluster's set.
    #[must_use]
    pub fn foreign(&self, cluster: &str, domain: &Hostname) -> Vec<SetFault> {
        let mut faults = Vec::new();
        if self.cluster != cluster {
            let problem = format!("is of the cluster {:?}, not {cluster:?}", self.cluster);
            let remedy = "import the set that was made for this definition";
            faults.push(fault(File::Metadata, problem, remedy));
        }
        for (file, host) in &self.hosts {
            let label = if *file == File::Kubeconfig {
                "api"
            } else {
                "api-int"
            };
            let wanted = format!("{label}.{cluster}.{domain}");
            if *host != wanted {
                let problem = format!("leads to {host:?}, not {wanted:?}");
                let remedy = "make the name and the domain of the definition and of install-config.yaml the same";
                faults.push(fault(*file, problem, remedy));
            }
        }
        faults
    }

    /// The CA that the machine-config server is known by, as PEM.
    #[must_use]
    pub fn machine_config_ca(&self) -> Option<String> {
        let pointer: Value = serde_json::from_str(self.file(File::Worker).expose()).ok()?;
        let named: Vec<String> = authorities(&pointer)
            .into_iter()
            .map(|(_, pem)| pem)
            .collect();
        (!named.is_empty()).then(|| named.join("\n"))
    }

    /// How long it may be used.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life
    }

    /// The content of one of its files.
    #[must_use]
    pub fn file(&self, file: File) -> &Secret<String> {
        self.files
            .get(&file)
            .expect("a set lacking a file is refused when it is read")
    }

    /// The Ignition spec of one of its configs.
    pub(super) fn version(&self, file: File) -> &str {
        self.versions.get(&file).map_or("3.2.0", String::as_str)
    }

    /// The whole set as bytes for the vault.
    #[must_use]
    pub fn seal(&self) -> Secret<Vec<u8>> {
        let files: BTreeMap<&str, &str> = self
            .files
            .iter()
            .map(|(file, text)| (file.path(), text.expose().as_str()))
            .collect();
        Secret::new(serde_json::to_vec(&files).expect("a map of texts is always JSON"))
    }

    /// A set from the vault.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn unseal(bytes: &Secret<Vec<u8>>) -> Result<Self, Vec<SetFault>> {
        let read = serde_json::from_slice(bytes.expose());
        let mut files: BTreeMap<String, String> = read.unwrap_or_default();
        Self::read(|file| files.remove(file.path()).map(Secret::new))
    }
}

/// When the certificates of a set are all valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// The latest beginning: when the set was made.
    pub made: Timestamp,
    /// The earliest end.
    pub ends: Timestamp,
}

/// What a set's age means for an install that would begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Nothing.
    Fresh,
    /// It works, and should be used now or made anew.
    Aging {
        /// Since it was made.
        hours: u64,
    },
    /// The install could not finish in time.
    TooOld {
        /// Until its first certificate ends; 0 when that is over.
        hours_left: u64,
    },
    /// Its certificates are not valid yet: a clock is wrong, here or where it was made.
    Unborn,
}

impl Age {
    /// Whether an install may begin.
    #[must_use]
    pub fn may_install(self) -> bool {
        matches!(self, Self::Fresh | Self::Aging { .. })
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => f.write_str("its certificates are fresh"),
            Self::Aging { hours } => write!(
                f,
                "its certificates are {hours} h old: begin the install now, or {AGAIN}"
            ),
            Self::TooOld { hours_left: 0 } => {
                write!(f, "its certificates have expired; {AGAIN}")
            }
            Self::TooOld { hours_left } => write!(
                f,
                "its certificates end in {hours_left} h and an install may need {INSTALL_HOURS} h; {AGAIN}"
            ),
            Self::Unborn => f.write_str(
                "its certificates are not valid yet; set the clock here and where they were made",
            ),
        }
    }
}

impl Life {
    fn of(lives: &[Self]) -> Option<Self> {
        let made = lives.iter().map(|life| life.made).max()?;
        let ends = lives.iter().map(|life| life.ends).min()?;
        Some(Self { made, ends })
    }

    /// What its age means for an install that begins at `now`.
    #[must_use]
    pub fn age(self, now: Timestamp) -> Age {
        let hours = |millis: u64| millis / 1000 / SECONDS_AN_HOUR;
        let old = hours(now.millis_since(self.made));
        if now < self.made {
            Age::Unborn
        } else if now.plus_seconds(INSTALL_HOURS * SECONDS_AN_HOUR) > self.ends {
            Age::TooOld {
                hours_left: hours(self.ends.millis_since(now)),
            }
        } else if old >= AGING_HOURS {
            Age::Aging { hours: old }
        } else {
            Age::Fresh
        }
    }
}

const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// The host of an `https` URL, without its port.
fn host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://")?;
    rest.split(['/', ':'])
        .next()
        .filter(|host| !host.is_empty())
}

/// The files that a config writes, as far as it brings their content with it: path and text.
fn payloads(config: &Value) -> Vec<(String, String)> {
    let files = config.pointer("/storage/files").and_then(Value::as_array);
    let mut found = Vec::new();
    for file in files.into_iter().flatten() {
        let path = file["path"].as_str().unwrap_or_default();
        let appended = file["append"].as_array().into_iter().flatten();
        let contents = std::iter::once(&file["contents"]).chain(appended);
        found.extend(contents.filter_map(|part| Some((path.to_owned(), data(part)?))));
    }
    found
}

/// The authorities that a config trusts for what it fetches.
fn authorities(config: &Value) -> Vec<(String, String)> {
    let listed = config
        .pointer("/ignition/security/tls/certificateAuthorities")
        .and_then(Value::as_array);
    let parts = listed.into_iter().flatten();
    parts
        .filter_map(|part| Some((String::new(), data(part)?)))
        .collect()
}

/// What a `data` URL holds (RFC 2397), inflated where the config says `gzip`, which is all that Ignition knows (spec 3.0,
/// `storage.files.contents.compression`).
fn data(resource: &Value) -> Option<String> {
    let (head, body) = resource["source"]
        .as_str()?
        .strip_prefix("data:")?
        .split_once(',')?;
    if !head.ends_with(";base64") {
        return Some(netboot::ipxe::percent_decoded(body));
    }
    let mut bytes = LENIENT.decode(body).ok()?;
    if resource["compression"].as_str() == Some("gzip") {
        bytes = inflated(&bytes).unwrap_or_default();
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a gzip member holds (RFC 1952, section 2.3); a stream that breaks off is read as far as it goes.
fn inflated(member: &[u8]) -> Option<Vec<u8>> {
    const CHECK: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let (head, mut rest) = member.split_at_checked(10)?;
    let [0x1f, 0x8b, 8, flags, ..] = *head else {
        return None;
    };
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & CHECK != 0 {
        rest = rest.get(2..)?;
    }
    let done = decompress_to_vec_with_limit(rest, INFLATED_MAX);
    Some(done.unwrap_or_else(|broken| broken.output))
}

/// Calls `look` with every PEM text that stands in base64 within another text, as in kubeconfigs and Secrets.
fn nested(text: &str, mut look: impl FnMut(&str)) {
    /// `-----BEGIN`
    const BEGIN: &str = "LS0tLS1CRUdJTi";
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let here = &rest[at..];
        let end = here
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)))
            .unwrap_or(here.len());
        if let Ok(bytes) = LENIENT.decode(&here[..end]) {
            look(&String::from_utf8_lossy(&bytes));
        }
        rest = &here[end..];
    }
}

/// The lives of all certificates in a text, in clear or in base64.
fn certificates(text: &str, lives: &mut Vec<Life>) {
    pem_lives(text, lives);
    nested(text, |inner| pem_lives(inner, lives));
}

fn pem_lives(text: &str, lives: &mut Vec<Life>) {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    for part in text.split(BEGIN).skip(1) {
        let Some((body, _)) = part.split_once("-----END CERTIFICATE-----") else {
            continue;
        };
        let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let Ok(der) = LENIENT.decode(body) else {
            continue;
        };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else {
            continue;
        };
        let validity = certificate.validity();
        let moment = |seconds: i64| {
            Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
        };
        lives.push(Life {
            made: moment(validity.not_before.timestamp()),
            ends: moment(validity.not_after.timestamp()),
        });
    }
}
