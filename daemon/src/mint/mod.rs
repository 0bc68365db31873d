//! Makes the keys, certificates and tokens that clusters begin with. What they must look like is `ignition`'s to say; here
//! are the randomness and the clock.
//!
//! Certificates begin an hour before they are made: machines' clocks are not quite the bastion's.

pub mod k3s;
pub mod talos;

use std::time::{Duration, UNIX_EPOCH};

use ignition::platform::talos::{Certified, pem};
use ignition::secret::Secret;
use netboot::net::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::tls;

/// How far clocks may be apart.
const SKEW: Duration = Duration::from_secs(3600);
/// What tokens are made of.
const SYMBOLS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why keys or certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    #[error("making the certificate of {subject}")]
    Certificate {
        subject: &'static str,
        source: rcgen::Error,
    },
    #[error("making an RSA key")]
    Rsa(#[source] rsa::Error),
    #[error("writing a key as PEM: it is not of the form that is expected of its kind")]
    Form,
    #[error(
        "using the key of {0}: it is of no kind that can sign here; import another secrets bundle"
    )]
    Authority(&'static str),
}

/// A private key: what signs, and what is written.
struct Key {
    pair: KeyPair,
    pem: Secret<String>,
}

impl Key {
    /// ECDSA on P-256.
    fn ecdsa() -> Result<Self, MintError> {
        let pair = KeyPair::generate().map_err(|source| MintError::Certificate {
            subject: "a new key",
            source,
        })?;
        let sec1 = pem::p256_sec1(pair.serialized_der()).ok_or(MintError::Form)?;
        let pem = Secret::new(pem::encode(pem::EC_KEY, sec1.expose()));
        Ok(Self { pair, pem })
    }

    fn ed25519() -> Result<Self, MintError> {
        let seed = Secret::new(tls::random::<32>());
        let der = pem::ed25519(seed.expose());
        let pair = pair(der.expose()).ok_or(MintError::Form)?;
        let pem = Secret::new(pem::encode(pem::ED25519_KEY, der.expose()));
        Ok(Self { pair, pem })
    }

    /// The certificate of this key, signed by itself.
    fn authority(
        self,
        subject: &'static str,
        name: DistinguishedName,
        now: Timestamp,
        lasting: Duration,
    ) -> Result<Certified, MintError> {
        let mut params = params(name, now, lasting);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params
            .self_signed(&self.pair)
            .map_err(|source| MintError::Certificate { subject, source })?;
        Ok(Certified {
            certificate: pem::encode(pem::CERTIFICATE, certificate.der()),
            key: self.pem,
        })
    }

    /// The certificate of this key for a client, signed by an authority.
    fn client(
        self,
        subject: &'static str,
        name: DistinguishedName,
        now: Timestamp,
        lasting: Duration,
        authority: &Certified,
    ) -> Result<Certified, MintError> {
        let fault = |source| MintError::Certificate { subject, source };
        let signing = signing_pair(&authority.key).ok_or(MintError::Authority(subject))?;
        let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signing).map_err(fault)?;
        let mut params = params(name, now, lasting);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.pair, &issuer).map_err(fault)?;
        Ok(Certified {
            certificate: pem::encode(pem::CERTIFICATE, certificate.der()),
            key: self.pem,
        })
    }
}

fn params(name: DistinguishedName, now: Timestamp, lasting: Duration) -> CertificateParams {
    let from = UNIX_EPOCH + Duration::from_millis(now.millis()).saturating_sub(SKEW);
    let mut serial = tls::random::<16>();
    // RFC 5280, section 4.1.2.2: a positive number.
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = from.into();
    params.not_after = (from + lasting).into();
    params
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, text) in parts {
        name.push(kind.clone(), *text);
    }
    name
}

fn pair(pkcs8: &[u8]) -> Option<KeyPair> {
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8)).ok()
}

/// The key behind PEM of any kind that Talos writes.
fn signing_pair(key: &Secret<String>) -> Option<KeyPair> {
    use rsa::pkcs1::DecodeRsaPrivateKey as _;
    use rsa::pkcs8::EncodePrivateKey as _;
    if let Some(der) = pem::pkcs8(key.expose()) {
        return pair(der.expose());
    }
    let rsa = rsa::RsaPrivateKey::from_pkcs1_pem(key.expose()).ok()?;
    pair(rsa.to_pkcs8_der().ok()?.as_bytes())
}

/// Letters and digits that nobody can guess.
fn symbols(count: usize) -> String {
    // 252 is the largest multiple of 36 in a byte: what is above would make some symbols likelier.
    std::iter::repeat_with(tls::random::<64>)
        .flatten()
        .filter(|byte| *byte < 252)
        .map(|byte| char::from(SYMBOLS[usize::from(byte) % SYMBOLS.len()]))
        .take(count)
        .collect()
}
