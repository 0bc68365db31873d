//! What `site.yaml` comes to while its parts are judged, one after the other.

use std::collections::BTreeSet;

use netboot::spec::{AdmissionPolicy, Network};
use netboot::zone::DnsSpec;

use super::Settings;
use super::fault::Place;
use super::file;
use super::host::HostFile;

/// An entry as it was written, kept to find the place of a fault that shows later.
pub(super) struct Written<T> {
    pub(super) place: Place,
    pub(super) entry: T,
}

/// What `site.yaml` says.
#[derive(Default)]
pub(super) struct SiteFile {
    pub(super) settings: Settings,
    pub(super) admission: AdmissionPolicy,
    pub(super) networks: Vec<Network>,
    /// Side by side with `networks`.
    pub(super) written: Vec<Written<Box<file::Network>>>,
    /// The bastion's own network.
    pub(super) host: HostFile,
    /// Names.
    pub(super) dns: DnsSpec,
    /// The bastion answers NTP.
    pub(super) serve_time: bool,
    /// TCP ports behind which the client's address is told.
    pub(super) proxied: BTreeSet<u16>,
    /// Names of networks too faulty to build: machines on them are not complained about.
    pub(super) broken: BTreeSet<String>,
    /// A network without even a name failed, or the file did.
    pub(super) incomplete: bool,
}

impl Written<Box<file::Network>> {
    /// Where the value stands that a contradiction is about.
    pub(super) fn place_of(&self, field: &str) -> Place {
        let entry = &self.entry;
        let place = match field {
            "name" => entry.name.place(),
            "link" => entry.link.place(),
            "subnet" => entry.subnet.place(),
            "mode" => entry.mode.place(),
            "range" => entry.range.place(),
            "router" => entry.router.place(),
            "discovery" => entry.discovery.place(),
            _ => None,
        };
        place.unwrap_or(self.place)
    }
}
