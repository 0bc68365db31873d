//! Who asks over the administrator's door, and what they may. A handler that answers takes a [`Reader`] or a [`Changer`], and
//! neither can be had without the right to it.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::words::Problem;

/// Who asks, and what they may.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For the ledger: a user's name, `uid 1234`, or `token`.
    pub name: String,
    /// What they may.
    pub rights: Rights,
}

/// What a caller may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing; the text says how to be let in.
    None(String),
    /// Look.
    Read,
    /// Look and change.
    Change,
}

/// A caller who may look.
#[derive(Debug)]
pub struct Reader;

/// A caller who may change things, by name.
#[derive(Debug)]
pub struct Changer(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = caller(parts);
        match caller.rights {
            Rights::Read | Rights::Change => Ok(Self),
            Rights::None(how) => Err(denied(&caller.name, "look", &how)),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Changer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = caller(parts);
        match caller.rights {
            Rights::Change => Ok(Self(caller.name)),
            Rights::Read => Err(denied(
                &caller.name,
                "change anything",
                "your group may only look; ask root, or a member of the group that may change",
            )),
            Rights::None(how) => Err(denied(&caller.name, "change anything", &how)),
        }
    }
}

fn caller(parts: &Parts) -> Caller {
    parts
        .extensions
        .get::<Caller>()
        .cloned()
        .unwrap_or_else(|| Caller {
            name: "unknown".to_owned(),
            rights: Rights::None("ask through the control socket".to_owned()),
        })
}

fn denied(name: &str, what: &str, how: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, format!("{name} may not {what} here")).with_remedy(how)
}

/// Does what a caller wants changed to its end, also when they hang up meanwhile: half of it would be left.
pub(super) async fn to_its_end<T: Send + 'static>(
    act: impl Future<Output = T> + Send + 'static,
) -> T {
    match tokio::spawn(act).await {
        Ok(done) => done,
        // Nobody aborts it, so it panicked.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
