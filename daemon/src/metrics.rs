//! The counters as text, in the exposition format that Prometheus reads (version 0.0.4): one family
//! after the other, each with its help and type. Labels say role, room and reason, never which
//! machine: there may be a hundred thousand.

use std::fmt::Write as _;

use crate::balancer::{ListenerStatus, Totals};
use crate::bastion::Bastion;
use crate::http::Counters;
use crate::status::Status;

/// The media type of the page.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that is counted, now.
#[must_use]
pub fn page(bastion: &Bastion) -> String {
    let status = bastion.status();
    let mut page = Page::default();
    site(&mut page, &status);
    servers(&mut page, bastion);
    balancer(&mut page, &status.balancer);
    page.0
}

fn site(page: &mut Page, status: &Status) {
    page.family(
        "reveille_healthy",
        "gauge",
        "1 while all that should work does.",
    );
    page.sample("reveille_healthy", &[], u64::from(status.healthy));
    page.family(
        "reveille_start_time_seconds",
        "gauge",
        "When the daemon started, in seconds since 1970.",
    );
    let started = status.started.millis() / 1000;
    page.sample("reveille_start_time_seconds", &[], started);
    page.family(
        "reveille_site_generation",
        "counter",
        "Durable changes of the site.",
    );
    page.sample("reveille_site_generation", &[], status.generation);
    page.family("reveille_nodes", "gauge", "Listed machines by state.");
    for (state, count) in &status.counts {
        page.sample("reveille_nodes", &[("state", state)], *count as u64);
    }
    page.family(
        "reveille_nodes_waiting_for_person",
        "gauge",
        "Machines that a person must act upon.",
    );
    let waiting = status.nodes.iter().filter(|node| node.needs_person).count();
    page.sample("reveille_nodes_waiting_for_person", &[], waiting as u64);
    page.family(
        "reveille_leases",
        "gauge",
        "Addresses lent to machines that are not listed, by network.",
    );
    for network in &status.networks {
        let label = [("network", network.name.as_str())];
        page.sample("reveille_leases", &label, network.leases as u64);
    }
    page.family(
        "reveille_condition_healthy",
        "gauge",
        "1 while a room of the daemon works.",
    );
    for condition in &status.conditions {
        let label = [("subject", condition.subject.as_str())];
        let value = u64::from(condition.healthy);
        page.sample("reveille_condition_healthy", &label, value);
    }
}

fn servers(page: &mut Page, bastion: &Bastion) {
    let servers = bastion.servers();
    let dhcp = servers.dhcp.counters();
    page.family(
        "reveille_dhcp_messages_total",
        "counter",
        "DHCP messages received, and replies by type.",
    );
    for (kind, count) in dhcp.totals() {
        page.sample("reveille_dhcp_messages_total", &[("type", kind)], count);
    }
    page.family(
        "reveille_dhcp_ignored_total",
        "counter",
        "DHCP messages that got no reply, by reason.",
    );
    for (reason, count) in dhcp.reasons() {
        page.sample("reveille_dhcp_ignored_total", &[("reason", reason)], count);
    }
    page.family(
        "reveille_tftp_total",
        "counter",
        "TFTP, by what was counted.",
    );
    for (what, count) in servers.tftp.counters() {
        page.sample("reveille_tftp_total", &[("what", what)], count);
    }
    http(page, servers.http.counters());
    page.family(
        "reveille_http_connections",
        "gauge",
        "Boot HTTP connections open.",
    );
    let open = servers.http.connections() as u64;
    page.sample("reveille_http_connections", &[], open);
    page.family(
        "reveille_talos_events_total",
        "counter",
        "Events of Talos machines, and their connections refused, by what became of them.",
    );
    for (outcome, count) in servers.http.sink().counts() {
        let label = [("outcome", outcome.word())];
        page.sample("reveille_talos_events_total", &label, count);
    }
    page.family(
        "reveille_dns_questions_total",
        "counter",
        "DNS questions, by what became of them.",
    );
    for (what, count) in servers.dns.counters().all() {
        page.sample("reveille_dns_questions_total", &[("what", what)], count);
    }
    page.family(
        "reveille_ntp_questions_total",
        "counter",
        "NTP questions, by what became of them.",
    );
    for (what, count) in servers.time.counters().all() {
        page.sample("reveille_ntp_questions_total", &[("what", what)], count);
    }
    page.family(
        "reveille_router_solicitations_total",
        "counter",
        "IPv6 router solicitations, by what became of them.",
    );
    let quiet = servers.quiet_ipv6.counters();
    for (what, count) in [
        ("answered", quiet.answered()),
        ("withheld", quiet.withheld()),
    ] {
        page.sample(
            "reveille_router_solicitations_total",
            &[("what", what)],
            count,
        );
    }
    page.family(
        "reveille_ledger_dropped_total",
        "counter",
        "Ledger entries dropped, by reason.",
    );
    let ledger = &bastion.ledger;
    for (reason, count) in [
        ("queue_full", ledger.dropped()),
        ("crowded", ledger.crowded()),
    ] {
        page.sample(
            "reveille_ledger_dropped_total",
            &[("reason", reason)],
            count,
        );
    }
}

fn http(page: &mut Page, counters: &Counters) {
    page.family(
        "reveille_http_answers_total",
        "counter",
        "Boot HTTP answers by the first digit of their status.",
    );
    for hundreds in 1..=5 {
        let class = format!("{hundreds}xx");
        let count = counters.answers(hundreds);
        page.sample("reveille_http_answers_total", &[("status", &class)], count);
    }
    page.family(
        "reveille_http_refused_total",
        "counter",
        "Boot HTTP requests and connections refused, by reason.",
    );
    for (refusal, count) in counters.refusals() {
        let label = [("reason", refusal.word())];
        page.sample("reveille_http_refused_total", &label, count);
    }
}

fn balancer(page: &mut Page, listeners: &[ListenerStatus]) {
    page.family(
        "reveille_balancer_connections",
        "gauge",
        "Balanced connections open, by cluster and port.",
    );
    for listener in listeners {
        let port = listener.port.to_string();
        let labels = [("cluster", listener.cluster.as_str()), ("port", &port)];
        page.sample(
            "reveille_balancer_connections",
            &labels,
            listener.connections,
        );
    }
    page.family(
        "reveille_balancer_connections_total",
        "counter",
        "Balanced connections, by what became of them.",
    );
    for listener in listeners {
        let port = listener.port.to_string();
        let Totals {
            accepted,
            retried,
            unserved,
            crowded,
            expired,
            ..
        } = listener.totals;
        for (what, count) in [
            ("accepted", accepted),
            ("retried", retried),
            ("unserved", unserved),
            ("crowded", crowded),
            ("expired", expired),
        ] {
            let cluster = ("cluster", listener.cluster.as_str());
            let labels = [cluster, ("port", &port), ("what", what)];
            page.sample("reveille_balancer_connections_total", &labels, count);
        }
    }
    page.family(
        "reveille_balancer_bytes_total",
        "counter",
        "Bytes of balanced connections, from clients (in) and to them (out).",
    );
    for listener in listeners {
        let port = listener.port.to_string();
        let totals = &listener.totals;
        for (way, count) in [("in", totals.bytes_in), ("out", totals.bytes_out)] {
            let cluster = ("cluster", listener.cluster.as_str());
            let labels = [cluster, ("port", &port), ("way", way)];
            page.sample("reveille_balancer_bytes_total", &labels, count);
        }
    }
    page.family(
        "reveille_balancer_backends",
        "gauge",
        "Backends by health: up, down, unknown, leaving.",
    );
    for listener in listeners {
        let port = listener.port.to_string();
        for health in ["up", "down", "unknown", "leaving"] {
            let of_health = listener.backends.iter().filter(|b| b.health == health);
            let cluster = ("cluster", listener.cluster.as_str());
            let labels = [cluster, ("port", &port), ("health", health)];
            page.sample(
                "reveille_balancer_backends",
                &labels,
                of_health.count() as u64,
            );
        }
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut page = Page::default();
        page.sample("x", &[("a", "b\"c\\\n"), ("d", "e")], 7);
        page.sample("y", &[], 1);
        assert_eq!(page.0, "x{a=\"b\\\"c\\\\\\n\",d=\"e\"} 7\ny 1\n");
    }
}
