//! The ledger's words: what happened on the way of one boot, one bounded fact at a time.
//!
//! Servers write facts as they answer; `node why` and `events` read them. A fact is evidence for
//! people and verdicts, never for a boot decision: those rest on [`crate::node::NodeRecord`] alone.
//! The shape is stored and sent as JSON, so fields are added, never renamed.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::delivery::DELIVERIES_MAX;
use crate::loader::Client;
use crate::net::{Digest, LinkName, MacAddress, NodeName, Timestamp};

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// The machine's MAC address, where a packet showed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The listed machine it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// What happened.
    #[serde(flatten)]
    pub fact: Fact,
}

/// A word of ours in static memory, or the same word read back from disk.
pub type Word = Cow<'static, str>;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "kebab-case")]
pub enum Fact {
    /// A DHCP or proxyDHCP message was answered.
    Dhcp {
        /// The port it was heard on: 67 or 4011.
        port: u16,
        /// Its type, such as `DISCOVER`.
        message: Word,
        /// The answer's type, such as `OFFER`.
        reply: Word,
        /// Who sent it.
        client: Client,
        /// The transaction.
        xid: u32,
        /// The address given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<Ipv4Addr>,
        /// The rule that chose what to boot; absent when nothing was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<Word>,
    },
    /// A DHCP message of a machine that concerns us was not answered.
    DhcpIgnored {
        /// Its type.
        message: Word,
        /// Why not.
        reason: Word,
    },
    /// A file, or a part of one, was sent.
    Transfer {
        /// `tftp` or `http`.
        protocol: Word,
        /// The name asked for.
        file: String,
        /// The artefact, where it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
        /// First byte of the part.
        offset: u64,
        /// Bytes that left.
        bytes: u64,
        /// Bytes of the whole file.
        size: u64,
        /// From request to end, in milliseconds.
        millis: u64,
        /// TFTP blocks sent more than once.
        retransmits: u32,
        /// How it ended.
        outcome: TransferOutcome,
    },
    /// A file was asked for and not sent.
    TransferRefused {
        /// `tftp` or `http`.
        protocol: Word,
        /// The name asked for, at most 128 characters.
        file: String,
        /// Why.
        reason: Word,
    },
    /// A boot script was served.
    Script {
        /// `boot`, `hold`, `disk`, `refuse` or `discovery`.
        answer: Word,
        /// The rule that chose it.
        rule: Word,
        /// The attempt it opened.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// The sentence shown on the console.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A config was asked for.
    Config {
        /// Which document, such as `ignition` or `user-data`.
        document: Word,
        /// The attempt it was for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// Why it stayed; absent when it left.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        withheld: Option<String>,
    },
    /// A config with secrets was sent.
    Delivery {
        /// Which document.
        document: Word,
        /// The attempt it was for.
        attempt: u32,
        /// Which delivery of that attempt, from 1.
        number: u8,
        /// Whether the machine acknowledged every byte.
        acknowledged: bool,
    },
    /// A machine went through the device flow before its config.
    DeviceFlow {
        /// `asked`, `waits`, `granted`, `denied`, or `refused` to whoever is not that machine.
        answer: Word,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The machine reported.
    Report {
        /// `installed`, `booted`, `joined`, `ready` or `failed`.
        report: Word,
        /// Its own words, or why the report was not taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// False when it was not that machine's to make.
        taken: bool,
    },
    /// The machine's system said how far it is. Nothing proves that it was that machine: a hint for people.
    Progress {
        /// A word of that system, such as `installing`, `running` or `ready`.
        stage: Word,
        /// What is amiss, in its own words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// A person acted.
    Person {
        /// `approve`, `reject`, `cordon`, `uncordon`, `reinstall`, `reload`, `host-apply`, `host-confirm`,
        /// `accept-state`, `kubeconfig` or `talosconfig`.
        act: Word,
        /// Who, as the control socket knew them.
        by: String,
        /// What else was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The bastion's own network was changed.
    Host {
        /// `apply` and each `change` of it, `keep`, `roll-back`, `repair`, or `step-aside` where others undo
        /// each repair.
        act: Word,
        /// The link, where it is about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<LinkName>,
        /// What was done, or why.
        detail: String,
    },
    /// Something about the bastion itself: start, stop, a link, the store, another DHCP server.
    Bastion {
        /// The room, such as `store` or `link`.
        room: Word,
        /// One sentence.
        what: String,
    },
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransferOutcome {
    /// All of it was acknowledged, or handed to the kernel for TCP.
    Complete,
    /// The client only wanted the size and said so (TFTP `tsize`, HTTP HEAD).
    SizeOnly,
    /// The client ended it.
    Aborted,
    /// The client fell silent or too slow.
    TimedOut,
}

impl fmt::Display for Fact {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |f: &mut fmt::Formatter<'_>, sign: &str, text: Option<&str>| match text {
            Some(text) => write!(f, "{sign}{text}"),
            None => Ok(()),
        };
        match self {
            Self::Dhcp {
                port,
                message,
                reply,
                client,
                address,
                rule,
                xid: _,
            } => {
                write!(f, "{message} of {client} answered with {reply}")?;
                if let Some(address) = address {
                    write!(f, " {address}")?;
                }
                if *port == 4011 {
                    f.write_str(" on port 4011")?;
                }
                more(f, ", rule ", rule.as_deref())
            }
            Self::DhcpIgnored { message, reason } => {
                write!(f, "{message} not answered: {}", reason.replace('_', " "))
            }
            Self::Transfer {
                protocol,
                file,
                offset,
                bytes,
                size,
                millis,
                retransmits,
                outcome,
                digest: _,
            } => {
                write!(
                    f,
                    "{file} by {protocol}, {outcome}: {bytes} of {size} bytes"
                )?;
                if *offset > 0 {
                    write!(f, " from {offset} on")?;
                }
                write!(f, " in {millis} ms")?;
                match retransmits {
                    0 => Ok(()),
                    count => write!(f, ", {count} blocks sent again"),
                }
            }
            Self::TransferRefused {
                protocol,
                file,
                reason,
            } => write!(
                f,
                "{file} by {protocol} refused: {}",
                reason.replace('_', " ")
            ),
            Self::Script {
                answer,
                rule,
                attempt,
                reason,
            } => {
                write!(f, "script served: {answer}, rule {rule}")?;
                if let Some(attempt) = attempt {
                    write!(f, ", attempt {attempt}")?;
                }
                more(f, ": ", reason.as_deref())
            }
            Self::Config {
                document,
                attempt: _,
                withheld,
            } => match withheld {
                Some(why) => write!(f, "{document} withheld: {why}"),
                None => write!(f, "{document} released"),
            },
            Self::Delivery {
                document,
                attempt: _,
                number,
                acknowledged,
            } => match acknowledged {
                true => write!(f, "{document} delivered, and leaves no more in this boot"),
                false => write!(
                    f,
                    "{document} sent and not acknowledged, {number} of {DELIVERIES_MAX}"
                ),
            },
            Self::DeviceFlow { answer, detail } => {
                write!(f, "device flow {answer}")?;
                more(f, ": ", detail.as_deref())
            }
            Self::Report {
                report,
                detail,
                taken,
            } => {
                write!(
                    f,
                    "reported {report}{}",
                    if *taken { "" } else { ", not believed" }
                )?;
                more(f, ": ", detail.as_deref())
            }
            Self::Progress { stage, detail } => {
                write!(f, "says that it is {stage}")?;
                more(f, "; ", detail.as_deref())
            }
            Self::Person { act, by, detail } => {
                write!(f, "{act} by {by}")?;
                more(f, ": ", detail.as_deref())
            }
            Self::Host {
                act,
                link: _,
                detail,
            } => write!(f, "host, {act}: {detail}"),
            Self::Bastion { room, what } => write!(f, "{room}: {what}"),
        }
    }
}

impl fmt::Display for TransferOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::SizeOnly => "size only",
            Self::Aborted => "aborted",
            Self::TimedOut => "timed out",
        })
    }
}
