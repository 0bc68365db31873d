//! `reveille preflight`: who does it, and how it is told.
//!
//! A running daemon does it, for it has the rights and the ports; without one, or with `--site`, this command does it
//! itself.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use netboot::cluster::ClusterName;
use netboot::event::Event;
use netboot::site::Site;

use super::{Check, Focus, Id, Outcome, Report, Scene, blocks, run};
use crate::cli::PreflightOptions;
use crate::client::{Ask, ask, runtime};
use crate::config;
use crate::controller::now;
use crate::failure::{Exit, Failure, faulty_site, print};
use crate::places::SITE;
use crate::show::{json, table, table_text};
use crate::{dns, elsewhere, link};

/// `reveille preflight`
///
/// # Errors
/// [`Failure`] without a cause when a check failed that nobody overrode: the table has said everything.
pub fn preflight(options: &PreflightOptions) -> Result<(), Failure> {
    let progress = progress();
    let report = gather(options, &progress);
    progress.finish_and_clear();
    let report = report?;
    print(&if options.json {
        json(&report)
    } else {
        text(&report, &options.skip)
    })?;
    if blocks(&report.checks, &options.skip).is_empty() {
        Ok(())
    } else {
        Err(Failure {
            exit: Exit::Failed,
            causes: Vec::new(),
            remedy: None,
        })
    }
}

fn gather(options: &PreflightOptions, progress: &ProgressBar) -> Result<Report, Failure> {
    if options.site.is_none() {
        progress.set_message("the daemon looks around, for up to 15 s");
        let path = match &options.cluster {
            Some(cluster) => format!("/api/v1/preflight?cluster={cluster}"),
            None => "/api/v1/preflight".to_owned(),
        };
        match ask(&options.socket, &Ask::post(&path, b"")) {
            Err(failure) if failure.exit == Exit::Unreachable => {}
            answered => return answered,
        }
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Exit::NotPermitted,
            "without a daemon this command sends and hears frames itself, which only root may",
        )
        .with_remedy("run it as root, or start the daemon and leave out --site"));
    }
    let site = options.site.as_deref().unwrap_or(SITE.as_ref());
    let (settings, spec) = config::load(site, &options.state).map_err(faulty_site)?;
    runtime()?.block_on(async {
        let links = link::start().await.map_err(|error| {
            Failure::of(Exit::Failed, "reading the host's links", error.as_ref())
        })?;
        let (spec, links) = (Arc::new(spec), links.borrow().clone());
        // Nothing is known of machines here: they are placed as they would be for the first time.
        let site = Site::new(Arc::clone(&spec));
        let site = Arc::new(
            site.apply(Event::SpecReplaced(Arc::clone(&spec)), now())
                .site,
        );
        let focus = match &options.cluster {
            Some(name) if site.cluster(name).is_none() => return Err(no_cluster(name)),
            name => name.clone(),
        };
        let focus = focus.map(|name| Focus {
            name,
            site: Arc::clone(&site),
            in_force: false,
            balances: settings.balancer.is_ours(),
            public: settings.public_links.clone(),
            listens: BTreeMap::new(),
        });
        let scene = Scene {
            names: dns::names(&site, &links),
            focus,
            // Without the daemon nobody has the clusters' keys.
            elsewhere: elsewhere::questions(&site, &links, |_| None),
            spec,
            links,
            ports: settings.ports(),
            state: options.state.clone(),
            at: now(),
        };
        let told = |check: &Check| {
            progress.set_message(format!("{} of {}", check.id.word(), check.subject));
        };
        Ok(run(scene, Arc::default(), told).await)
    })
}

fn no_cluster(name: &ClusterName) -> Failure {
    let what = format!("no definition of the site wants a cluster {name}");
    let remedy =
        "write the name of one of its clusters/*.yaml; applied ones are known to the daemon";
    Failure::new(Exit::Usage, what).with_remedy(remedy)
}

/// A line on standard error that moves while nothing else does; nothing where that is no terminal.
pub(crate) fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {elapsed} {msg}").expect("the template is sound");
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

fn text(report: &Report, overridden: &[Id]) -> String {
    let mut rows = table(&["check", "subject", "result", "evidence"]);
    for check in &report.checks {
        let overrides = check.result == Outcome::Fail && overridden.contains(&check.id);
        let result = check.result.word();
        rows.add_row([
            check.id.word().to_owned(),
            check.subject.clone(),
            if overrides {
                format!("{result}, skipped")
            } else {
                result.to_owned()
            },
            check.evidence.clone(),
        ]);
    }
    let mut text = table_text(&rows);
    for check in &report.checks {
        if let Some(remedy) = &check.remedy {
            text += &format!(
                "\n{} ({})\n  try: {remedy}\n",
                check.id.word(),
                check.subject
            );
        }
    }
    let count = |result| {
        report
            .checks
            .iter()
            .filter(|check| check.result == result)
            .count()
    };
    text + &format!(
        "\n{} pass, {} warn, {} fail\n",
        count(Outcome::Pass),
        count(Outcome::Warn),
        count(Outcome::Fail)
    )
}
