//! Whether a change of the network has left the administrator's way to the bastion alive.
//!
//! A change is kept on proof only. What answered before it must answer after it; what did not answer before can prove
//! nothing, and nothing can be lost with it. That a connection still stands is no proof: the other end must have acknowledged
//! bytes since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::net::LinkName;

/// What carried the administrator's words before a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPath {
    /// The gateways that answered, and on which link.
    pub gateways: BTreeMap<IpAddr, LinkName>,
    /// The administrator's connection, when there is one.
    pub session: Option<Session>,
}

/// A TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its two ends, for people.
    pub ends: String,
    /// Bytes that the peer had acknowledged when the change was done; `None` when the kernel can't say.
    pub acknowledged: Option<u64>,
}

/// What is alive now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// The gateways that answered since the change.
    pub gateways: BTreeSet<IpAddr>,
    /// How the connection stands.
    pub session: SessionSign,
    /// Who confirmed the change by hand.
    pub confirmed: Option<String>,
    /// The time to confirm is over.
    pub late: bool,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionSign {
    /// The kernel can't say.
    #[default]
    Unknown,
    /// It has ended.
    Ended,
    /// It stands, and the peer has acknowledged so many bytes.
    Acknowledged(u64),
}

/// What is to become of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It stays, and this is why.
    Keep(String),
    /// Not proven yet; this is missing.
    Wait(String),
    /// It has to go, for this reason.
    RollBack(String),
}

/// Judges a change by what is alive after it. With `ask` only a person's word is proof.
#[must_use]
pub fn judge(path: &ControlPath, ask: bool, signs: &Signs) -> Judgement {
    if let Some(who) = &signs.confirmed {
        return Judgement::Keep(format!("confirmed by {who}"));
    }
    let (found, mut missing) = path.compare(signs);
    if ask {
        missing = vec!["a person's word, which was asked for".to_owned()];
    }
    if missing.is_empty() && found.is_empty() {
        let why = "no gateway answered before and no connection was told of, so none was lost";
        return Judgement::Keep(why.to_owned());
    }
    if missing.is_empty() {
        return Judgement::Keep(found.join(", "));
    }
    let missing = missing.join(", ");
    if signs.late {
        Judgement::RollBack(format!(
            "nobody confirmed it in time, and this was missing: {missing}"
        ))
    } else {
        Judgement::Wait(missing)
    }
}

impl ControlPath {
    /// What is proven alive, and what is not.
    fn compare(&self, signs: &Signs) -> (Vec<String>, Vec<String>) {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for (gateway, link) in &self.gateways {
            if signs.gateways.contains(gateway) {
                found.push(format!("gateway {gateway} answers"));
            } else {
                missing.push(format!(
                    "an answer of gateway {gateway}, which answered on {link} before"
                ));
            }
        }
        if let Some(Session { ends, acknowledged }) = &self.session {
            let lack = match (signs.session, acknowledged) {
                (SessionSign::Acknowledged(now), Some(before)) if now > *before => None,
                (SessionSign::Acknowledged(_), Some(_)) => Some("which acknowledged nothing since"),
                (SessionSign::Ended, _) => Some("which has ended"),
                (SessionSign::Unknown, _) | (SessionSign::Acknowledged(_), None) => {
                    Some("of which the kernel says nothing")
                }
            };
            match lack {
                None => found.push(format!("the connection {ends} lives")),
                Some(lack) => missing.push(format!("the connection {ends}, {lack}")),
            }
        }
        (found, missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> impl Strategy<Value = ControlPath> {
        let gateways = proptest::collection::btree_set(0..4_u8, 0..3);
        let session = proptest::option::of(proptest::option::of(0..4_u64));
        (gateways, session).prop_map(|(gateways, session)| ControlPath {
            gateways: gateways
                .into_iter()
                .filter_map(|last| Some((address(last), "eth0".parse().ok()?)))
                .collect(),
            session: session.map(|acknowledged| Session {
                ends: "198.51.100.7:50000 and 203.0.113.5:22".to_owned(),
                acknowledged,
            }),
        })
    }

    fn address(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    fn signs() -> impl Strategy<Value = Signs> {
        let session = prop_oneof![
            Just(SessionSign::Unknown),
            Just(SessionSign::Ended),
            (0..5_u64).prop_map(SessionSign::Acknowledged),
        ];
        let gateways = proptest::collection::btree_set((0..4_u8).prop_map(address), 0..4);
        let confirmed = proptest::option::of(Just("uid 0".to_owned()));
        (gateways, session, confirmed, any::<bool>()).prop_map(
            |(gateways, session, confirmed, late)| Signs {
                gateways,
                session,
                confirmed,
                late,
            },
        )
    }

    /// Whether everything that was alive before is alive now, said another way than the code says it.
    fn alive(path: &ControlPath, signs: &Signs) -> bool {
        let session = match (&path.session, signs.session) {
            (None, _) => true,
            (Some(session), SessionSign::Acknowledged(now)) => {
                session.acknowledged.is_some_and(|before| before < now)
            }
            (Some(_), SessionSign::Unknown | SessionSign::Ended) => false,
        };
        session
            && path
                .gateways
                .keys()
                .all(|gateway| signs.gateways.contains(gateway))
    }

    proptest! {
        #[test]
        fn a_change_is_kept_on_proof_or_by_hand_and_only_a_late_one_is_undone(
            path in path(), ask: bool, signs in signs(),
        ) {
            let kept = signs.confirmed.is_some() || !ask && alive(&path, &signs);
            let judged = judge(&path, ask, &signs);
            prop_assert_eq!(matches!(judged, Judgement::Keep(_)), kept);
            prop_assert_eq!(matches!(judged, Judgement::RollBack(_)), !kept && signs.late);
        }

        #[test]
        fn another_sign_of_life_never_undoes_what_would_have_been_kept(
            path in path(), ask: bool, signs in signs(), more in 0..4_u8,
        ) {
            let mut later = signs.clone();
            later.gateways.insert(address(more));
            if matches!(judge(&path, ask, &signs), Judgement::Keep(_)) {
                prop_assert!(matches!(judge(&path, ask, &later), Judgement::Keep(_)));
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let path = ControlPath {
            gateways: BTreeMap::from([(address(1), "eth0".parse().expect("a name"))]),
            session: Some(Session {
                ends: "198.51.100.7:50000 and 203.0.113.5:22".to_owned(),
                acknowledged: Some(7),
            }),
        };
        let signs = Signs {
            session: SessionSign::Acknowledged(7),
            late: true,
            ..Signs::default()
        };
        let why = "nobody confirmed it in time, and this was missing: an answer of gateway 203.0.113.1, which \
                   answered on eth0 before, the connection 198.51.100.7:50000 and 203.0.113.5:22, which acknowledged \
                   nothing since";
        let judged = judge(&path, false, &signs);
        assert_eq!(judged, Judgement::RollBack(why.to_owned()));
    }
}
