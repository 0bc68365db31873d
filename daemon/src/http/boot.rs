//! What a machine may have: its script, its config, a loader; and where it reports.
//!
//! Nothing is decided here. The newest snapshot is asked, and where the answer is a promise (a boot
//! that counts, a config that holds secrets, a report that is believed) the event is on disk before
//! the answer leaves. What does not agree with the inventory is refused with outside words only; the
//! reason goes to the ledger.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use ignition::{Document, Subject, Urls};
use netboot::attempt::Fact;
use netboot::boot::{Boot, BootDecision, BootRequest, Refusal as Refused, wipes_first};
use netboot::event::{Event, Outcome, ScriptAsked, ServedBoot};
use netboot::ipxe;
use netboot::loader::LOADER_PATH;
use netboot::net::{Digest, MacAddress};
use netboot::release::{Asker, Release, Withheld};
use netboot::site::Site;
use netboot::spec::{ConfigSource, Network, Purpose};
use sha2::Digest as _;
use tokio::time::timeout;

use super::wire::{Method, Request};
use super::{Body, Origin, Ports, Refusal, Reply, Server, Told, artifact, oauth, report};
use crate::clusters::member;
use crate::controller::now;
use crate::sys;

impl Server {
    /// Answers one request.
    pub(super) async fn answer(
        &self,
        origin: &Origin,
        request: &Request,
        body: Bytes,
    ) -> Result<Reply, Refusal> {
        let path = request.path.as_str();
        if let Some(rest) = path.strip_prefix("/agent/v1/report/") {
            return match request.method {
                Method::Post => self.report(origin, request, rest, &body).await,
                Method::Get | Method::Head => Err(Refusal::Method),
            };
        }
        match (request.method, path) {
            (Method::Post, "/device/code") => return Ok(self.device_code(origin, &body)),
            (Method::Post, "/token") => return Ok(self.device_token(origin, &body)),
            (Method::Post, _) => return Err(Refusal::Method),
            (Method::Get | Method::Head, _) => {}
        }
        if let Some(rest) = path.strip_prefix("/artifacts/") {
            return self.artifact(origin, request, rest);
        }
        if let Some(rest) = path.strip_prefix("/boot/") {
            return self.script(origin, request, rest).await;
        }
        if let Some(rest) = path.strip_prefix("/config/") {
            return self.config(origin, request, rest).await;
        }
        if let Some(file) = path
            .strip_prefix(LOADER_PATH)
            .filter(|file| *file != "autoexec.ipxe")
        {
            return self.loader(file);
        }
        match path {
            "/autoexec.ipxe" | "/loader/autoexec.ipxe" => {
                Ok(script_reply(ipxe::autoexec(&self.urls(origin, "").base)))
            }
            "/device" => Ok(oauth::device_page()),
            "/healthz" => Ok(Reply::text(200, "ok\n")),
            _ => Err(Refusal::UnknownPath),
        }
    }

    fn artifact(&self, origin: &Origin, request: &Request, rest: &str) -> Result<Reply, Refusal> {
        let answer = artifact::answer(&self.depot, request, rest);
        if let Err(refusal @ (Refusal::UnknownArtifact | Refusal::Broken)) = answer {
            let file = rest.chars().take(128).collect();
            let fact = Fact::TransferRefused {
                protocol: "http".into(),
                file,
                reason: refusal.word().into(),
            };
            self.note(origin, fact);
        }
        answer
    }

    fn loader(&self, file: &str) -> Result<Reply, Refusal> {
        let bytes = self.loaders.get(file).ok_or(Refusal::UnknownPath)?.clone();
        let told = Told {
            file: file.to_owned(),
            digest: None,
            offset: 0,
            size: bytes.len() as u64,
        };
        let mut reply = Reply::empty(200)
            .with("Content-Type", artifact::content_type(file))
            .with("Cache-Control", "no-cache");
        reply.body = Body::Bytes(bytes);
        reply.transfer = Some(told);
        Ok(reply)
    }

    async fn script(
        &self,
        origin: &Origin,
        request: &Request,
        rest: &str,
    ) -> Result<Reply, Refusal> {
        let mac = rest
            .strip_suffix("/script.ipxe")
            .ok_or(Refusal::UnknownPath)?;
        let mac: MacAddress = mac.parse().map_err(|_| Refusal::UnknownPath)?;
        let said = ipxe::said(&request.query);
        // A person may act between a decision and its record; what changes twice is asked for anew.
        for _ in 0..2 {
            let site = self.controller.snapshot().load();
            let network = network_of(&site, origin).ok_or(Refusal::ForeignSource)?;
            let asked = BootRequest {
                mac,
                client: said.client,
                network: &network.name,
                uuid: said.uuid,
                serial: said.serial.as_deref(),
                chainloads: 0,
            };
            let decision = site.decide(&asked, now());
            let script = Script {
                server: self,
                origin,
                request,
                mac,
                said: &said,
                site: &site,
                network,
                rule: decision.rule,
            };
            match decision.answer {
                BootDecision::Boot(boot) => {
                    if let Some(reply) = script.boot(&boot).await? {
                        return Ok(reply);
                    }
                }
                BootDecision::LocalDisk => return Ok(script.local_disk()),
                BootDecision::Hold(hold) => return Ok(script.hold(&hold.to_string())),
                BootDecision::Refuse(refused) => return Ok(script.refuse(&refused)),
                BootDecision::Chainload(loader) => {
                    return Ok(script.say(
                        "refuse",
                        &format!("iPXE needs no loader, and {loader} is one"),
                    ));
                }
            }
        }
        Err(Refusal::NotWritten)
    }

    async fn config(
        &self,
        origin: &Origin,
        request: &Request,
        rest: &str,
    ) -> Result<Reply, Refusal> {
        let (token, file) = rest.split_once('/').ok_or(Refusal::UnknownPath)?;
        let document = Document::by_file(file).ok_or(Refusal::UnknownPath)?;
        let asker = asker(origin, token);
        if document.is_whole() {
            self.has_flow_token(origin, request, &asker)?;
        }
        let asked = Asked {
            origin,
            token,
            file,
            document,
        };
        if document.is_whole() && self.holds_secrets(&asker.token) {
            return self.secret(&asked, asker, request.method).await;
        }
        match self.release(asker).await? {
            Ok(release) => {
                if request.method == Method::Get {
                    self.note_config(&asked, Some(release.attempt), None);
                }
                self.document(&asked, &release)
            }
            Err(withheld) => Err(self.withhold(&asked, &withheld)),
        }
    }

    /// Notes that a config stays, and says how its asker is refused.
    pub(super) fn withhold(&self, asked: &Asked<'_>, withheld: &Withheld) -> Refusal {
        let origin = asked.origin;
        tracing::warn!(peer = %origin.peer, link = %origin.link, %withheld, "config withheld");
        self.note_config(asked, None, Some(withheld.to_string()));
        match withheld {
            Withheld::NotItsTurn(..) => Refusal::NotItsTurn,
            Withheld::Spent(..) => Refusal::ConfigSpent,
            Withheld::UnknownToken
            | Withheld::Finished(_)
            | Withheld::Rejected(_)
            | Withheld::TooLate(_)
            | Withheld::OtherAddress { .. }
            | Withheld::OtherMachine { .. } => Refusal::ConfigWithheld,
        }
    }

    pub(super) fn note_config(
        &self,
        asked: &Asked<'_>,
        attempt: Option<u32>,
        withheld: Option<String>,
    ) {
        let fact = Fact::Config {
            document: asked.file.to_owned().into(),
            attempt,
            withheld,
        };
        self.note(asked.origin, fact);
    }

    /// Whether a config may leave; when it may, that is on disk.
    async fn release(&self, asker: Asker) -> Result<Result<Release, Withheld>, Refusal> {
        match self.controller.snapshot().load().may_release(&asker, now()) {
            Ok(release) if release.repeated => return Ok(Ok(release)),
            Err(withheld) => return Ok(Err(withheld)),
            Ok(_) => {}
        }
        match self.apply(Event::ConfigAsked(asker)).await {
            Ok(Outcome::Config(answer)) => Ok(answer),
            Ok(other) => unexpected(&other),
            Err(refusal) => Err(refusal),
        }
    }

    pub(super) fn document(&self, asked: &Asked<'_>, release: &Release) -> Result<Reply, Refusal> {
        let &Asked {
            origin,
            token,
            document: wanted,
            file: _,
        } = asked;
        let site = self.controller.snapshot().load();
        let link = release.node.link_at(origin.peer);
        let network = link
            .and_then(|link| site.spec().network(&link.network))
            .ok_or(Refusal::Broken)?;
        let urls = self.urls(origin, token);
        let subject = Subject {
            site: site.spec(),
            node: Some(&release.node),
            link,
            network,
            disk: release.disk.as_ref(),
            generation: release.generation,
            urls: &urls,
        };
        let written = match self.members(&site, asked, release, &subject) {
            Some(written) => written?,
            None => ignition::document(&release.profile, &subject, wanted),
        };
        match written {
            Ok(Some(text)) => {
                let reply = Reply::empty(200)
                    .with("Content-Type", wanted.media_type())
                    .with("Cache-Control", "no-store");
                Ok(Reply {
                    body: Body::Bytes(text.into()),
                    ..reply
                })
            }
            Ok(None) => Err(Refusal::UnknownPath),
            Err(fault) => {
                tracing::error!(node = %release.node.name, field = fault.field, problem = fault.problem, remedy = fault.remedy, "a config does not render");
                Err(Refusal::Broken)
            }
        }
    }

    /// What a cluster's platform writes for its member; `None` for machines of no cluster and what is the same for all.
    fn members(
        &self,
        site: &Site,
        asked: &Asked<'_>,
        release: &Release,
        subject: &Subject<'_>,
    ) -> Option<Result<Result<Option<String>, ignition::Fault>, Refusal>> {
        let ConfigSource::Platform(_) = release.profile.config else {
            return None;
        };
        let place = site.member(&release.node.name)?;
        let (spec, state) = site.cluster(&place.cluster)?;
        // Nobody's turn comes before its secrets; a daemon that started a moment ago has yet to read them.
        let Some(keys) = self.keyring.keys(&place.cluster) else {
            return Some(Err(Refusal::NotItsTurn));
        };
        let peers = member::peers(site, place);
        // Where its API is balanced: certificates bear that address besides the name.
        let elsewhere = site.spec().dns().balanced.as_ref();
        let elsewhere = elsewhere.and_then(|balanced| balanced.inside.first().copied());
        let server = elsewhere.unwrap_or(*asked.origin.local.ip());
        let membership = member::membership(spec, state, place, &release.node, server, &peers)?;
        let written = keys
            .secrets
            .document(&membership, &release.profile, subject, asked.document);
        match written {
            Ok(None) => None,
            written => Some(Ok(written)),
        }
    }

    async fn report(
        &self,
        origin: &Origin,
        request: &Request,
        token: &str,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let asker = asker(origin, token);
        let purpose = purpose_of(&self.controller.snapshot().load(), &asker.token);
        let report =
            report::read(&request.query, body, purpose).ok_or(Refusal::ReportUnreadable)?;
        let word = report::word(&report);
        let event = Event::Reported { asker, report };
        let answer = match self.apply(event).await {
            Ok(Outcome::Report(answer)) => answer,
            Ok(other) => return unexpected(&other),
            Err(refusal) => return Err(refusal),
        };
        let detail = answer.as_ref().err().map(Withheld::to_string);
        self.note(
            origin,
            Fact::Report {
                report: word.into(),
                detail,
                taken: answer.is_ok(),
            },
        );
        match answer {
            Ok(_) => Ok(Reply::text(200, "taken\n")),
            Err(_) => Err(Refusal::ReportWithheld),
        }
    }

    /// Puts an event on disk, or refuses in time. An event that is written later stands though its
    /// answer never left: an attempt more, or a config that is released again.
    pub(super) async fn apply(&self, event: Event) -> Result<Outcome, Refusal> {
        let limit = self.limits.write_time;
        let applied = match timeout(limit, self.controller.apply(event)).await {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the disk took longer than {limit:?}"),
        };
        tracing::error!(
            error = applied,
            "an answer had to wait for the disk and did not leave"
        );
        Err(Refusal::NotWritten)
    }

    pub(super) fn urls(&self, origin: &Origin, token: &str) -> Urls {
        urls(*origin.local.ip(), self.ports, token, self.ca.pem())
    }
}

/// One request for a config, as its URL says it.
pub(super) struct Asked<'a> {
    pub(super) origin: &'a Origin,
    pub(super) token: &'a str,
    pub(super) file: &'a str,
    pub(super) document: Document,
}

/// One request for a script, on its way to an answer.
struct Script<'a> {
    server: &'a Server,
    origin: &'a Origin,
    request: &'a Request,
    mac: MacAddress,
    said: &'a ipxe::Said,
    site: &'a Site,
    network: &'a Arc<Network>,
    rule: &'static str,
}

impl Script<'_> {
    /// The boot, on disk as an attempt; `None` when the newest facts say otherwise.
    async fn boot(&self, boot: &Boot<'_>) -> Result<Option<Reply>, Refusal> {
        let Some(node) = boot.node else {
            return self.discovery(boot).map(Some);
        };
        let neighbour = neighbour(self.origin);
        if let Err(withheld) = self.site.may_boot_from(node, self.network, neighbour) {
            return Ok(Some(self.say("refuse", &withheld.to_string())));
        }
        let token = token();
        let script = self.text(boot, &token)?;
        if self.request.method == Method::Head {
            return Ok(Some(script_reply(script)));
        }
        let asked = ScriptAsked {
            mac: self.mac,
            client: self.said.client,
            network: self.network.name.clone(),
            uuid: self.said.uuid,
            serial: self.said.serial.clone(),
            token: digest_of(&token),
        };
        match self.server.apply(Event::ScriptAsked(asked)).await {
            Ok(Outcome::Script(Some(ServedBoot {
                profile,
                disk,
                attempt,
                ..
            }))) if profile == *boot.profile && disk == boot.disk => {
                self.note("boot", Some(attempt), None);
                Ok(Some(script_reply(script)))
            }
            Ok(Outcome::Script(_)) => Ok(None),
            Ok(other) => unexpected(&other),
            Err(refusal) => Err(refusal),
        }
    }

    /// A machine that is not listed has no record, so its boot is no attempt and its config has no owner.
    fn discovery(&self, boot: &Boot<'_>) -> Result<Reply, Refusal> {
        let script = self.text(boot, "unlisted")?;
        self.sighted();
        self.note("discovery", None, None);
        Ok(script_reply(script))
    }

    fn local_disk(&self) -> Reply {
        self.note("disk", None, None);
        script_reply(self.words().local_disk())
    }

    fn hold(&self, reason: &str) -> Reply {
        self.note("hold", None, Some(reason));
        if self.said.held.as_deref() != Some(ipxe::held_mark(reason).as_str()) {
            let again = ipxe::script_url(&self.server.urls(self.origin, "held").base, self.mac);
            return script_reply(ipxe::hold(reason, &again));
        }
        Reply::text(503, format!("{reason}\n")).with(
            "Retry-After",
            ipxe::retry_after_seconds(self.mac).to_string(),
        )
    }

    fn refuse(&self, refused: &Refused) -> Reply {
        if *refused == Refused::NotListed {
            self.sighted();
        }
        self.say("refuse", &self.words().refusal(refused))
    }

    fn say(&self, answer: &'static str, reason: &str) -> Reply {
        self.note(answer, None, Some(reason));
        script_reply(ipxe::refuse(reason))
    }

    fn words(&self) -> Words<'_> {
        Words {
            site: self.site,
            network: self.network,
            mac: self.mac,
        }
    }

    fn text(&self, boot: &Boot<'_>, token: &str) -> Result<String, Refusal> {
        let urls = self.server.urls(self.origin, token);
        self.words().boot(boot, &urls).map_err(|fault| {
            tracing::error!(mac = %self.mac, field = fault.field, problem = fault.problem, remedy = fault.remedy, "kernel arguments do not render");
            Refusal::Broken
        })
    }

    fn sighted(&self) {
        let event = Event::Sighted {
            mac: self.mac,
            network: self.network.name.clone(),
            uuid: self.said.uuid,
        };
        if self.request.method == Method::Get && !self.server.controller.tell(event) {
            tracing::debug!(mac = %self.mac, "too busy to remember a machine that is not listed");
        }
    }

    fn note(&self, answer: &'static str, attempt: Option<u32>, reason: Option<&str>) {
        if self.request.method == Method::Head {
            return;
        }
        let node = self
            .site
            .spec()
            .node_by_mac(self.mac)
            .map(|node| &node.name);
        let reason = reason.map(str::to_owned);
        let fact = Fact::Script {
            answer: answer.into(),
            rule: self.rule.into(),
            attempt,
            reason,
        };
        self.server.ledger.note(Some(self.mac), node, fact);
    }
}

/// What a machine's script says, before anything about it is written down: the server's words, and
/// those that `simulate` shows.
pub(crate) struct Words<'a> {
    pub(crate) site: &'a Site,
    pub(crate) network: &'a Network,
    pub(crate) mac: MacAddress,
}

impl Words<'_> {
    /// The script that boots; it is an attempt's once its token is.
    pub(crate) fn boot(&self, boot: &Boot<'_>, urls: &Urls) -> Result<String, ignition::Fault> {
        let mut arguments = ignition::arguments(boot.profile, &self.subject(boot, urls))?;
        let record = boot.node.map(|node| self.site.record(&node.name));
        if record.is_some_and(|record| wipes_first(record, boot)) {
            // siderolabs/talos, pkg/machinery/constants: the disk of the installation that is found.
            arguments.push("talos.experimental.wipe=system".to_owned());
        }
        let heading = match boot.node {
            Some(node) => format!("{} boots {}", node.name, boot.profile.name),
            None => format!("{} is not listed, boots {}", self.mac, boot.profile.name),
        };
        let again = ipxe::script_url(&urls.base, self.mac);
        Ok(ipxe::boot(
            &heading,
            &urls.base,
            &again,
            boot.profile,
            &arguments,
        ))
    }

    /// What the templates of a boot may speak of.
    pub(crate) fn subject<'s>(&'s self, boot: &'s Boot<'_>, urls: &'s Urls) -> Subject<'s> {
        let node = boot.node.map(Arc::as_ref);
        let generation = node.map_or(0, |node| self.site.record(&node.name).generation);
        Subject {
            site: self.site.spec(),
            node,
            link: node.and_then(|node| {
                let here = node.link_on(self.mac, &self.network.name);
                here.or_else(|| node.link_of(self.mac))
            }),
            network: self.network,
            disk: boot.disk.as_ref(),
            generation: generation + u32::from(boot.uses_permit),
            urls,
        }
    }

    /// The script that leaves for the disk.
    pub(crate) fn local_disk(&self) -> String {
        let node = self.site.spec().node_by_mac(self.mac);
        let name = node.map_or("this machine", |node| node.name.as_str());
        ipxe::local_disk(&format!("{name} is installed and boots from its disk"))
    }

    /// The sentence of a refusal.
    pub(crate) fn refusal(&self, refused: &Refused) -> String {
        format!("{}: {refused}", self.mac)
    }
}

/// The URLs of one attempt.
pub(crate) fn urls(server: Ipv4Addr, ports: Ports, token: &str, ca_pem: &str) -> Urls {
    let base = format!("http://{server}:{}", ports.plain);
    Urls {
        config: format!("{base}/config/{token}/"),
        config_tls: format!("https://{server}:{}/config/{token}/", ports.tls),
        report: format!("{base}/agent/v1/report/{token}"),
        events: format!("{server}:{}", ports.events),
        ca_pem: ca_pem.to_owned(),
        base,
    }
}

fn script_reply(text: String) -> Reply {
    Reply::text(200, text)
}

/// The network that a request came from: its subnet on that link, or behind a relay there.
fn network_of<'a>(site: &'a Site, origin: &Origin) -> Option<&'a Arc<Network>> {
    let behind = || site.spec().network_behind(origin.peer);
    let relayed = |network: &&Arc<Network>| network.relayed && network.link == origin.link;
    site.spec()
        .network_on(&origin.link, Some(origin.peer))
        .or_else(|| behind().filter(relayed))
}

/// What the boot behind a token is for; an unknown token's report is refused whatever it says.
fn purpose_of(site: &Site, token: &Digest) -> Purpose {
    let profile = site.profile_of_token(token);
    profile.map_or(Purpose::Live, |profile| profile.purpose)
}

fn asker(origin: &Origin, token: &str) -> Asker {
    Asker {
        token: digest_of(token),
        address: origin.peer,
        neighbour: neighbour(origin),
    }
}

fn token() -> String {
    use std::fmt::Write as _;
    crate::tls::random::<16>()
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn digest_of(token: &str) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(token).into())
}

/// The station that the kernel knows behind the source of a request, on the link that the request came by.
pub(super) fn neighbour(origin: &Origin) -> Option<MacAddress> {
    let known = sys::neighbour(origin.link.as_str(), origin.peer).ok()?;
    known.and_then(MacAddress::from_octets)
}

pub(super) fn unexpected<T>(outcome: &Outcome) -> Result<T, Refusal> {
    tracing::error!(
        ?outcome,
        "the controller answered another question, report this"
    );
    Err(Refusal::Broken)
}
