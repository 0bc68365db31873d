//! What runs, for whoever asks the daemon: the administrator's API, the status page and the metrics.
//!
//! `serve` puts it together; nothing here starts or stops anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ::http::StatusCode;
use netboot::attempt::Fact;
use netboot::cluster::{BEGUN, ClusterName};
use netboot::event::{Event, Outcome};
use netboot::net::{LinkName, NodeName, Timestamp};
use netboot::node::NodeRecord;
use netboot::site::Site;
use netboot::spec::SiteSpec;
use netboot::zone::DnsMode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::balancer::command::RequirementsReport;
use crate::balancer::{Balancer, ListenerStatus};
use crate::clusters::keyring::Keyring;
use crate::clusters::services;
use crate::clusters::unknown;
use crate::config::clusters::Change;
use crate::config::{self, Loaded, Report, Settings};
use crate::controller::{Controller, now};
use crate::dhcp::{self, Dhcp};
use crate::dns::command::NamesReport;
use crate::dns::{self, Dns};
use crate::elsewhere::{self, Elsewhere};
use crate::failure::FAULTS_SHOWN;
use crate::health::Health;
use crate::host::keeper::Keeper;
use crate::host::words::{Applied, Last, Plan, Wish};
use crate::http::Http;
use crate::http::words::{Problem, Reloaded};
use crate::ledger::Ledger;
use crate::link::Links;
use crate::loaders::Tftp;
use crate::ntp::Time;
use crate::places::Options;
use crate::plan;
use crate::preflight::{self, Check, Focus, Scene, Verified};
use crate::ra::QuietIpv6;
use crate::simulate::Stand;
use crate::status::{NodeStatus, RefusedSite, SiteFiles, Status, Surroundings};
use crate::vault::Vault;
use crate::{notify, store};

/// What runs, for whoever asks the daemon.
pub struct Bastion {
    /// The single writer, and the snapshots it publishes.
    pub controller: Controller,
    /// Where facts go.
    pub ledger: Ledger,
    /// Where rooms say how they are.
    pub health: Health,
    /// The secrets at rest.
    pub vault: Arc<Vault>,
    /// What is in use of it.
    pub keyring: Arc<Keyring>,
    pub(crate) keeper: Keeper,
    pub(crate) servers: Servers,
    pub(crate) balancer: Balancer,
    pub(crate) elsewhere: Elsewhere,
    pub(crate) links: watch::Receiver<Arc<Links>>,
    pub(crate) ca_pem: String,
    pub(crate) options: Options,
    pub(crate) settings: Settings,
    pub(crate) started: Timestamp,
    pub(crate) files: Mutex<SiteFiles>,
    pub(crate) reloads: tokio::sync::Mutex<()>,
    /// What the last preflight read; held by one that runs.
    pub(crate) preflights: tokio::sync::Mutex<Arc<Verified>>,
    pub(crate) stop: CancellationToken,
}

/// The servers on the provisioning links. Each follows the links and the site by itself; dropping
/// it stops it.
pub struct Servers {
    /// UDP 67 and 4011.
    pub dhcp: Dhcp,
    /// UDP 69.
    pub tftp: Tftp,
    /// Scripts, configs and artefacts.
    pub http: Http,
    /// Answers to IPv6 router solicitations.
    pub quiet_ipv6: QuietIpv6,
    /// UDP and TCP 53.
    pub dns: Dns,
    /// UDP 123.
    pub time: Time,
}

impl Bastion {
    /// What the bastion does now.
    #[must_use]
    pub fn status(&self) -> Status {
        let around = Surroundings {
            started: self.started,
            site: self.files().clone(),
            conditions: self.health.conditions(),
            balancer: self.balancer.status(),
            elsewhere: self.elsewhere.findings(),
            ledger_dropped: self.ledger.dropped(),
        };
        let mut status = Status::of(&self.controller.snapshot().load(), around, now());
        for node in &mut status.nodes {
            self.add_hint(node);
        }
        status
    }

    /// Adds what the machine's system said of itself, which the site does not know.
    pub(crate) fn add_hint(&self, node: &mut NodeStatus) {
        node.progress = self.servers.http.sink().progress(&node.name);
    }

    /// Cancelled when the daemon stops.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// The servers on the links.
    #[must_use]
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Where a simulated machine would hear the daemon.
    #[must_use]
    pub fn stand(&self) -> Stand {
        let site = self.controller.snapshot().load();
        let (served, _) = dhcp::wanted(&site, &self.links.borrow(), self.settings.http_port);
        let address = |(link, served): (LinkName, dhcp::Served)| (link, served.context.server);
        Stand {
            addresses: served.into_iter().map(address).collect(),
            ports: self.settings.ports(),
            ca_pem: self.ca_pem.clone(),
        }
    }

    /// The names that follow from the site.
    #[must_use]
    pub fn names(&self) -> NamesReport {
        let site = self.controller.snapshot().load();
        NamesReport::of(
            site.spec().dns().mode,
            &dns::names(&site, &self.links.borrow()),
        )
    }

    /// What the clusters' ports need of whoever takes their connections.
    #[must_use]
    pub fn requirements(&self) -> RequirementsReport {
        let site = self.controller.snapshot().load();
        RequirementsReport::of(&site, self.settings.balancer, &self.balancer.status())
    }

    /// Checks what machines will meet, or those of one cluster. One at a time: two would hear each other.
    ///
    /// # Errors
    /// Another one runs, or nobody knows the cluster.
    pub async fn preflight(
        &self,
        by: &str,
        cluster: Option<ClusterName>,
    ) -> Result<preflight::Report, Problem> {
        let site = self.controller.snapshot().load();
        if let Some(name) = cluster.as_ref().filter(|name| site.cluster(name).is_none()) {
            return Err(unknown(name));
        }
        let Ok(verified) = self.preflights.try_lock() else {
            return Err(
                Problem::new(StatusCode::CONFLICT, "another preflight is under way")
                    .with_remedy("ask again in 15 seconds"),
            );
        };
        tracing::info!(%by, "preflight");
        let detail = cluster.as_ref().map(ToString::to_string);
        self.person("preflight", by, detail);
        let focus = cluster.map(|name| self.focus(name, &site, true));
        Ok(self.look_around(&site, &site, focus, &verified).await)
    }

    /// Refuses to start a cluster where its machines would meet a failed check. One that has begun is let alone.
    ///
    /// # Errors
    /// The failed checks.
    pub(crate) async fn must_pass(
        &self,
        name: &ClusterName,
        wanted: SiteSpec,
    ) -> Result<(), Problem> {
        let site = self.controller.snapshot().load();
        let begun = BEGUN.parse().expect("a fact's name is one label");
        let known = site.cluster(name);
        if known.is_some_and(|(_, state)| state.knows(&begun, None)) {
            return Ok(());
        }
        let in_force = known.is_some();
        let wanted = Event::SpecReplaced(Arc::new(wanted));
        let after = Arc::new(site.apply(wanted, now()).site);
        let verified = self.preflights.lock().await;
        let focus = self.focus(name.clone(), &after, in_force);
        // Our own server tells the names of the site in force; others must know those of the one to come.
        let told = match after.spec().dns().mode {
            DnsMode::Serve => &site,
            DnsMode::External | DnsMode::Off => &after,
        };
        let report = self.look_around(&after, told, Some(focus), &verified).await;
        let red = preflight::blocks(&report.checks, &[]);
        if red.is_empty() {
            return Ok(());
        }
        let told = |check: &&Check| {
            let Check {
                id,
                subject,
                evidence,
                remedy,
                ..
            } = check;
            let remedy = remedy.as_deref().unwrap_or_default();
            format!("{} ({subject}): {evidence}\n    {remedy}", id.word())
        };
        Err(Problem {
            causes: red.iter().map(told).collect(),
            ..Problem::new(
                StatusCode::CONFLICT,
                format!("preflight of {name} fails; nothing changed"),
            )
            .with_remedy(
                "mend what is named above and apply again, or apply with --ignore-preflight",
            )
        })
    }

    fn focus(&self, name: ClusterName, site: &Arc<Site>, in_force: bool) -> Focus {
        let listeners = self.balancer.status();
        let listens = listeners.iter().flat_map(|listener| {
            let at = listener.addresses.iter();
            at.map(|at| (*at, listener.cluster.clone()))
        });
        Focus {
            name,
            site: Arc::clone(site),
            in_force,
            balances: self.settings.balancer.is_ours(),
            public: self.settings.public_links.clone(),
            listens: listens.collect(),
        }
    }

    async fn look_around(
        &self,
        site: &Site,
        told: &Site,
        focus: Option<Focus>,
        verified: &Arc<Verified>,
    ) -> preflight::Report {
        let links = self.links.borrow().clone();
        let trust = |cluster: &ClusterName| elsewhere::trust(&self.keyring, cluster);
        let scene = Scene {
            names: dns::names(told, &links),
            elsewhere: elsewhere::questions(site, &links, trust),
            spec: Arc::clone(site.spec()),
            links,
            ports: self.settings.ports(),
            state: self.options.state.clone(),
            focus,
            at: now(),
        };
        preflight::run(scene, Arc::clone(verified), |_| ()).await
    }

    /// Asks the servers which links they can't serve.
    pub(crate) fn gather_conditions(&self) {
        self.gather_listeners();
        let mut faults = BTreeMap::<LinkName, Vec<String>>::new();
        let Servers {
            dhcp,
            tftp,
            http,
            dns,
            time,
            ..
        } = &self.servers;
        let found = [
            dhcp.faults(),
            tftp.faults(),
            http.faults(),
            dns.faults(),
            time.faults(),
        ];
        for found in found {
            for (link, fault) in found {
                let faults = faults.entry(link).or_default();
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
        for link in dhcp.served() {
            faults.entry(link).or_default();
        }
        let subjects: Vec<String> = faults.keys().map(|link| format!("link {link}")).collect();
        self.health.retain(|subject| {
            !subject.starts_with("link ") || subjects.iter().any(|s| s == subject)
        });
        for ((_, faults), subject) in faults.iter().zip(&subjects) {
            if faults.is_empty() {
                self.health.well(subject, "served");
            } else {
                self.health.ill(subject, faults.join("; "));
            }
        }
        self.gather_alarms();
    }

    /// The machines whose config with secrets was asked for though it was spent.
    fn gather_alarms(&self) {
        const SUBJECT: &str = "config of ";
        let site = self.controller.snapshot().load();
        let asked_again = |record: &NodeRecord| {
            let attempt = record.attempt.as_ref();
            attempt.is_some_and(|attempt| attempt.deliveries.asked_again.is_some())
        };
        let alarmed: Vec<&NodeName> = site
            .records()
            .filter(|(_, record)| asked_again(record))
            .map(|(node, _)| node)
            .collect();
        self.health.retain(|subject| {
            let node = subject.strip_prefix(SUBJECT);
            node.is_none_or(|node| alarmed.iter().any(|alarmed| alarmed.as_str() == node))
        });
        for node in alarmed {
            let what = format!(
                "its secrets were asked for again after they left; see `reveille node why {node}`"
            );
            self.health.ill(&format!("{SUBJECT}{node}"), what);
        }
    }

    /// Asks the balancer where it cannot take connections.
    fn gather_listeners(&self) {
        let listeners = self.balancer.status();
        let subject = |listener: &ListenerStatus| {
            format!(
                "balancer {} {} {}",
                listener.cluster, listener.name, listener.port
            )
        };
        let subjects: Vec<String> = listeners.iter().map(subject).collect();
        self.health.retain(|said| {
            !said.starts_with("balancer ") || subjects.iter().any(|subject| subject == said)
        });
        for (listener, subject) in listeners.iter().zip(&subjects) {
            match &listener.fault {
                Some(fault) => self.health.ill(subject, fault.clone()),
                None => self.health.well(subject, "takes connections"),
            }
        }
    }

    /// Reads the site's files again. A site with a fault is refused whole and the one in force stays.
    ///
    /// # Errors
    /// The faults, for whoever asked.
    pub async fn reload(&self, by: &str) -> Result<Reloaded, Problem> {
        let _one_at_a_time = self.reloads.lock().await;
        notify::reloading();
        let done = self.load_again(by).await;
        notify::ready(&self.status().sentence);
        done
    }

    async fn load_again(&self, by: &str) -> Result<Reloaded, Problem> {
        let (settings, spec) = self.read_files(by).await?;
        self.take_whole(settings, spec, by).await
    }

    /// Makes a site the one in force, and carries out what it wants of the host's network.
    pub(crate) async fn take_whole(
        &self,
        settings: Settings,
        spec: SiteSpec,
        by: &str,
    ) -> Result<Reloaded, Problem> {
        let host = Arc::clone(spec.host());
        if host == *self.controller.snapshot().load().spec().host() {
            return self.take(settings, spec, by).await;
        }
        // Two changes of the host at once could not be told apart.
        self.keeper.must_be_free().await?;
        let mut done = self.take(settings, spec, by).await?;
        done.host = Some(match self.keeper.follow(host, by).await {
            Ok(sentence) => sentence,
            Err(refusal) => format!("left as they are: {refusal}"),
        });
        Ok(done)
    }

    /// What the site's files would change of the host's network now.
    ///
    /// # Errors
    /// Faults of the files, or why the host can't be looked at.
    pub(crate) async fn plan_host(&self) -> Result<Plan, Problem> {
        let (_, spec) = load(&self.options)
            .await
            .map_err(|report| faulty(&report))?;
        Ok(self.keeper.plan(Arc::clone(spec.host())).await?)
    }

    /// What the site's files would change, or those of another directory; nothing changes.
    ///
    /// # Errors
    /// Their faults, or why the host can't be looked at.
    pub(crate) async fn plan(&self, site: Option<PathBuf>) -> Result<plan::Plan, Problem> {
        let options = Options {
            site: site.unwrap_or_else(|| self.options.site.clone()),
            ..self.options.clone()
        };
        let site = self.controller.snapshot().load();
        let loaded = load_placed(&options, &site).await;
        let (settings, spec) = loaded.map_err(|report| faulty(&report))?;
        let host = self.keeper.plan(Arc::clone(spec.host())).await?;
        let settings = plan::settings(&self.settings, &settings);
        Ok(plan::Plan::of(
            &site,
            &Arc::new(spec),
            settings,
            host,
            now(),
        ))
    }

    /// Takes the site's files as a reload does, and carries out what they want of the host's network.
    ///
    /// # Errors
    /// Faults of the files, in which case the site in force stays, or why the host is left as it is.
    pub(crate) async fn apply_host(&self, wish: Wish, by: &str) -> Result<Applied, Problem> {
        let _one_at_a_time = self.reloads.lock().await;
        let (settings, spec) = self.read_files(by).await?;
        let host = Arc::clone(spec.host());
        // What is refused is refused before the site is taken.
        self.keeper.must_be_free().await?;
        self.keeper.may_apply(Arc::clone(&host)).await?;
        self.take(settings, spec, by).await?;
        let applied = self.keeper.apply(host, wish, by).await?;
        self.person("host-apply", by, Some(applied.sentence.clone()));
        Ok(applied)
    }

    /// Keeps the change of the host's network that waits.
    ///
    /// # Errors
    /// When none waits.
    pub(crate) async fn confirm_host(&self, by: &str) -> Result<Last, Problem> {
        let last = self.keeper.confirm(by).await?;
        self.person("host-confirm", by, None);
        Ok(last)
    }

    pub(crate) fn person(&self, act: &'static str, by: &str, detail: Option<String>) {
        let fact = Fact::Person {
            act: act.into(),
            by: by.to_owned(),
            detail,
        };
        self.ledger.note(None, None, fact);
    }

    /// Reads the site's files; faults are told by the log and the status too.
    async fn read_files(&self, by: &str) -> Result<(Settings, SiteSpec), Problem> {
        let site = self.controller.snapshot().load();
        load_placed(&self.options, &site).await.map_err(|report| {
            tracing::error!(%by, "the site is not taken, the one in force stays: {report}");
            let faults = report.faults.iter().take(FAULTS_SHOWN);
            self.files().refused = Some(RefusedSite {
                at: now(),
                faults: faults.map(ToString::to_string).collect(),
            });
            faulty(&report)
        })
    }

    /// Makes a site the one in force. The services of clusters that it no longer has are stopped before, one by one.
    async fn take(
        &self,
        settings: Settings,
        spec: SiteSpec,
        by: &str,
    ) -> Result<Reloaded, Problem> {
        let at = now();
        let done = Reloaded {
            nodes: spec.node_count(),
            networks: spec.networks().count(),
            profiles: spec.profiles().count(),
            restart_needed: settings != self.settings,
            host: None,
        };
        let site = self.controller.snapshot().load();
        let gone = site.clusters().map(|(cluster, _)| &cluster.name);
        let gone: Vec<_> = gone
            .filter(|name| spec.cluster(name).is_none())
            .cloned()
            .collect();
        let taken = async {
            for name in &gone {
                services::stop(self, name).await?;
            }
            let event = Event::SpecReplaced(Arc::new(spec));
            if let Outcome::Refused(why) = self.controller.apply(event).await? {
                let refused = "the site was refused, and the one loaded before stays in force";
                let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, refused);
                problem.causes.push(why);
                return Err(problem);
            }
            Ok(())
        };
        let taken: Result<(), Problem> = taken.await;
        if let Err(problem) = taken {
            for name in &gone {
                services::start_again(self, name).await;
            }
            return Err(problem);
        }
        if done.restart_needed {
            let what = "site.yaml changed ports, the TFTP engine or the socket's groups; restart the daemon to use them";
            self.health.ill("settings", what);
        } else {
            self.health.forget("settings");
        }
        *self.files() = SiteFiles {
            directory: self.options.site.display().to_string(),
            loaded: at,
            refused: None,
        };
        tracing::info!(%by, machines = done.nodes, "the site was loaded again");
        self.person("reload", by, None);
        Ok(done)
    }

    pub(crate) fn files(&self) -> std::sync::MutexGuard<'_, SiteFiles> {
        // Each write is one assignment, so what a panicking holder left is whole.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the records to a file of their own, which is what is left if the store is ever lost, and tells
    /// its name.
    pub async fn export(&self) -> Option<PathBuf> {
        let site = self.controller.snapshot().load();
        let directory = store::exports(&self.options.state);
        let written = tokio::task::spawn_blocking(move || store::export::write(&directory, &site))
            .await
            .expect("writing an export does not panic, and nobody aborts it");
        match written {
            Ok(file) => {
                self.health.forget("export");
                Some(file)
            }
            Err(error) => {
                tracing::warn!(%error, "exporting the records");
                self.health.ill("export", error.to_string());
                None
            }
        }
    }
}

fn faulty(report: &Report) -> Problem {
    let what = "the site has faults and is not taken; the one in force stays";
    Problem {
        causes: report.faults.iter().map(ToString::to_string).collect(),
        ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what)
            .with_remedy("mend the files; `reveille check` judges them without the daemon")
    }
}

/// As [`load`], with groups that can't be filled by what `site` remembers among the faults.
async fn load_placed(options: &Options, site: &Site) -> Result<(Settings, SiteSpec), Report> {
    let loaded = load_changed(options, Change::None).await?;
    if let Err(unplaced) = site.seats_under(&loaded.spec) {
        loaded.must_place(&unplaced)?;
    }
    Ok((loaded.settings, loaded.spec))
}

/// As [`load`], as if the applied definitions were changed.
pub(crate) async fn load_changed(options: &Options, change: Change) -> Result<Loaded, Report> {
    let (site, state) = (options.site.clone(), options.state.clone());
    tokio::task::spawn_blocking(move || config::load_changed(&site, &state, &change))
        .await
        .expect("reading a site does not panic, and nobody aborts it")
}

pub(crate) async fn load(options: &Options) -> Result<(Settings, SiteSpec), Report> {
    let (site, state) = (options.site.clone(), options.state.clone());
    tokio::task::spawn_blocking(move || config::load(&site, &state))
        .await
        .expect("reading a site does not panic, and nobody aborts it")
}
