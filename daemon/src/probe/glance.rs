//! One `GET` of which only the answer's status counts, of servers whose certificates nobody here can judge.
//!
//! For looks alone: they send nothing that is secret, and believe nothing but whether somebody serves.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

/// Of an answer, the part that is read: its status line is at its beginning.
const ANSWER: u64 = 1024;

/// Asks over a connection, and hangs up after the first line of the answer: its status, or nothing where it is no HTTP.
///
/// # Errors
/// The connection broke before that line was there.
pub(crate) async fn glance(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &impl fmt::Display,
    path: &str,
) -> io::Result<Option<u16>> {
    let question = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: reveille\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(question.as_bytes()).await?;
    stream.flush().await?;
    let (answer, read) = first_line(stream).await;
    match status(&answer) {
        None => read.map(|()| None),
        some => Ok(some),
    }
}

/// An answer up to the end of its first line at least, and how reading it ended. Not every server closes when it is asked to,
/// and the end may come without TLS' own goodbye: what came before it counts.
async fn first_line(stream: impl AsyncRead + Unpin) -> (Vec<u8>, io::Result<()>) {
    let (mut stream, mut answer) = (stream.take(ANSWER), Vec::new());
    let read = loop {
        match stream.read_buf(&mut answer).await {
            Ok(0) => break Ok(()),
            Ok(_) if answer.contains(&b'\n') => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    (answer, read)
}

/// The status of an answer (RFC 9112, section 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.")?;
    let digits = line.get(2..5)?;
    matches!(line.get(5), None | Some(b' ' | b'\r'))
        .then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

/// A client of TLS that takes any certificate.
///
/// # Errors
/// None, with a provider that has TLS 1.3.
pub(crate) fn untrusting() -> Result<TlsConnector, rustls::Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier = Arc::new(Anybody(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_whatever_parts_it_comes_in_and_though_the_server_does_not_close() {
        let (mut server, client) = tokio::io::duplex(64);
        let reading = tokio::spawn(first_line(client));
        for part in ["HTTP/1.1 2", "00 OK\r\n"] {
            server.write_all(part.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (answer, read) = reading.await.unwrap();
        read.unwrap();
        assert_eq!(status(&answer), Some(200));
        drop(server);
    }

    #[test]
    fn only_a_whole_status_line_has_a_status() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503 Service Unavailable\r\n"), Some(503));
        for other in [
            &b"HTTP/1.1 20"[..],
            b"HTTP/2 200",
            b"SSH-2.0-x",
            b"",
            b"HTTP/1.1 2000",
        ] {
            assert_eq!(status(other), None);
        }
    }
}
