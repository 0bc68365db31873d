//! A fake Talos, since the apid of a real machine can't be had here: mutual TLS by a cluster's OS authority, gRPC, and
//! whatever answers a test gives it. It has no logic of its own, so what it proves is our side of the wire.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use daemon::probe::talos::wire::{
    EtcdMember, EtcdMembers, MachineStatus, Readiness, Reply, Resource, ResourceReply,
    ServiceEvent, ServiceEvents, ServiceHealth, ServiceInfo, ServiceList, Spec, Stage, Version,
    VersionInfo,
};
use daemon::probe::talos::{Access, PORT};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ignition::platform::talos::Certified;
use ignition::secret::Secret;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto};
use tokio_rustls::TlsAcceptor;

use crate::background::Background;
use crate::netns::Netns;

/// The OS authority of one cluster: Ed25519, O=talos (siderolabs/talos `pkg/machinery/config/generate/secrets/ca.go`).
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Authority {
    fn default() -> Self {
        let key = ed25519();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "talos");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
        ];
        let certificate = params.self_signed(&key).expect("a self-signed authority");
        Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }
}

impl Authority {
    /// One that is there already.
    pub fn of(certified: &Certified) -> Self {
        let key = certified.key.expose();
        let key = key.replace("ED25519 PRIVATE KEY", "PRIVATE KEY");
        let key = KeyPair::from_pem(&key).expect("a key");
        let pem = certified.certificate.clone();
        Self {
            issuer: Issuer::from_ca_cert_pem(&pem, key).expect("a certificate"),
            pem,
        }
    }

    /// The administrator's certificate and key, as a talosconfig holds them.
    pub fn administrator(&self) -> (String, Secret<String>) {
        let key = ed25519();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "os:admin");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.expect("a certificate of the administrator");
        let key = key.serialize_pem();
        let key = key.replace("PRIVATE KEY", "ED25519 PRIVATE KEY");
        (certificate.pem(), Secret::new(key))
    }

    pub fn access(&self) -> Access {
        let (certificate, key) = self.administrator();
        Access::new(&self.pem, &certificate, &key).expect("what an authority made fits")
    }

    /// A node's server, which takes clients of this authority only.
    fn server(&self, address: IpAddr) -> TlsAcceptor {
        let key = ed25519();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer);
        let chain = vec![certificate.expect("a node's certificate").der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a PKCS #8 key");
        let provider = Arc::new(crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.pem.as_bytes());
        roots
            .add(authority.expect("a certificate"))
            .expect("an authority");
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let clients = clients.build().expect("a verifier of clients");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .expect("key and certificate fit");
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

fn ed25519() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("a key")
}

/// What the fake says to one call.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Messages, and that all is well.
    Messages(Vec<Vec<u8>>),
    /// A gRPC status that is not well: its code and words.
    Status(u16, &'static str),
    /// Nothing, ever.
    Silence,
}

impl Answer {
    /// One message.
    pub fn of(message: &impl Message) -> Self {
        Self::Messages(vec![message.encode_to_vec()])
    }
}

/// The answers to each method, in order; the last one again and again.
type Answers = BTreeMap<&'static str, Vec<Answer>>;

/// One node's apid. Dropping it closes its socket and all its connections.
pub struct FakeTalos {
    pub address: SocketAddr,
    calls: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<Answers>>,
    _background: Background,
}

impl FakeTalos {
    /// A node on loopback that says to each method what it is given, and `Unimplemented` to others. Its certificate is for
    /// `named`.
    pub fn start(
        authority: &Authority,
        named: IpAddr,
        answers: impl IntoIterator<Item = (&'static str, Vec<Answer>)>,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port on loopback");
        Self::on(
            listener,
            authority.server(named),
            answers.into_iter().collect(),
        )
    }

    /// A node on loopback that is what it says it is.
    pub fn honest(
        authority: &Authority,
        answers: impl IntoIterator<Item = (&'static str, Vec<Answer>)>,
    ) -> Self {
        Self::start(authority, Ipv4Addr::LOCALHOST.into(), answers)
    }

    /// The same at an address of a namespace, on apid's port.
    pub fn at(
        netns: &Netns,
        authority: &Authority,
        address: Ipv4Addr,
        answers: impl IntoIterator<Item = (&'static str, Vec<Answer>)>,
    ) -> Self {
        let (tls, answers) = (
            authority.server(address.into()),
            answers.into_iter().collect(),
        );
        netns.run(move || {
            let listener = TcpListener::bind((address, PORT)).expect("an address of its own");
            Self::on(listener, tls, answers)
        })
    }

    fn on(listener: TcpListener, tls: TlsAcceptor, answers: Answers) -> Self {
        let address = listener.local_addr().expect("it is bound");
        listener
            .set_nonblocking(true)
            .expect("a socket can be told");
        let calls = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(answers));
        let (heard, given) = (Arc::clone(&calls), Arc::clone(&answers));
        Self {
            address,
            calls,
            answers,
            _background: Background::start(move || serve(listener, tls, heard, given)),
        }
    }

    /// Says this from now on, whatever it was to say to these methods.
    pub fn say(&self, answers: impl IntoIterator<Item = (&'static str, Vec<Answer>)>) {
        let mut given = self.answers.lock().expect("no caller panics");
        given.extend(answers);
    }

    /// The methods that were called, in order.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no caller panics").clone()
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    heard: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<Answers>>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, heard) = (tls.clone(), Arc::clone(&heard));
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            // A client that does not like us, or that we don't like, is gone here.
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let answer = service_fn(|request: Request<Incoming>| {
                answer(request, Arc::clone(&heard), Arc::clone(&answers))
            });
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    heard: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<Answers>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    let method = method.to_owned();
    heard.lock().expect("no caller panics").push(method.clone());
    let answer = {
        let mut answers = answers.lock().expect("no caller panics");
        let given = answers.get_mut(method.as_str());
        given.and_then(|given| match given.len() {
            0 | 1 => given.first().cloned(),
            _ => Some(given.remove(0)),
        })
    };
    let response = Response::builder().header("content-type", "application/grpc");
    let (status, words, messages) = match answer {
        Some(Answer::Messages(messages)) => (0, "", messages),
        Some(Answer::Status(code, words)) => (code, words, Vec::new()),
        Some(Answer::Silence) => std::future::pending().await,
        None => (12, "no such method", Vec::new()),
    };
    let mut body = BytesMut::new();
    for message in &messages {
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).expect("a message of a test"));
        body.put_slice(message);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    let words = HeaderValue::from_str(words).expect("words of a test");
    trailers.insert("grpc-message", words);
    let body = Full::new(body.freeze()).with_trailers(async { Some(Ok(trailers)) });
    Ok(response.body(body.boxed()).expect("a sound response"))
}

/// What a node says that is as it should be: a member of an etcd of these, or a worker.
pub fn sound(etcd: &[EtcdMember]) -> Vec<(&'static str, Vec<Answer>)> {
    let service = |id: &str| ServiceInfo {
        id: id.to_owned(),
        state: "Running".to_owned(),
        events: Some(ServiceEvents {
            events: ["Starting", "Running"]
                .map(|state| ServiceEvent {
                    msg: "said".to_owned(),
                    state: state.to_owned(),
                })
                .into(),
        }),
        health: Some(ServiceHealth {
            unknown: false,
            healthy: true,
            last_message: String::new(),
        }),
    };
    let services = match etcd {
        [] => &["apid", "kubelet"][..],
        _ => &["apid", "etcd", "kubelet", "trustd"],
    };
    let status = MachineStatus {
        stage: Stage::Running.into(),
        status: Some(Readiness {
            ready: true,
            unmet_conditions: Vec::new(),
        }),
    };
    let version = Version {
        metadata: None,
        version: Some(VersionInfo {
            tag: "v1.12.0".to_owned(),
        }),
    };
    let services = ServiceList {
        metadata: None,
        services: services.iter().map(|id| service(id)).collect(),
    };
    let members = EtcdMembers {
        metadata: None,
        members: etcd.to_vec(),
    };
    vec![
        ("Version", vec![reply(version)]),
        ("ServiceList", vec![reply(services)]),
        ("Get", vec![Answer::of(&resource(&status))]),
        ("List", vec![Answer::Messages(Vec::new())]),
        ("EtcdMemberList", vec![reply(members)]),
    ]
}

/// A reply with one message.
pub fn reply<M: Message + Default + std::fmt::Debug>(message: M) -> Answer {
    Answer::of(&Reply {
        messages: vec![message],
    })
}

/// A resource as the node's state gives it.
pub fn resource(spec: &impl Message) -> ResourceReply {
    ResourceReply {
        resource: Some(Resource {
            spec: Some(Spec {
                proto_spec: spec.encode_to_vec(),
            }),
        }),
    }
}

/// A voting member of etcd at this address.
pub fn member(id: u64, address: IpAddr) -> EtcdMember {
    EtcdMember {
        id,
        hostname: format!("cp-{id}"),
        peer_urls: vec![format!("https://{address}:2380")],
        is_learner: false,
    }
}
