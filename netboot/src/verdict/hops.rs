//! The hops of one boot: what each of them left in the ledger, and what it means when one left nothing.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each hop looks for its own facts and passes over all others"
)]

use super::{Boot, Code, Finding, Hop, HopName, HopState, must_report};
use crate::attempt::{Entry, Fact, TransferOutcome};
use crate::delivery::Deliveries;
use crate::loader::Client;
use crate::net::Timestamp;
use crate::node::{NodeSpec, Report};
use crate::spec::{Artifact, ConfigSource};

/// The hop that decides, and why.
pub(super) struct Reached {
    /// `None` when nothing is wrong.
    pub(super) finding: Option<Finding>,
    pub(super) evidence: Vec<Entry>,
}

/// What a hop left behind.
struct Trace<'a> {
    at: Timestamp,
    entries: Vec<&'a Entry>,
    end: End,
}

enum End {
    /// The next hop is due.
    Well,
    /// It has begun and not ended.
    Open,
    /// It ended badly.
    Badly(Finding),
}

/// How long a machine may take to a hop, in milliseconds, before its silence means something.
fn patience(name: HopName) -> u64 {
    1000 * match name {
        // An offer is taken within seconds, or not at all.
        HopName::Dhcp | HopName::Proxy => 15,
        HopName::Loader => 30,
        // iPXE waits for its link, and may wait 13 seconds for a router advertisement.
        HopName::IpxeDhcp | HopName::Script => 90,
        HopName::Artefacts => 120,
        // Kernel, drivers and address of a slow server.
        HopName::Config => 600,
        HopName::Report => 3600,
    }
}

/// Walks the hops in order: their states, and the one that decides.
pub(super) fn walk(boot: &Boot<'_>, now: Timestamp) -> (Vec<Hop>, Reached) {
    const ALL: [HopName; 8] = [
        HopName::Dhcp,
        HopName::Proxy,
        HopName::Loader,
        HopName::IpxeDhcp,
        HopName::Script,
        HopName::Artefacts,
        HopName::Config,
        HopName::Report,
    ];
    let wanted = ALL.into_iter().filter(|name| applies(boot, *name));
    let traced: Vec<(HopName, Option<Trace<'_>>)> =
        wanted.map(|name| (name, trace(boot, name))).collect();
    let last = traced.iter().rposition(|(_, trace)| trace.is_some());
    // The hop that decides: the last one with a trace, or the one after it when that went well.
    let deciding = match last {
        None => 0,
        Some(last) => match &traced[last].1 {
            Some(Trace { end: End::Well, .. }) => next_after(&traced, last),
            _ => last,
        },
    };
    let silent_since = last
        .and_then(|last| traced[last].1.as_ref())
        .map(|trace| trace.at);
    let (mut hops, mut reached) = (
        Vec::new(),
        Reached {
            finding: None,
            evidence: Vec::new(),
        },
    );
    for (index, (name, trace)) in traced.iter().enumerate() {
        let overdue = silent_since.is_none_or(|at| now.millis_since(at) > patience(*name));
        let finding = match trace {
            _ if index != deciding => None,
            Some(Trace {
                end: End::Badly(finding),
                ..
            }) => Some(finding.clone()),
            Some(Trace { end: End::Well, .. }) => None,
            Some(_) | None => overdue.then(|| silent(boot, *name, last.map(|last| traced[last].0))),
        };
        let state = match trace {
            _ if finding.is_some() => HopState::Failed,
            Some(Trace {
                end: End::Badly(_), ..
            }) => HopState::Failed,
            Some(Trace { end: End::Well, .. }) => HopState::Ok,
            Some(_) | None if index == deciding => HopState::Waiting,
            Some(_) | None => HopState::Unseen,
        };
        if index == deciding {
            let shown = trace.as_ref().or_else(|| traced[last?].1.as_ref());
            let entries = shown
                .map(|trace| trace.entries.as_slice())
                .unwrap_or_default();
            reached.evidence = entries.iter().copied().cloned().collect();
            reached.finding = finding;
        }
        let seen = trace.as_ref().and_then(|trace| trace.entries.last());
        hops.push(Hop {
            name: *name,
            state,
            at: trace.as_ref().map(|trace| trace.at),
            detail: seen.map(|entry| entry.fact.to_string()).unwrap_or_default(),
        });
    }
    (hops, reached)
}

/// The next hop that must leave a trace; past the end when the way is complete.
fn next_after(traced: &[(HopName, Option<Trace<'_>>)], last: usize) -> usize {
    let rest = traced.iter().enumerate().skip(last + 1);
    let mut due = rest.filter(|(_, (name, _))| *name != HopName::Proxy);
    due.next().map_or(traced.len(), |(index, _)| index)
}

fn applies(boot: &Boot<'_>, name: HopName) -> bool {
    match name {
        HopName::Proxy => boot.proxied(),
        HopName::Config => boot
            .profile
            .is_some_and(|profile| profile.config != ConfigSource::None),
        HopName::Report => {
            boot.profile.is_some_and(must_report)
                || boot.attempt.is_some_and(|attempt| attempt.report.is_some())
        }
        HopName::Dhcp
        | HopName::Loader
        | HopName::IpxeDhcp
        | HopName::Script
        | HopName::Artefacts => true,
    }
}

fn trace<'a>(boot: &Boot<'a>, name: HopName) -> Option<Trace<'a>> {
    match name {
        HopName::Dhcp => dhcp(boot, 67, |client| {
            matches!(client, Client::Pxe(_) | Client::HttpBoot(_))
        }),
        HopName::Proxy => dhcp(boot, 4011, |_| true),
        HopName::Loader => loader(boot),
        HopName::IpxeDhcp => dhcp(boot, 67, |client| matches!(client, Client::Ipxe(_))),
        HopName::Script => script(boot),
        HopName::Artefacts => artefacts(boot),
        HopName::Config => config(boot),
        HopName::Report => report(boot),
    }
}

fn dhcp<'a>(boot: &Boot<'a>, on: u16, by: impl Fn(&Client) -> bool) -> Option<Trace<'a>> {
    // Who was ignored is known by nothing but the message, so it counts against the firmware, which asks
    // first, unless it was answered later.
    let firmware = on == 67 && by(&Client::Pxe(crate::loader::Architecture::BIOS));
    let mut entries: Vec<&Entry> = Vec::new();
    let mut end = End::Open;
    for entry in boot.entries {
        match &entry.fact {
            Fact::Dhcp {
                port,
                client,
                reply,
                rule,
                ..
            } if *port == on && by(client) => {
                let answered = reply == "ACK" || (boot.proxied() && reply == "OFFER");
                end = match rule.as_deref() {
                    Some("chain-loop") => End::Badly(chain_loop(boot)),
                    Some("no-loader") => End::Badly(Finding::new(
                        Code::NoLoader,
                        format!(
                            "there is no loader for the firmware of {}: {client}",
                            boot.node.name
                        ),
                        "name one under `loaders` in site.yaml, or bring one with `reveille image import`",
                    )),
                    Some("identity-conflict") => End::Badly(conflict(boot, "")),
                    _ if answered => End::Well,
                    _ => End::Open,
                };
                entries.push(entry);
            }
            Fact::DhcpIgnored { reason, .. }
                if firmware && !matches!(end, End::Well) && reason != "released" =>
            {
                end = End::Badly(ignored(boot, reason, !entries.is_empty()));
                entries.push(entry);
            }
            _ => {}
        }
    }
    Some(Trace {
        at: entries.last()?.at,
        entries,
        end,
    })
}

fn ignored(boot: &Boot<'_>, reason: &str, offered: bool) -> Finding {
    let name = &boot.node.name;
    if matches!(reason, "other_server" | "other_servers_client") {
        return Finding::new(
            Code::OfferNotTaken,
            format!(
                "{name} took the offer of another DHCP server{}",
                if offered {
                    ", although we had made one"
                } else {
                    ""
                }
            ),
            "find the other server on this network (`reveille events` names its address) and stop it, or set the network's mode to proxy; firmware shows PXE-E53 or PXE-E16 when the other offer names no boot file",
        );
    }
    let remedy = match reason {
        "other_network" => {
            "it is plugged into another network than the inventory says: move the cable or its VLAN, or correct `network` and `address` in machines.yaml"
        }
        "network_off" => {
            "the network's mode is off: set it to reservation, pool or proxy in site.yaml"
        }
        "address_in_use" => {
            "another machine uses its address: find it by `ip neigh`, and give one of the two another address"
        }
        "pool_exhausted" => "the range is used up: widen it in site.yaml, or list the machine",
        _ => "`reveille simulate --mac` shows the rule that was applied",
    };
    Finding::new(
        Code::DhcpIgnored,
        format!(
            "{name} asks by DHCP and is not answered: {}",
            reason.replace('_', " ")
        ),
        remedy,
    )
}

fn chain_loop(boot: &Boot<'_>) -> Finding {
    Finding::new(
        Code::ChainLoop,
        format!(
            "{} fetches its loader again and again and never becomes iPXE",
            boot.node.name
        ),
        "the loader is not iPXE, or its own DHCP does not carry user class `iPXE` or option 175: name another one under `loaders`, such as snponly.efi in place of ipxe.efi",
    )
}

fn conflict(boot: &Boot<'_>, reason: &str) -> Finding {
    let name = &boot.node.name;
    let sentence = if reason.is_empty() {
        format!("{name} shows an identity that contradicts the inventory")
    } else {
        format!("{name} contradicts the inventory: {reason}")
    };
    Finding::new(
        Code::IdentityConflict,
        sentence,
        "see which machine it is; then correct the MAC address, UUID or serial in machines.yaml",
    )
}

/// The network boot program, by TFTP or by HTTP. Whatever bears a digest is an artefact of a profile.
fn loader<'a>(boot: &Boot<'a>) -> Option<Trace<'a>> {
    let name = &boot.node.name;
    let mut entries: Vec<&Entry> = Vec::new();
    let mut end = End::Open;
    let mut fetched = 0;
    for entry in boot.entries {
        match &entry.fact {
            Fact::Transfer {
                file,
                digest: None,
                outcome,
                bytes,
                size,
                retransmits,
                ..
            } if !file.ends_with(".ipxe") => {
                let cut = |why: &str, remedy: &str| {
                    let sentence = format!(
                        "{name} fetched {bytes} of {size} bytes of its loader {file} and {why} ({retransmits} blocks sent again)"
                    );
                    End::Badly(Finding::new(Code::LoaderAborted, sentence, remedy))
                };
                end = match (outcome, end) {
                    (TransferOutcome::Complete, _) => {
                        fetched += 1;
                        End::Well
                    }
                    (_, End::Well) => End::Well,
                    (TransferOutcome::SizeOnly, _) => End::Open,
                    (TransferOutcome::Aborted, _) => cut(
                        "gave up itself",
                        "firmware shows PXE-E23 or PXE-E36; it may find the loader too large for its memory (PXE-E79) or the wrong kind: name a smaller one, such as undionly.kpxe or snponly.efi",
                    ),
                    (TransferOutcome::TimedOut, _) => cut(
                        "fell silent",
                        "firmware shows PXE-E35 or PXE-E18; packets are lost on the way: look for a duplex or MTU mismatch at its switch port, and for a filter on the UDP ports above 1023",
                    ),
                };
                entries.push(entry);
            }
            Fact::TransferRefused { file, reason, .. }
                if !file.ends_with(".ipxe") && !matches!(end, End::Well) =>
            {
                end = End::Badly(Finding::new(
                    Code::LoaderRefused,
                    format!(
                        "{name} asked for the file {file}, which is not served: {}",
                        reason.replace('_', " ")
                    ),
                    "firmware shows PXE-E3B or PXE-T01; if another DHCP server names this file, remove its options 66 and 67; else bring the loader with `reveille image import`",
                ));
                entries.push(entry);
            }
            // Nothing that comes later is the loader's.
            Fact::Script { .. } => break,
            _ => {}
        }
    }
    if fetched > 2 && !boot.entries.iter().any(is_of_ipxe) {
        end = End::Badly(chain_loop(boot));
    }
    Some(Trace {
        at: entries.last()?.at,
        entries,
        end,
    })
}

fn is_of_ipxe(entry: &Entry) -> bool {
    matches!(
        entry.fact,
        Fact::Script { .. }
            | Fact::Dhcp {
                client: Client::Ipxe(_),
                ..
            }
    )
}

fn script<'a>(boot: &Boot<'a>) -> Option<Trace<'a>> {
    let entries: Vec<&Entry> = boot
        .entries
        .iter()
        .filter(|entry| matches!(entry.fact, Fact::Script { .. }))
        .collect();
    let attempted = boot.attempt.map(|attempt| attempt.started);
    let Some(Entry {
        at,
        fact:
            Fact::Script {
                answer,
                rule,
                reason,
                ..
            },
        ..
    }) = entries.last()
    else {
        return Some(Trace {
            at: attempted?,
            entries,
            end: End::Well,
        });
    };
    let reason = reason.as_deref().unwrap_or_default();
    let end = match answer.as_ref() {
        "boot" | "disk" => End::Well,
        // It asks again by itself; what it waits for is told by the record.
        "hold" => End::Open,
        _ if rule == "identity-conflict" => End::Badly(conflict(boot, reason)),
        _ => End::Badly(Finding::new(
            Code::ScriptRefused,
            format!(
                "{} asked for its script and was refused: {reason}",
                boot.node.name
            ),
            "the reason names what to mend",
        )),
    };
    Some(Trace {
        at: *at,
        entries,
        end,
    })
}

/// Kernel and initial ramdisks: well when each of them left as a whole. What the initramfs fetches after
/// them, such as a live root, is heard of here where it does not arrive.
fn artefacts<'a>(boot: &Boot<'a>) -> Option<Trace<'a>> {
    let profile = boot.profile?;
    let wanted: Vec<&Artifact> = profile.files().collect();
    let loaded = 1 + profile.initrds.len();
    let served = boot
        .entries
        .iter()
        .rposition(|entry| matches!(entry.fact, Fact::Script { .. }));
    let later = match (served, boot.attempt) {
        (Some(at), _) => boot.entries.get(at + 1..)?,
        // The record knows of a script that the ledger lost.
        (None, Some(_)) => boot.entries,
        (None, None) => return None,
    };
    let mut got = vec![0; wanted.len()];
    let mut entries: Vec<&Entry> = Vec::new();
    let (mut end, mut cut_later) = (End::Open, false);
    for entry in later {
        match &entry.fact {
            Fact::Transfer {
                digest: Some(digest),
                bytes,
                size,
                millis,
                outcome,
                file,
                ..
            } => {
                let Some(index) = wanted
                    .iter()
                    .position(|artifact| artifact.digest == *digest)
                else {
                    continue;
                };
                got[index] = u64::saturating_add(got[index], *bytes);
                let cut = |code, why: &str, remedy: &str| {
                    let sentence = format!(
                        "{} fetched {bytes} of {size} bytes of {file} in {} s and {why}",
                        boot.node.name,
                        millis / 1000
                    );
                    End::Badly(Finding::new(code, sentence, remedy))
                };
                end = match outcome {
                    TransferOutcome::Complete | TransferOutcome::SizeOnly => End::Open,
                    TransferOutcome::Aborted if index >= loaded => cut(
                        Code::ArtefactIncomplete,
                        "hung up",
                        "its console shows the cause; a live root lies in memory as a whole: where it does not fit, give the machine more",
                    ),
                    TransferOutcome::Aborted => cut(
                        Code::ArtefactIncomplete,
                        "hung up",
                        "iPXE shows the cause on its console; where the ramdisk does not fit it says \"Out of memory\" or \"No space left on device\": give the machine more, or the profile a smaller one",
                    ),
                    TransferOutcome::TimedOut => cut(
                        Code::ArtefactSlow,
                        "was too slow",
                        "look for a link at 100 Mbit/s or half duplex, lost packets, or an MTU that the path does not carry; try snponly.efi in place of ipxe.efi",
                    ),
                };
                cut_later = index >= loaded && matches!(end, End::Badly(_));
                entries.push(entry);
            }
            Fact::TransferRefused { file, reason, .. } => {
                end = End::Badly(Finding::new(
                    Code::ArtefactRefused,
                    format!(
                        "{} asked for {file} and was refused: {}",
                        boot.node.name,
                        reason.replace('_', " ")
                    ),
                    "`reveille image verify` finds what is missing or damaged, `reveille image pull` brings it again",
                ));
                entries.push(entry);
            }
            _ => {}
        }
    }
    let mut boots = wanted.iter().zip(&got).take(loaded);
    let whole = boots.all(|(artifact, got)| *got >= artifact.size);
    Some(Trace {
        at: entries.last()?.at,
        entries,
        end: if whole && !cut_later { End::Well } else { end },
    })
}

fn config<'a>(boot: &Boot<'a>) -> Option<Trace<'a>> {
    let released = boot.attempt.and_then(|attempt| attempt.released);
    let entries: Vec<&Entry> = boot
        .entries
        .iter()
        .filter(|entry| matches!(entry.fact, Fact::Config { .. } | Fact::Delivery { .. }))
        .collect();
    let again = boot
        .attempt
        .filter(|attempt| attempt.deliveries.asked_again.is_some());
    let withheld = entries.iter().rev().find_map(|entry| match &entry.fact {
        Fact::Config {
            document,
            withheld: Some(why),
            ..
        } => Some((document, why)),
        _ => None,
    });
    let end = match (again, released, withheld) {
        (Some(attempt), _, _) => asked_again(boot.node, &attempt.deliveries),
        (None, None, Some((document, why))) => End::Badly(Finding::new(
            Code::ConfigWithheld,
            format!(
                "the {document} of {} was asked for and stayed: {why}",
                boot.node.name
            ),
            "a config leaves only for the machine that was just served its script: power-cycle it; if it asks from another address, its system's DHCP does not use the MAC address of the inventory",
        )),
        (None, None, None) if entries.is_empty() => return None,
        _ => End::Well,
    };
    let at = entries
        .last()
        .map(|entry| entry.at)
        .into_iter()
        .chain(released)
        .max()?;
    Some(Trace { at, entries, end })
}

/// A config with secrets that somebody wants once more.
fn asked_again(node: &NodeSpec, deliveries: &Deliveries) -> End {
    let (name, begun) = (&node.name, deliveries.begun);
    let had = match deliveries.delivered {
        Some(_) => format!("was delivered to {name} and then asked for again"),
        None => format!("left {begun} times for {name}, never arrived, and is still asked for"),
    };
    End::Badly(Finding::new(
        Code::ConfigAskedAgain,
        format!("the config with its cluster's secrets {had}; it leaves no more in this boot"),
        format!(
            "power-cycle {name}: its next boot has a config of its own; if the machine was up already, somebody else may ask in its name: look at its switch port; `reveille node approve {name}` settles the alarm"
        ),
    ))
}

fn report<'a>(boot: &Boot<'a>) -> Option<Trace<'a>> {
    let entries: Vec<&Entry> = boot
        .entries
        .iter()
        .filter(|entry| matches!(entry.fact, Fact::Report { .. }))
        .collect();
    let said = boot.attempt.and_then(|attempt| attempt.report.as_ref());
    let heard = entries.last().map(|entry| (entry.at, &entry.fact));
    let end = match (said, heard) {
        (Some(Report::Failed(words)), _) => End::Badly(Finding::new(
            Code::FailedByMachine,
            format!("{} says that it failed: {words}", boot.node.name),
            "its console has more; mend the cause and power-cycle it",
        )),
        (Some(_), _) => End::Well,
        (
            None,
            Some((
                _,
                Fact::Report {
                    detail,
                    taken: false,
                    ..
                },
            )),
        ) => End::Badly(Finding::new(
            Code::ReportRefused,
            format!(
                "{} reported and was not believed: {}",
                boot.node.name,
                detail.as_deref().unwrap_or("no reason was kept")
            ),
            "a report counts only from the machine's own address and with the token of its latest script; power-cycle it",
        )),
        (None, Some(_)) => End::Open,
        (None, None) => return None,
    };
    let at = heard
        .map(|(at, _)| at)
        .or_else(|| boot.attempt.map(|attempt| attempt.started))?;
    Some(Trace { at, entries, end })
}

/// What it means that `name` is silent after `last`.
fn silent(boot: &Boot<'_>, name: HopName, last: Option<HopName>) -> Finding {
    let node = &boot.node.name;
    let network = &boot.network.name;
    let link = &boot.network.link;
    match name {
        HopName::Dhcp if last.is_none() => Finding::new(
            Code::NoDhcpSeen,
            format!("{node} was never heard on network {network}"),
            format!(
                "power it on with network boot first; its port must carry the VLAN of {link} untagged, and nothing may filter UDP 67 and 68; firmware shows PXE-E61 without a cable, PXE-E51 or PXE-E16 without an offer"
            ),
        ),
        HopName::Dhcp | HopName::Proxy => Finding::new(
            Code::OfferNotTaken,
            format!("{node} was made an offer on network {network} and did not take it"),
            if boot.proxied() {
                "the other DHCP server must give it an address (PXE-E52 when it does not), and UDP 4011 must reach this bastion (PXE-E55 or PXE-E18 when it does not)"
            } else {
                "another DHCP server on the network may have been faster, or the answer does not reach the machine (PXE-E16, PXE-E18, PXE-E51): look for its spanning tree or snooping at the switch port"
            },
        ),
        HopName::Loader => Finding::new(
            Code::LoaderNotFetched,
            format!("{node} has its address and does not fetch its loader"),
            "UDP 69 must reach this bastion and the answers' ports must not be filtered: firmware shows PXE-E32 or PXE-E18, PXE-E11 when the bastion does not answer ARP, PXE-E53 when it believed another server's offer; UEFI HTTP Boot may allow only https",
        ),
        HopName::IpxeDhcp if last == Some(HopName::IpxeDhcp) => Finding::new(
            Code::OfferNotTaken,
            format!("{node} runs iPXE, was made an offer and did not take it"),
            "the answer does not reach it: look for spanning tree, DHCP snooping or another DHCP server; iPXE shows \"No configuration methods succeeded\" when no answer came",
        ),
        HopName::IpxeDhcp => Finding::new(
            Code::ScriptNotAsked,
            format!("{node} fetched its loader, which is silent since"),
            "at its switch port, spanning tree (set portfast) or LACP (set it to fall back) eat the first 30 seconds; or the loader has no driver for the card: try snponly.efi or undionly.kpxe; with Secure Boot on, an unsigned loader does not start",
        ),
        HopName::Script => Finding::new(
            Code::ScriptNotAsked,
            format!("{node} runs iPXE, has its address and does not ask for its script"),
            "TCP 8080 must reach this bastion; iPXE shows \"Connection timed out\" on its console when it does not",
        ),
        HopName::Artefacts if last == Some(HopName::Artefacts) => Finding::new(
            Code::ArtefactIncomplete,
            format!("{node} has not fetched all of its kernel and ramdisks"),
            "its console shows where iPXE stands; power-cycle it if it hangs",
        ),
        HopName::Artefacts => Finding::new(
            Code::KernelNotFetched,
            format!("{node} has its script and does not fetch its kernel"),
            "its console shows the line of the script that failed; TCP 8080 must stay reachable",
        ),
        HopName::Config => Finding::new(
            Code::ConfigNotAsked,
            format!("{node} has its kernel and ramdisks and does not ask for its config"),
            "its kernel or initramfs lacks a driver for the card, did not get an address, or does not reach TCP 8080 or 8443; `console=` arguments in the profile make it tell",
        ),
        HopName::Report => Finding::new(
            Code::NoReport,
            format!("{node} has all that it was to be given and does not report"),
            "its installer hangs, or the profile's config never posts to the report URL: its console shows which",
        ),
    }
}
