//! The site's own certificate authority and what it vouches for: the bastion, at its addresses on
//! the provisioning links.
//!
//! The CA lives in one file of the state directory, key and certificate together, so that there is
//! never half of it. Server certificates are made when a place is listened on and kept nowhere.
//!
//! Ugly fact: a machine without a battery for its clock boots in 1970, and Ignition checks dates.
//! So nothing here begins later than that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, crypto};
use tokio_rustls::TlsAcceptor;

const FILE: &str = "site-ca.pem";

/// The certificate authority of this site.
pub struct SiteCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// When a certificate may be used, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: i64,
    /// Not after.
    pub until: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{act} {path}: look at the state directory's owner and free space")]
    File {
        act: &'static str,
        path: String,
        source: io::Error,
    },
    #[error(
        "reading the site's CA in {path}: restore it from a backup, or move it away and boot every machine that trusts it anew"
    )]
    Unreadable { path: String, source: rcgen::Error },
    #[error("reading the dates of the site's CA: {0}")]
    Dates(String),
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
    #[error("putting a certificate to use")]
    Use(#[from] rustls::Error),
}

impl SiteCa {
    /// Opens the CA in a directory, or makes it there.
    pub fn open(directory: &Path) -> Result<Self, TlsError> {
        let path = directory.join(FILE);
        let shown = path.display().to_string();
        let fault = |act| {
            let path = shown.clone();
            move |source| TlsError::File { act, path, source }
        };
        fs::create_dir_all(directory).map_err(fault("making the directory of"))?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = make_ca()?;
                write_secret(&path, &text).map_err(fault("writing"))?;
                text
            }
            Err(error) => return Err(fault("reading")(error)),
        };
        let unreadable = |source| TlsError::Unreadable {
            path: shown.clone(),
            source,
        };
        let split = text.find("-----BEGIN CERTIFICATE-----");
        let (key, certificate) = text.split_at(split.unwrap_or(text.len()));
        let key = KeyPair::from_pem(key).map_err(unreadable)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(unreadable)?;
        Ok(Self {
            issuer,
            certificate: certificate.to_owned(),
        })
    }

    /// Opens the CA in a directory, if one was ever made there.
    pub fn existing(directory: &Path) -> Result<Option<Self>, TlsError> {
        if directory.join(FILE).exists() {
            Self::open(directory).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The CA's certificate, for machines to trust.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.certificate
    }

    /// When the CA's certificate may be used, and with it every certificate that it signed.
    pub fn validity(&self) -> Result<Validity, TlsError> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|error| TlsError::Dates(error.to_string()))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| TlsError::Dates(error.to_string()))?;
        let validity = certificate.validity();
        Ok(Validity {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    /// A TLS server that is the bastion at this address.
    pub fn acceptor(&self, address: IpAddr) -> Result<TlsAcceptor, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params
            .distinguished_name
            .push(DnType::CommonName, "Reveille");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        lasting(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .expect("a key that was just made is PKCS #8");
        let chain = vec![
            certificate.der().clone(),
            CertificateDer::from_pem_slice(self.certificate.as_bytes())
                .expect("the CA's certificate was parsed when it was opened"),
        ];
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Bytes that nobody can guess.
#[must_use]
pub fn random<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    let filled = crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes);
    filled.expect("the kernel gives random bytes once the machine is up");
    bytes
}

/// Always handed over by hand: a process-wide default may be set twice, or by somebody else.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

fn make_ca() -> Result<String, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Reveille site CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    lasting(&mut params);
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

/// Valid from the first second of any machine's clock to the last year that UTCTime can say
/// (RFC 5280, section 4.1.2.5).
fn lasting(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path
        .parent()
        .expect("a file in the state directory has a parent");
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_ca_stays_the_same_and_its_key_stays_with_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = SiteCa::open(directory.path()).expect("made");
        let again = SiteCa::open(directory.path()).expect("opened");
        assert_eq!(first.pem(), again.pem());
        assert!(!first.pem().contains("PRIVATE"));
        let validity = first.validity().expect("dates");
        assert_eq!((validity.from, validity.until / 31_556_952), (0, 79));
        let mode = fs::metadata(directory.path().join(FILE))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        again
            .acceptor("10.107.0.1".parse().expect("an address"))
            .expect("a server");
    }

    #[test]
    fn a_damaged_ca_is_named_and_not_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        SiteCa::open(directory.path()).expect("made");
        let path = directory.path().join(FILE);
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, &text[..text.len() / 2]).expect("written");
        assert!(matches!(
            SiteCa::open(directory.path()),
            Err(TlsError::Unreadable { .. })
        ));
        assert_eq!(
            fs::read_to_string(&path).expect("read").len(),
            text.len() / 2
        );
    }
}
