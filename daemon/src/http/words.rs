//! The words of the administrator's API that are no view of the site: problems, and what acts answer.
//!
//! Problems are documents of RFC 9457 with two members of our own: `causes`, one sentence each, and
//! `remedy`.

use std::path::PathBuf;

use axum::Json;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::controller::NotWritten;

/// A problem document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// The kind of problem.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// Why, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The kinds of problems: one, for the status says enough.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum ProblemKind {
    /// No more than the status.
    #[serde(rename = "about:blank")]
    Blank,
}

/// What a reload did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// The machines now listed.
    pub nodes: usize,
    /// The networks now served.
    pub networks: usize,
    /// The profiles now known.
    pub profiles: usize,
    /// Something in `site.yaml` changed that only a restart puts in force.
    pub restart_needed: bool,
    /// What became of the bastion's own links, where the site wants other ones than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// Where an export went, on the bastion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    /// The file.
    pub file: PathBuf,
}

/// The words of a consent to lose a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// Serial number of the disk that may be lost.
    pub disk: String,
    /// How long the consent holds.
    pub seconds: u64,
}

impl Problem {
    /// A problem with its status and what went wrong.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: ProblemKind::Blank,
            title: status
                .canonical_reason()
                .unwrap_or("Unknown status")
                .to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            causes: Vec::new(),
            remedy: None,
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

impl From<NotWritten> for Problem {
    fn from(error: NotWritten) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}
