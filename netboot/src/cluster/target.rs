//! Where a service that others bring is looked at: an address and a port, and what is asked for there. Pure; names are looked
//! up by whoever connects.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::net::{Hostname, Malformed};

/// Where a service of others is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name that the bastion's own resolver knows, or an address.
    pub host: Host,
    /// The TCP port, never 0.
    pub port: u16,
    /// What is asked there; none where a connection says enough.
    pub get: Option<Get>,
}

/// A `GET` whose status says whether the service is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Over TLS, with whatever certificate the server has.
    pub tls: bool,
    /// The path, and the query.
    pub path: String,
}

/// A host by address or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// By address.
    Address(IpAddr),
    /// By name.
    Name(Hostname),
}

impl Target {
    /// `HOST:PORT`.
    ///
    /// # Errors
    /// How it is written.
    pub fn of_address(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "write HOST:PORT, such as 10.107.0.5:2049 or [2001:db8::5]:2049";
        let malformed = || Malformed::new("address", text, RULE);
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        let host = host.parse().map_err(|_| malformed())?;
        let port = port.parse().ok().filter(|port| *port != 0);
        Ok(Self {
            host,
            port: port.ok_or_else(malformed)?,
            get: None,
        })
    }

    /// `http://HOST[:PORT][/PATH]`, or with `https`.
    ///
    /// # Errors
    /// How it is written.
    pub fn of_url(text: &str) -> Result<Self, Malformed> {
        const RULE: &str = "write http://HOST[:PORT]/PATH, or with https; for anything else write `address: HOST:PORT`, which is asked for a connection";
        let malformed = || Malformed::new("URL", text, RULE);
        let schemes = [("http://", false, 80), ("https://", true, 443)];
        let (rest, tls, port) = schemes
            .into_iter()
            .find_map(|(scheme, tls, port)| Some((text.strip_prefix(scheme)?, tls, port)))
            .ok_or_else(malformed)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = |b: u8| b.is_ascii_graphic() && b != b'#';
        if !path.bytes().all(plain) {
            return Err(malformed());
        }
        let at = Self::of_address(authority)
            .or_else(|_| Self::of_address(&format!("{authority}:{port}")));
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        Ok(Self {
            get: Some(Get { tls, path }),
            ..at.map_err(|_| malformed())?
        })
    }
}

impl FromStr for Host {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bracketed = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        match bracketed.unwrap_or(text).parse() {
            Ok(IpAddr::V6(_)) if bracketed.is_none() => Err(Malformed::new(
                "host",
                text,
                "write an IPv6 address in brackets",
            )),
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, get } = self;
        match get {
            Some(Get { tls, path }) => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{host}:{port}{path}")
            }
            None => write!(f, "{host}:{port}"),
        }
    }
}
