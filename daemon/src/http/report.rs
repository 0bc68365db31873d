//! What a machine says when it phones home, in the ways that machines can say it.
//!
//! Our agent and shell lines in a profile send one word (`installed`), a form (`report=failed&detail=…`)
//! or JSON (`{"report": "failed", "detail": "…"}`); the query of the URL may say it instead, for callers
//! whose body is not theirs to choose. Who says nothing, or posts the form of cloud-init's `phone_home`
//! (cloudinit/config/cc_phone_home.py), did what its profile is for: an install is `installed`, a live
//! boot is `booted`.

use netboot::node::Report;
use netboot::spec::Purpose;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    report: String,
    #[serde(default)]
    detail: String,
}

/// Reads a report; `None` when it is none. Without a word of its own it is that of the purpose.
pub(super) fn read(query: &str, body: &[u8], purpose: Purpose) -> Option<Report> {
    let done = match purpose {
        Purpose::Install => Report::Installed,
        Purpose::Live => Report::Booted,
    };
    if let Some(report) = form(query) {
        return Some(report);
    }
    let text = str::from_utf8(body).ok()?.trim();
    if text.starts_with('{') {
        let Said { report, detail } = serde_json::from_str(text).ok()?;
        return named(&report, detail);
    }
    if text.is_empty() {
        return Some(done);
    }
    if !text.contains('=') {
        return named(text, String::new());
    }
    form(text).or_else(|| {
        fields(text)
            .any(|(key, _)| key == "instance_id")
            .then_some(done)
    })
}

fn form(text: &str) -> Option<Report> {
    let value = |wanted: &str| {
        fields(text)
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| value)
    };
    named(
        &decoded(value("report")?),
        decoded(value("detail").unwrap_or_default()),
    )
}

pub(super) fn fields(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('&').filter_map(|pair| pair.split_once('='))
}

pub(super) fn decoded(text: &str) -> String {
    netboot::ipxe::percent_decoded(&text.replace('+', " "))
}

fn named(word: &str, detail: String) -> Option<Report> {
    match word {
        "installed" => Some(Report::Installed),
        "booted" => Some(Report::Booted),
        "joined" => Some(Report::Joined),
        "ready" => Some(Report::Ready),
        "failed" => Some(Report::Failed(detail)),
        _ => None,
    }
}

/// The word of a report, for the ledger.
pub(super) fn word(report: &Report) -> &'static str {
    match report {
        Report::Installed => "installed",
        Report::Booted => "booted",
        Report::Joined => "joined",
        Report::Ready => "ready",
        Report::Failed(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_phoning_home_is_understood() {
        let failed = |detail: &str| Some(Report::Failed(detail.to_owned()));
        for (query, body, report) in [
            ("", "installed\n", Some(Report::Installed)),
            ("", "report=ready", Some(Report::Ready)),
            ("", "report=failed&detail=no+disk%21", failed("no disk!")),
            ("", r#"{"report": "joined"}"#, Some(Report::Joined)),
            (
                "",
                r#"{"report": "failed", "detail": "no disk"}"#,
                failed("no disk"),
            ),
            (
                "report=installed",
                "instance_id=a&hostname=b",
                Some(Report::Installed),
            ),
            ("", "done", None),
            ("", r#"{"report": "joined", "else": 1}"#, None),
            ("report=nonsense", "x=y", None),
        ] {
            assert_eq!(
                read(query, body.as_bytes(), Purpose::Install),
                report,
                "{query:?} {body:?}"
            );
        }
        assert_eq!(read("", b"\xff", Purpose::Install), None);
    }

    #[test]
    fn who_says_nothing_did_what_its_profile_is_for() {
        for body in ["", "\n", "instance_id=worker-1-g0&hostname=worker-1"] {
            let said = |purpose| read("", body.as_bytes(), purpose);
            assert_eq!(said(Purpose::Install), Some(Report::Installed), "{body:?}");
            assert_eq!(said(Purpose::Live), Some(Report::Booted), "{body:?}");
        }
    }
}
