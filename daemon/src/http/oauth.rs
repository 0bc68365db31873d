//! The device flow's two endpoints and the token that its config then needs. What is decided is in `netboot::device_flow`.
//!
//! Codes and tokens are digests of a boot under a key of the daemon's own, so none is kept and each ends with its boot.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use netboot::attempt::Fact;
use netboot::device_flow::{self, Applicant, Device, INTERVAL_SECONDS, Poll};
use netboot::net::Timestamp;
use netboot::release::Asker;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::boot::neighbour;
use super::report::{decoded, fields};
use super::wire::Request;
use super::{Body, Origin, Refusal, Reply, Server};
use crate::controller::now;

/// RFC 8628, 3.4.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// What the flow keeps between two requests.
pub(super) struct Flow {
    key: [u8; 32],
    desk: Mutex<device_flow::Desk>,
}

impl Flow {
    /// A flow whose codes are of this key.
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            desk: Mutex::default(),
        }
    }

    fn code(&self, of: &Applicant) -> String {
        self.digest("device code", of)
    }

    fn token(&self, of: &Applicant) -> String {
        self.digest("access token", of)
    }

    /// Digested twice, so that a longer text can't be made of a known digest.
    fn digest(&self, what: &str, of: &Applicant) -> String {
        let inner = Sha256::new()
            .chain_update(self.key)
            .chain_update(what)
            .chain_update(of.attempt.to_be_bytes())
            .chain_update(of.token.bytes())
            .chain_update(of.node.as_str())
            .finalize();
        let outer = Sha256::new().chain_update(self.key).chain_update(inner);
        URL_SAFE_NO_PAD.encode(outer.finalize())
    }
}

/// True when two secrets are the same; their digests tell nobody how much of a guess was right.
fn same(given: &str, right: &str) -> bool {
    Sha256::digest(given) == Sha256::digest(right)
}

impl Server {
    /// `POST /device/code` (RFC 8628, 3.1 and 3.2). The code that people see is the machine's name: `node approve` takes it.
    pub(super) fn device_code(&self, origin: &Origin, body: &[u8]) -> Reply {
        let Some(form) = Form::read(body) else {
            return refused("invalid_request", "send a form with client_id");
        };
        let (device, at) = (form.device(origin), now());
        let site = self.controller.snapshot().load();
        let applicant = match site.applicant(&device, at) {
            Ok(applicant) => applicant,
            Err(withheld) => {
                self.note_flow(origin, "refused", Some(withheld.to_string()));
                return refused("unauthorized_client", "refused");
            }
        };
        self.note_flow(origin, "asked", None);
        let uri = format!("{}/device", self.urls(origin, "").base);
        answer(
            200,
            &json!({
                "device_code": self.flow.code(&applicant),
                "user_code": applicant.node.as_str(),
                "verification_uri": uri,
                "expires_in": seconds_left(&applicant, at),
                "interval": INTERVAL_SECONDS,
            }),
        )
    }

    /// `POST /token` (RFC 8628, 3.4 and 3.5).
    pub(super) fn device_token(&self, origin: &Origin, body: &[u8]) -> Reply {
        let Some(form) = Form::read(body) else {
            return refused("invalid_request", "send a form with client_id");
        };
        if form.value("grant_type").as_deref() != Some(GRANT) {
            return refused(
                "unsupported_grant_type",
                "send the device flow's grant_type",
            );
        }
        let (device, at) = (form.device(origin), now());
        let site = self.controller.snapshot().load();
        let given = form.value("device_code").unwrap_or_default();
        let applicant = match site.applicant(&device, at) {
            Ok(applicant) if same(&given, &self.flow.code(&applicant)) => applicant,
            Ok(_) => return refused("expired_token", "the code is of no boot in force"),
            Err(withheld) => {
                self.note_flow(origin, "refused", Some(withheld.to_string()));
                return refused("access_denied", "refused");
            }
        };
        let consent = site.consent(&applicant, &device, at);
        let mut desk = self
            .flow
            .desk
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let poll = desk.poll(&applicant, consent, at);
        drop(desk);
        match poll {
            Poll::Granted => {
                self.note_flow(origin, "granted", None);
                let token = json!({
                    "access_token": self.flow.token(&applicant),
                    "token_type": "Bearer",
                    "expires_in": seconds_left(&applicant, at),
                });
                answer(200, &token)
            }
            Poll::Pending { why, first } => {
                if first {
                    self.note_flow(origin, "waits", Some(why.clone()));
                }
                refused("authorization_pending", &why)
            }
            Poll::SlowDown => refused("slow_down", "ask less often"),
            Poll::Denied(why) => {
                self.note_flow(origin, "denied", Some(why));
                refused("access_denied", "refused")
            }
        }
    }

    /// Whether a request for a config has the token that its profile's device flow gives, where it has one.
    pub(super) fn has_flow_token(
        &self,
        origin: &Origin,
        request: &Request,
        asker: &Asker,
    ) -> Result<(), Refusal> {
        let site = self.controller.snapshot().load();
        let profile = site.profile_of_token(&asker.token);
        if !profile.is_some_and(netboot::spec::Profile::asks_for_device_flow) {
            return Ok(());
        }
        let device = Device {
            address: asker.address,
            neighbour: asker.neighbour,
            mac: None,
            uuid: None,
            serial: None,
        };
        let right = site.applicant(&device, now()).ok();
        // RFC 6750, 2.1; RFC 9110, 11.1: the scheme is compared without case.
        let given = request.authorization.as_deref().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        match (given, right) {
            (Some(given), Some(right)) if same(given, &self.flow.token(&right)) => Ok(()),
            _ => {
                let why =
                    "its config needs the token of its device flow, and there was none or another";
                self.note_flow(origin, "refused", Some(why.to_owned()));
                Err(Refusal::NoFlowToken)
            }
        }
    }

    fn note_flow(&self, origin: &Origin, answer: &'static str, detail: Option<String>) {
        let fact = Fact::DeviceFlow {
            answer: answer.into(),
            detail,
        };
        self.note(origin, fact);
    }
}

/// What a person sees who follows the console's hint.
pub(super) fn device_page() -> Reply {
    Reply::text(
        200,
        "The code on the console is the machine's name. On the bastion:\n\n  reveille node why CODE\n  reveille node approve CODE\n",
    )
}

/// A form of RFC 6749, appendix B, that names its client.
struct Form<'a>(&'a str);

impl<'a> Form<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let form = Self(str::from_utf8(body).ok()?.trim());
        form.value("client_id")
            .filter(|client| !client.is_empty())?;
        Some(form)
    }

    fn value(&self, wanted: &str) -> Option<String> {
        let value = fields(self.0).find(|(key, _)| *key == wanted);
        value.map(|(_, value)| decoded(value))
    }

    /// What cannot be read says nothing.
    fn device(&self, origin: &Origin) -> Device {
        Device {
            address: origin.peer,
            neighbour: neighbour(origin),
            mac: self.value("mac").and_then(|mac| mac.parse().ok()),
            uuid: self.value("uuid").and_then(|uuid| uuid.parse().ok()),
            serial: self.value("serial").filter(|serial| !serial.is_empty()),
        }
    }
}

fn seconds_left(applicant: &Applicant, at: Timestamp) -> u64 {
    applicant.expires.millis_since(at) / 1000
}

/// An error of RFC 6749, 5.2: status 400, whatever it is.
fn refused(error: &str, description: &str) -> Reply {
    answer(
        400,
        &json!({ "error": error, "error_description": description }),
    )
}

fn answer(status: u16, value: &Value) -> Reply {
    // The client reads JSON by its content type alone; a plain text it takes for a form.
    let reply = Reply::empty(status)
        .with("Content-Type", "application/json")
        .with("Cache-Control", "no-store");
    Reply {
        body: Body::Bytes(value.to_string().into()),
        ..reply
    }
}
