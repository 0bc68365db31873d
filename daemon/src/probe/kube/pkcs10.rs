//! What a PKCS #10 request (RFC 2986) asks to have signed, for `netboot::csr`.
//!
//! Another program will sign it, by its own reading. So whatever two readers could read in two ways counts as unreadable: more
//! than one PEM block, bytes behind the end, an attribute with several values, the same extension twice. Whether the requestor
//! has the key is proven by the request's signature, which the signer checks.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use netboot::csr::CsrRequest;
use x509_parser::asn1_rs::{FromDer, Header};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::x509::X509Name;

/// A kubelet's request is about 500 bytes; one with an RSA key and many addresses has 2,000.
const PEM_BYTES_MAX: usize = 16 << 10;
const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";

/// Reads a request in PEM; `None` for what two readers could read in two ways.
pub(super) fn parse(pem: &[u8]) -> Option<CsrRequest> {
    let text = Some(pem).filter(|pem| pem.len() <= PEM_BYTES_MAX)?;
    let text = str::from_utf8(text).ok()?.trim();
    let body = text.strip_prefix(BEGIN)?.strip_suffix(END)?;
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let der = STANDARD.decode(body).ok()?;
    let (rest, csr) = X509CertificationRequest::from_der(&der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let info = &csr.certification_request_info;
    let mut request = CsrRequest::default();
    subject(&info.subject, &mut request)?;
    let mut extensions_seen = false;
    for attribute in info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(wanted) => {
                let (content, set) = Header::from_der(attribute.value).ok()?;
                let whole = set.length().definite().ok()? == content.len();
                if extensions_seen || !whole {
                    return None;
                }
                extensions_seen = true;
                let mut names_seen = false;
                for extension in &wanted.extensions {
                    let oid = extension.oid.to_id_string();
                    let ParsedExtension::SubjectAlternativeName(names) =
                        extension.parsed_extension()
                    else {
                        request.others.push(format!("extension {oid}"));
                        continue;
                    };
                    if names_seen {
                        return None;
                    }
                    names_seen = true;
                    for name in &names.general_names {
                        alternative(name, &mut request)?;
                    }
                }
            }
            ParsedCriAttribute::ChallengePassword(_) | ParsedCriAttribute::UnsupportedAttribute => {
                let oid = attribute.oid.to_id_string();
                request.others.push(format!("attribute {oid}"));
            }
        }
    }
    Some(request)
}

fn subject(name: &X509Name<'_>, request: &mut CsrRequest) -> Option<()> {
    for attribute in name.iter_attributes() {
        let text = attribute.as_str().ok()?.to_owned();
        let oid = attribute.attr_type();
        if *oid == OID_X509_COMMON_NAME {
            request.common_names.push(text);
        } else if *oid == OID_X509_ORGANIZATION_NAME {
            request.organizations.push(text);
        } else {
            let oid = oid.to_id_string();
            request
                .others
                .push(format!("subject attribute {oid}={text}"));
        }
    }
    Some(())
}

fn alternative(name: &GeneralName<'_>, request: &mut CsrRequest) -> Option<()> {
    match name {
        GeneralName::DNSName(name) => request.dns.push((*name).to_owned()),
        GeneralName::IPAddress(octets) => {
            let address = match octets.len() {
                4 => <[u8; 4]>::try_from(*octets).map(IpAddr::from),
                _ => <[u8; 16]>::try_from(*octets).map(IpAddr::from),
            };
            request.addresses.push(address.ok()?);
        }
        GeneralName::RFC822Name(name) => request.others.push(format!("mail address {name}")),
        GeneralName::URI(uri) => request.others.push(format!("URI {uri}")),
        GeneralName::Invalid(..) => return None,
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_) => request.others.push("another kind of name".to_owned()),
    }
    Some(())
}
