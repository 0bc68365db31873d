//! Firmware to network boot program: what the architecture codes of option 93 mean, and which file
//! each of them is sent.
//!
//! Codes are the IANA registry "Processor Architecture Types" (RFC 4578, 2.1, with its errata: 7 is
//! x64 and 9 is EBC, yet firmware that says 9 is x64 too). A loader is looked up by code, first in the
//! machine's own table, then in the network's, then in the one below.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::net::Malformed;

/// A client system architecture as DHCP option 93 carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Architecture(pub u16);

/// What runs before the loader, as far as leaving for the local disk depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// PC BIOS: a disk is started by its BIOS drive number.
    Bios,
    /// UEFI, or U-Boot's EFI loader: leaving hands the boot order back to the firmware.
    Uefi,
}

/// How firmware fetches its first file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// PXE: a name, by TFTP.
    Tftp,
    /// UEFI HTTP Boot: a URI.
    Http,
}

/// Who asks: what can be read off the packet or the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// An operating system, installer or initramfs: wants an address and nothing to boot.
    System,
    /// PXE firmware: wants a loader by TFTP.
    Pxe(Architecture),
    /// UEFI HTTP Boot firmware: wants a loader by URI.
    HttpBoot(Architecture),
    /// iPXE: wants a script.
    Ipxe(Architecture),
}

/// The name of a loader file, such as `undionly.kpxe`: one path component.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoaderName(Arc<str>);

/// Loader files by architecture code, over and above the built-in table.
pub type LoaderTable = BTreeMap<u16, LoaderName>;

impl Architecture {
    /// PC BIOS.
    pub const BIOS: Self = Self(0);
    /// x64 UEFI by PXE.
    pub const X64_UEFI: Self = Self(7);
    /// 64-bit ARM UEFI by PXE.
    pub const ARM64_UEFI: Self = Self(11);
    /// x64 UEFI by HTTP.
    pub const X64_HTTP: Self = Self(16);
    /// 64-bit ARM UEFI by HTTP.
    pub const ARM64_HTTP: Self = Self(19);

    /// The kind of firmware behind the code.
    #[must_use]
    pub fn firmware(self) -> Firmware {
        if matches!(self.0, 0 | 20) {
            Firmware::Bios
        } else {
            Firmware::Uefi
        }
    }

    /// How this firmware fetches.
    #[must_use]
    pub fn transport(self) -> Transport {
        if matches!(self.0, 15..=20 | 24 | 26 | 28 | 30 | 38 | 40) {
            Transport::Http
        } else {
            Transport::Tftp
        }
    }

    /// The processor as iPXE and our loader directories spell it; `None` for codes without one here.
    #[must_use]
    pub fn processor(self) -> Option<&'static str> {
        match self.0 {
            0 | 6 | 15 | 20 => Some("i386"),
            7 | 9 | 16 | 17 => Some("x86_64"),
            10 | 18 => Some("arm32"),
            11 | 19 | 22 => Some("arm64"),
            27 | 28 => Some("riscv64"),
            39 | 40 => Some("loong64"),
            _ => None,
        }
    }

    /// The file this firmware is sent when no table of the site says otherwise.
    ///
    /// `snponly.efi` drives the very card the firmware booted from, so it needs no driver of its own.
    #[must_use]
    pub fn default_loader(self) -> Option<&'static str> {
        match self.0 {
            0 => Some("undionly.kpxe"),
            7 | 9 | 16 | 17 => Some("snponly.efi"),
            11 | 19 | 22 => Some("snponly-arm64.efi"),
            6 | 15 => Some("snponly-i386.efi"),
            _ => None,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("BIOS (0)"),
            code => match (self.processor(), self.transport()) {
                (Some(processor), Transport::Tftp) => write!(f, "{processor} UEFI ({code})"),
                (Some(processor), Transport::Http) => write!(f, "{processor} UEFI HTTP ({code})"),
                (None, _) => write!(f, "architecture {code}"),
            },
        }
    }
}

impl Client {
    /// The architecture, where the client told one.
    #[must_use]
    pub fn architecture(self) -> Option<Architecture> {
        match self {
            Self::System => None,
            Self::Pxe(arch) | Self::HttpBoot(arch) | Self::Ipxe(arch) => Some(arch),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("operating system"),
            Self::Pxe(arch) => write!(f, "PXE, {arch}"),
            Self::HttpBoot(arch) => write!(f, "HTTP Boot, {arch}"),
            Self::Ipxe(arch) => write!(f, "iPXE, {arch}"),
        }
    }
}

impl LoaderName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LoaderName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let sound = (1..=100).contains(&text.len())
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if sound {
            Ok(Self(text.into()))
        } else {
            Err(Malformed::new(
                "loader",
                text,
                "use a file name of letters, digits, '-', '_' and '.'",
            ))
        }
    }
}

impl fmt::Display for LoaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LoaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The loader for `arch`: the first of `tables` that names the code, else the built-in one.
#[must_use]
pub fn loader_for(arch: Architecture, tables: [&LoaderTable; 2]) -> Option<LoaderName> {
    let named = tables
        .into_iter()
        .find_map(|table| table.get(&arch.0))
        .cloned();
    named.or_else(|| arch.default_loader().map(|name| LoaderName(name.into())))
}

/// Where loaders are on the boot HTTP port.
pub const LOADER_PATH: &str = "/loader/";

/// The path of a loader on the boot HTTP port. UEFI HTTP Boot judges a file by the suffix of its path.
#[must_use]
pub fn loader_path(loader: &LoaderName) -> String {
    format!("{LOADER_PATH}{loader}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_table_goes_before_the_networks_and_both_before_the_default() {
        let table = |name: &str| LoaderTable::from([(7, name.parse().unwrap())]);
        let (machine, network, none) = (table("a.efi"), table("b.efi"), LoaderTable::new());
        let chosen = |tables| {
            loader_for(Architecture::X64_UEFI, tables)
                .unwrap()
                .to_string()
        };
        assert_eq!(chosen([&machine, &network]), "a.efi");
        assert_eq!(chosen([&none, &network]), "b.efi");
        assert_eq!(chosen([&none, &none]), "snponly.efi");
        assert_eq!(loader_for(Architecture(33), [&none, &none]), None);
    }

    #[test]
    fn a_loader_is_one_path_component() {
        for text in ["", "../x", "a/b", ".hidden", "a b"] {
            assert!(text.parse::<LoaderName>().is_err(), "{text}");
        }
    }
}
