//! The secrets of a Talos cluster, made as `talosctl gen secrets` makes them (siderolabs/talos,
//! pkg/machinery/config/generate/secrets/bundle.go and ca.go), and the certificates of its administrators.
//!
//! | what | key | subject | for |
//! |---|---|---|---|
//! | CA of etcd | ECDSA P-256 | `O=etcd` | 87600 h |
//! | CA of Kubernetes | ECDSA P-256 | `O=kubernetes` | 87600 h |
//! | CA of the aggregation layer | ECDSA P-256 | `CN=front-proxy` | 87600 h |
//! | CA of Talos' API | Ed25519 | `O=talos` | 87600 h |
//! | service accounts | RSA 4096, no certificate | | |
//! | administrator of Talos | Ed25519 | `O=os:admin` | 8760 h |
//! | administrator of Kubernetes | ECDSA P-256 | `O=system:masters, CN=admin` | 8760 h |

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use ignition::platform::talos::{Bundle, BundleFault, Certified, Encryption, pem};
use ignition::secret::Secret;
use netboot::net::Timestamp;
use rcgen::{DnType, PublicKeyData as _};
use rsa::RsaPrivateKey;
use rsa::pkcs1::EncodeRsaPrivateKey as _;
use rsa::rand_core::OsRng;
use x509_parser::parse_x509_certificate;

use super::{Key, MintError, name, signing_pair, symbols};
use crate::tls;

/// `CAValidityTime`.
const AUTHORITY_LASTS: Duration = Duration::from_secs(87_600 * 3600);
/// `TalosAPIDefaultCertificateValidityDuration`.
const ADMIN_LASTS: Duration = Duration::from_secs(8760 * 3600);
/// Of the service accounts' key.
const RSA_BITS: usize = 4096;

/// Makes the secrets of a new cluster. Finding the primes takes seconds: not for a thread that serves others.
///
/// # Errors
/// A key or certificate that could not be made.
pub fn bundle(now: Timestamp) -> Result<Bundle, MintError> {
    let authority = |key: Key, subject, parts: &[(DnType, &str)]| {
        key.authority(subject, name(parts), now, AUTHORITY_LASTS)
    };
    let organisation = DnType::OrganizationName;
    Ok(Bundle {
        cluster_id: URL_SAFE.encode(tls::random::<32>()),
        cluster_secret: Secret::new(STANDARD.encode(tls::random::<32>())),
        bootstrap_token: token(),
        encryption: Encryption::Secretbox(Secret::new(STANDARD.encode(tls::random::<32>()))),
        trustd_token: token(),
        etcd: authority(Key::ecdsa()?, "etcd", &[(organisation.clone(), "etcd")])?,
        kubernetes: authority(
            Key::ecdsa()?,
            "Kubernetes",
            &[(organisation.clone(), "kubernetes")],
        )?,
        aggregator: authority(
            Key::ecdsa()?,
            "the aggregation layer",
            &[(DnType::CommonName, "front-proxy")],
        )?,
        service_account: service_account()?,
        os: authority(Key::ed25519()?, "Talos", &[(organisation, "talos")])?,
    })
}

/// A certificate that opens Talos' API as its administrator.
///
/// # Errors
/// An imported CA whose key can't sign here.
pub fn admin(bundle: &Bundle, now: Timestamp) -> Result<Certified, MintError> {
    let subject = name(&[(DnType::OrganizationName, "os:admin")]);
    Key::ed25519()?.client(
        "Talos' administrator",
        subject,
        now,
        ADMIN_LASTS,
        &bundle.os,
    )
}

/// A certificate that opens the API of Kubernetes as its administrator.
///
/// # Errors
/// An imported CA whose key can't sign here.
pub fn kubernetes_admin(bundle: &Bundle, now: Timestamp) -> Result<Certified, MintError> {
    let subject = name(&[
        (DnType::OrganizationName, "system:masters"),
        (DnType::CommonName, "admin"),
    ]);
    let ca = &bundle.kubernetes;
    Key::ecdsa()?.client("Kubernetes' administrator", subject, now, ADMIN_LASTS, ca)
}

/// What no node would find out in time: a CA of the bundle whose certificate is another key's, is no CA's, or has expired.
#[must_use]
pub fn inspect(bundle: &Bundle, now: Timestamp) -> Vec<BundleFault> {
    let now = i64::try_from(now.millis() / 1000).unwrap_or(i64::MAX);
    let authorities = [
        ("etcd", &bundle.etcd),
        ("k8s", &bundle.kubernetes),
        ("k8saggregator", &bundle.aggregator),
        ("os", &bundle.os),
    ];
    let mut faults = Vec::new();
    for (key, authority) in authorities {
        if let Err((part, problem, remedy)) = judge(authority, now) {
            faults.push(BundleFault {
                line: None,
                key: format!("certs.{key}.{part}"),
                problem: problem.to_owned(),
                remedy,
            });
        }
    }
    let parsed = signing_pair(&bundle.service_account);
    // An ECDSA key of any curve may sign tokens, and only P-256 is read here.
    if parsed.is_none() && !bundle.service_account.expose().contains(pem::EC_KEY) {
        faults.push(BundleFault {
            line: None,
            key: "certs.k8sserviceaccount.key".to_owned(),
            problem: "is no private key".to_owned(),
            remedy: "take it from the file that `talosctl gen secrets` wrote",
        });
    }
    faults
}

type Judged = Result<(), (&'static str, &'static str, &'static str)>;

fn judge(authority: &Certified, now: i64) -> Judged {
    let renew = "rotate the CA with `talosctl rotate-ca`, then import the new secrets";
    let again = "take both from one file that `talosctl gen secrets` wrote";
    let Some(pair) = signing_pair(&authority.key) else {
        return Err(("key", "is no private key that can sign here", again));
    };
    let der = pem::decode(&authority.certificate).map(|(_, der)| der);
    let parsed = der
        .as_ref()
        .and_then(|der| parse_x509_certificate(der.expose()).ok());
    let Some((_, certificate)) = parsed else {
        return Err(("crt", "is no certificate", again));
    };
    if certificate.public_key().subject_public_key.data != pair.der_bytes() {
        return Err(("key", "is not the key of the certificate beside it", again));
    }
    if !certificate.is_ca() {
        return Err(("crt", "may not sign other certificates", again));
    }
    if certificate.validity().not_after.timestamp() <= now {
        return Err(("crt", "has expired", renew));
    }
    Ok(())
}

fn token() -> Secret<String> {
    Secret::new(format!("{}.{}", symbols(6), symbols(16)))
}

fn service_account() -> Result<Secret<String>, MintError> {
    let key = RsaPrivateKey::new(&mut OsRng, RSA_BITS).map_err(MintError::Rsa)?;
    let der = key.to_pkcs1_der().map_err(|_| MintError::Form)?;
    Ok(Secret::new(pem::encode(pem::RSA_KEY, der.as_bytes())))
}
