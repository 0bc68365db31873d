//! Who asks for a boot file, and how each of them wants to be told.
//!
//! | client | known by | told by |
//! |---|---|---|
//! | PXE firmware | option 93, or 60 `PXEClient` | name in `file` and 67, 60 `PXEClient`, 43 "use the boot file" |
//! | UEFI HTTP Boot | option 60 `HTTPClient` | URI in `file` and 67, 60 `HTTPClient` |
//! | iPXE | option 77 `iPXE`, or 175 | URL of its script in `file` and 67, 175.176 |
//!
//! Ugly facts. EDK2 takes an offer with option 60 `PXEClient` but without a discovery sub-option in
//! option 43 for one of a Boot Information Negotiation Layer server: it then asks port 4011 and fails
//! when nobody is there. So both are sent together, or neither. Firmware appends what follows
//! in memory to a boot file name in option 67 that does not end with NUL, so it always does here.

use uuid::Uuid;

use super::answer::LinkContext;
use super::packet::{Request, suboption};
use crate::boot::{BootDecision, Decision, Refusal};
use crate::ipxe::script_url;
use crate::loader::{Architecture, Client, LoaderName, loader_path};
use crate::net::MacAddress;

/// PXE 2.1, option 43: tag 6 with bit 3 set ("use the boot file of this very packet, and ask nobody
/// else"), then the end tag.
const USE_BOOT_FILE: [u8; 3] = [6, 1, 8];
const BOOT_ITEM: u8 = 71;
/// iPXE, option 175: 176 (no-pxedhcp) = 1, so that it does not wait for another ProxyDHCP server.
pub(super) const NO_PROXY_DHCP: [u8; 3] = [176, 1, 1];

/// The boot part of a reply.
pub(super) enum BootFile {
    /// A file by TFTP, for firmware that has no scripts.
    Name(LoaderName),
    /// A URI: a loader for UEFI HTTP Boot, or iPXE's script.
    Uri(String),
}

impl BootFile {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Name(name) => name.as_str().as_bytes(),
            Self::Uri(uri) => uri.as_bytes(),
        }
    }
}

/// What runs on the machine, as far as its packet tells.
#[must_use]
pub fn client_of(request: &Request<'_>) -> Client {
    let vendor_class = request.option(60).unwrap_or_default();
    let arch = architecture_of(request, &vendor_class);
    if is_ipxe(request) {
        // The oldest builds name no architecture; those are BIOS ROMs.
        return Client::Ipxe(arch.unwrap_or(Architecture::BIOS));
    }
    match arch {
        Some(arch) if vendor_class.starts_with(b"HTTPClient") => Client::HttpBoot(arch),
        Some(arch) => Client::Pxe(arch),
        None if vendor_class.starts_with(b"PXEClient") => Client::Pxe(Architecture::BIOS),
        None => Client::System,
    }
}

/// iPXE writes option 77 as plain `iPXE`; a build that follows RFC 3004 puts the length before it.
fn is_ipxe(request: &Request<'_>) -> bool {
    let by_class = request.option(77).is_some_and(|class| {
        class.as_ref() == b"iPXE"
            || class.as_ref() == b"gPXE"
            || classes(&class).any(|c| c == b"iPXE")
    });
    by_class || request.option(175).is_some()
}

fn classes(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = list.split_first()?;
        let class = rest.get(..usize::from(*length))?;
        list = &rest[usize::from(*length)..];
        Some(class)
    })
}

/// RFC 4578, section 2.1: option 93 is a list of 16-bit types, the preferred one first. A type that
/// has a processor we know goes before one that we never heard of. Without the option, the vendor
/// class spells the same number: `PXEClient:Arch:00007:UNDI:003016`.
fn architecture_of(request: &Request<'_>, vendor_class: &[u8]) -> Option<Architecture> {
    if let Some(list) = request.option(93) {
        let codes = || {
            list.chunks_exact(2)
                .map(|pair| Architecture(u16::from_be_bytes([pair[0], pair[1]])))
        };
        let known = codes().find(|arch| arch.processor().is_some());
        if let Some(arch) = known.or_else(|| codes().next()) {
            return Some(arch);
        }
    }
    let mut words = vendor_class.split(|byte| *byte == b':');
    let class = words.next()?;
    if class != b"PXEClient" && class != b"HTTPClient" {
        return None;
    }
    words.find(|word| *word == b"Arch")?;
    let digits = str::from_utf8(words.next()?).ok()?;
    digits.parse().ok().map(Architecture)
}

/// Option 97: a zero and the SMBIOS UUID, its first three fields little-endian as SMBIOS stores them.
#[must_use]
pub fn uuid_of(request: &Request<'_>) -> Option<Uuid> {
    let value = request.option(97)?;
    let [0, bytes @ ..] = value.as_ref() else {
        return None;
    };
    Some(Uuid::from_bytes_le(bytes.try_into().ok()?))
}

/// The boot file that says what was decided; `None` when there is nothing to boot.
pub(super) fn boot_file(
    decision: &Decision<'_>,
    client: Client,
    mac: MacAddress,
    link: &LinkContext,
) -> Option<BootFile> {
    match (&decision.answer, client) {
        (_, Client::System) => None,
        // The script is what tells iPXE: boot, wait, leave for the disk, or why there is nothing.
        (_, Client::Ipxe(_)) => Some(BootFile::Uri(script_url(&link.base_url(), mac))),
        (BootDecision::Chainload(loader), Client::HttpBoot(_)) => Some(BootFile::Uri(format!(
            "{}{}",
            link.base_url(),
            loader_path(loader)
        ))),
        (BootDecision::Chainload(loader), Client::Pxe(_)) => Some(BootFile::Name(loader.clone())),
        (_, Client::Pxe(_) | Client::HttpBoot(_)) => None,
    }
}

/// Beside another server, a machine that nobody listed is that server's alone.
pub(super) fn is_strangers(decision: &Decision<'_>) -> bool {
    matches!(decision.answer, BootDecision::Refuse(Refusal::NotListed))
}

/// Option 43 for PXE firmware; a boot item that it asked for by number is confirmed by that number.
pub(super) fn vendor_options(request: &Request<'_>) -> Vec<u8> {
    let mut list = USE_BOOT_FILE.to_vec();
    let asked = request.option(43).unwrap_or_default();
    if let Some(item) = suboption(&asked, BOOT_ITEM).filter(|item| item.len() == 4) {
        list.extend([BOOT_ITEM, 4]);
        list.extend_from_slice(item);
    }
    list.push(255);
    list
}
