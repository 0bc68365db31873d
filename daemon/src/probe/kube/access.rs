//! How a cluster's API is reached: its CA, our certificate there, and the control planes' addresses.
//!
//! Everything is parsed at this door, so a look can fail only by what the cluster does.

use std::net::SocketAddr;
use std::sync::Arc;

use ignition::secret::Secret;
use kube::config::{Cluster, Context, Kubeconfig};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret;

use super::wire::Server;

/// A cluster's API as an administrator: no look or approval needs more than this.
#[derive(Clone, Debug)]
pub struct KubeAccess {
    pub(super) servers: Vec<Server>,
    pub(super) tls: Arc<ClientConfig>,
}

/// A CA to know a server by, where we are nobody in particular.
#[derive(Clone, Debug)]
pub struct TrustedCa(pub(super) Arc<ClientConfig>);

/// Why a cluster can't be asked. Never repeats what it was given.
#[derive(Debug, thiserror::Error)]
pub enum AccessFault {
    #[error("the cluster's CA is not a certificate in PEM")]
    Ca,
    #[error("the administrator's certificate is not one in PEM")]
    Certificate,
    #[error("the administrator's key is not one in PEM: PKCS #8, PKCS #1 or SEC1")]
    Key,
    #[error("the administrator's certificate and key can't be used together")]
    Identity(#[source] rustls::Error),
    #[error("{0:?} is neither a host name nor an address that a certificate may bear")]
    Name(String),
    #[error("this kubeconfig {0}")]
    Kubeconfig(&'static str),
}

impl Server {
    /// A server at an address, whose certificate must bear a name.
    ///
    /// # Errors
    /// [`AccessFault::Name`]
    pub fn new(address: SocketAddr, name: &str) -> Result<Self, AccessFault> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| AccessFault::Name(name.chars().take(64).collect()))?;
        Ok(Self { address, name })
    }
}

impl TrustedCa {
    /// From certificates in PEM.
    ///
    /// # Errors
    /// [`AccessFault::Ca`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, AccessFault> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|_| AccessFault::Ca)?;
        let config = builder.with_root_certificates(roots(pem)?);
        Ok(Self(Arc::new(config.with_no_client_auth())))
    }

    /// The CA of the cluster that a kubeconfig opens.
    ///
    /// # Errors
    /// [`AccessFault`], for what isn't what it should be.
    pub fn from_kubeconfig(text: &Secret<Vec<u8>>) -> Result<Self, AccessFault> {
        let config = read(text)?;
        Self::from_pem(&authority(current(&config)?.0)?)
    }

    /// How a connection to it begins.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

impl KubeAccess {
    /// The API of the cluster with this CA, by the administrator's certificate and key, all in PEM.
    ///
    /// # Errors
    /// [`AccessFault`], for what isn't what it should be.
    pub fn new(
        ca: &[u8],
        certificate: &[u8],
        key: &Secret<Vec<u8>>,
        servers: Vec<Server>,
    ) -> Result<Self, AccessFault> {
        let roots = roots(ca)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or(AccessFault::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| AccessFault::Key)?;
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(AccessFault::Identity)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(AccessFault::Identity)?;
        Ok(Self {
            servers,
            tls: Arc::new(tls),
        })
    }

    /// What an administrator's kubeconfig says, asked at these addresses instead of the one it names: that one is the
    /// cluster's endpoint, which balances over them. Certificates must be in it, not in files beside it.
    ///
    /// # Errors
    /// [`AccessFault`], for what isn't what it should be.
    pub fn from_kubeconfig(
        text: &Secret<Vec<u8>>,
        addresses: &[SocketAddr],
    ) -> Result<Self, AccessFault> {
        let wrong = AccessFault::Kubeconfig;
        let config = read(text)?;
        let (cluster, context) = current(&config)?;
        let user = config.auth_infos.iter();
        let user = user.filter(|user| Some(&user.name) == context.user.as_ref());
        let user = user.filter_map(|named| named.auth_info.as_ref()).next();
        let user = user.ok_or_else(|| wrong("lacks its context's user"))?;
        let ca = authority(cluster)?;
        let certificate = decoded(user.client_certificate_data.as_deref());
        let certificate = certificate
            .ok_or_else(|| wrong("embeds no certificate of a user (client-certificate-data)"))?;
        let key = user.client_key_data.as_ref();
        let key = decoded(key.map(ExposeSecret::expose_secret));
        let key = key.ok_or_else(|| wrong("embeds no key of a user (client-key-data)"))?;
        let named = cluster.tls_server_name.clone();
        let host = cluster.server.as_deref().and_then(host_of);
        let name = named
            .or(host)
            .ok_or_else(|| wrong("names no https server"))?;
        let servers = addresses.iter().map(|&address| Server::new(address, &name));
        let servers = servers.collect::<Result<_, _>>()?;
        Self::new(&ca, &certificate, &Secret::new(key), servers)
    }

    /// The same access to other control planes: one was added, or the bootstrap node left.
    #[must_use]
    pub fn at(&self, servers: Vec<Server>) -> Self {
        Self {
            servers,
            tls: Arc::clone(&self.tls),
        }
    }
}

fn read(text: &Secret<Vec<u8>>) -> Result<Kubeconfig, AccessFault> {
    let wrong = AccessFault::Kubeconfig;
    let text = str::from_utf8(text.expose()).map_err(|_| wrong("is not text"))?;
    // The parser's own words show the line, which may be the key's.
    Kubeconfig::from_yaml(text).map_err(|_| wrong("is not YAML of its kind"))
}

/// The cluster that is meant unless another is asked for.
fn current(config: &Kubeconfig) -> Result<(&Cluster, &Context), AccessFault> {
    let wrong = AccessFault::Kubeconfig;
    let wanted = config.current_context.as_deref().unwrap_or_default();
    let named = config
        .contexts
        .iter()
        .find(|context| context.name == wanted);
    let context = named.and_then(|named| named.context.as_ref());
    let context = context.ok_or_else(|| wrong("has no current context"))?;
    let cluster = config.clusters.iter();
    let cluster = cluster.filter(|cluster| cluster.name == context.cluster);
    let cluster = cluster.filter_map(|named| named.cluster.as_ref()).next();
    let cluster = cluster.ok_or_else(|| wrong("lacks its context's cluster"))?;
    Ok((cluster, context))
}

fn authority(cluster: &Cluster) -> Result<Vec<u8>, AccessFault> {
    let embedded = decoded(cluster.certificate_authority_data.as_deref());
    embedded.ok_or(AccessFault::Kubeconfig(
        "embeds no CA (certificate-authority-data)",
    ))
}

fn decoded(text: Option<&str>) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(text?.trim())
        .ok()
}

/// The host of an https URL, an IPv6 address without its brackets.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https"))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    Some(bare.to_owned())
}

/// Always handed over by hand: a process-wide default may be set twice, or by somebody else.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, AccessFault> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| AccessFault::Ca)?;
        roots.add(certificate).map_err(|_| AccessFault::Ca)?;
    }
    if roots.is_empty() {
        return Err(AccessFault::Ca);
    }
    Ok(roots)
}
