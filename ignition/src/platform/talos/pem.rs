//! Private keys as Talos writes and reads them.
//!
//! | key | PEM label | bytes |
//! |---|---|---|
//! | ECDSA P-256 | `EC PRIVATE KEY` | SEC 1 with the curve's name (RFC 5915) |
//! | Ed25519 | `ED25519 PRIVATE KEY` | PKCS #8, version 1 (RFC 8410, section 7) |
//! | RSA | `RSA PRIVATE KEY` | PKCS #1 (RFC 8017, appendix A.1.2) |
//!
//! From siderolabs/crypto, x509/constants.go and x509/key.go. It also reads `PRIVATE KEY`, which is PKCS #8 whatever the kind.
//!
//! Ugly fact: no other program knows the label of Ed25519, so most readers of PEM pass such a key over. [`pkcs8`] gives
//! them the bytes they want.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secret::Secret;

/// The label of a certificate.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// The label of an ECDSA key.
pub const EC_KEY: &str = "EC PRIVATE KEY";
/// The label of an Ed25519 key.
pub const ED25519_KEY: &str = "ED25519 PRIVATE KEY";
/// The label of an RSA key.
pub const RSA_KEY: &str = "RSA PRIVATE KEY";
/// The label of any key in PKCS #8.
pub const PKCS8_KEY: &str = "PRIVATE KEY";

/// SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING of 32 bytes follows.
const ED25519_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// INTEGER 0, SEQUENCE { id-ecPublicKey, prime256v1 }.
const P256_ALGORITHM: [u8; 24] = [
    0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
    0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// SEQUENCE { INTEGER 1, OCTET STRING of 32 bytes follows.
const P256_SEC1_HEAD: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
/// [0] { prime256v1 }, [1] { BIT STRING of 65 bytes follows.
const P256_SEC1_MIDDLE: [u8; 17] = [
    0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0xa1, 0x44, 0x03, 0x42,
    0x00,
];

/// Bytes as PEM (RFC 7468): lines of 64 characters, each with its end.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + "-----END " + label + "-----\n"
}

/// The label and the bytes of a text that is one PEM block holding one DER sequence, and nothing else.
#[must_use]
pub fn decode(text: &str) -> Option<(&str, Secret<Vec<u8>>)> {
    let inside = text.trim().strip_prefix("-----BEGIN ")?;
    let (label, inside) = inside.split_once("-----")?;
    let inside = inside.strip_suffix("-----")?;
    let (body, end) = inside.rsplit_once("-----END ")?;
    let body = Secret::new(body.split_ascii_whitespace().collect::<String>());
    let der = Secret::new(STANDARD.decode(body.expose()).ok()?);
    (label == end && is_sequence(der.expose())).then_some((label, der))
}

/// Whether the bytes are one DER SEQUENCE to their very end.
fn is_sequence(der: &[u8]) -> bool {
    let [0x30, first, rest @ ..] = der else {
        return false;
    };
    match first {
        0..=0x7f => rest.len() == usize::from(*first),
        0x81..=0x83 => {
            let count = usize::from(first & 0x7f);
            let Some((length, body)) = rest.split_at_checked(count) else {
                return false;
            };
            let length = length
                .iter()
                .fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte));
            body.len() == length
        }
        _ => false,
    }
}

/// An Ed25519 key of its 32 bytes of seed, as PKCS #8.
#[must_use]
pub fn ed25519(seed: &[u8; 32]) -> Secret<Vec<u8>> {
    Secret::new([&ED25519_HEAD[..], seed].concat())
}

/// A P-256 key as SEC 1, out of PKCS #8 as ring writes it: the private number, then the public point.
/// `None` when the bytes are something else.
#[must_use]
pub fn p256_sec1(pkcs8: &[u8]) -> Option<Secret<Vec<u8>>> {
    let inside = pkcs8.strip_prefix(&[0x30, 0x81, 0x87])?;
    let inside = inside.strip_prefix(&P256_ALGORITHM)?;
    let inside = inside.strip_prefix(&[0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20])?;
    let (number, inside) = inside.split_at_checked(32)?;
    let point = inside.strip_prefix(&P256_SEC1_MIDDLE[12..])?;
    let whole = [&P256_SEC1_HEAD[..], number, &P256_SEC1_MIDDLE, point].concat();
    (point.len() == 65).then(|| Secret::new(whole))
}

/// A private key's bytes as PKCS #8, for readers that know nothing else. `None` for RSA in PKCS #1, for an ECDSA key of
/// another curve, and for what is no key.
#[must_use]
pub fn pkcs8(text: &str) -> Option<Secret<Vec<u8>>> {
    let (label, der) = decode(text)?;
    match label {
        ED25519_KEY | PKCS8_KEY => Some(der),
        EC_KEY => {
            let sec1 = der.expose();
            let of_p256 = sec1.len() == 121 && sec1.starts_with(&P256_SEC1_HEAD);
            let head = [0x30, 0x81, 0x93];
            let wrapped = [&head[..], &P256_ALGORITHM, &[0x04, 0x79], sec1].concat();
            of_p256.then(|| Secret::new(wrapped))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_p256_key_survives_the_way_to_sec1_and_back() {
        let inner = [
            &[0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20][..],
            &[7; 32],
            &[0xa1, 0x44, 0x03, 0x42, 0x00],
            &[4; 65],
        ]
        .concat();
        let ring = [
            &[0x30, 0x81, 0x87][..],
            &P256_ALGORITHM,
            &[0x04, 0x6d],
            &inner,
        ]
        .concat();
        let sec1 = p256_sec1(&ring).expect("ring's form");
        assert_eq!(sec1.expose().len(), 121);
        let back = pkcs8(&encode(EC_KEY, sec1.expose())).expect("a P-256 key");
        assert!(is_sequence(back.expose()));
        assert_eq!(
            &back.expose()[back.expose().len() - 121..],
            &sec1.expose()[..]
        );
        assert!(p256_sec1(&ring[1..]).is_none());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let der = match body.len() {
                length @ 0..=0x7f => [&[0x30, length as u8][..], &body].concat(),
                length @ 0x80..=0xff => [&[0x30, 0x81, length as u8][..], &body].concat(),
                length => [&[0x30, 0x82, (length >> 8) as u8, length as u8][..], &body].concat(),
            };
            let text = encode(CERTIFICATE, &der);
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            let (label, again) = decode(&text).expect("what was encoded");
            prop_assert_eq!((label, again.expose()), (CERTIFICATE, &der));
            let cut = encode(CERTIFICATE, &der[..der.len() - 1]);
            prop_assert!(decode(&cut).is_none());
        }

        #[test]
        fn foreign_text_is_refused_and_never_panics(text in ".{0,200}") {
            prop_assert!(pkcs8(&text).is_none());
            let wrapped = format!("-----BEGIN {text}-----END {text}-----");
            prop_assert!(pkcs8(&wrapped).is_none());
        }
    }
}
