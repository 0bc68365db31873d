//! The daemon from start to stop, readable from top to bottom: settings, depot, store, controller,
//! servers, ready. Stopping is the same list upwards, and bounded.
//!
//! A server task that ends before it is told to is a fault nobody planned for, so the daemon says
//! which one it was and exits with 1 for the supervisor to start it anew. Starting takes well under
//! a second and every fact that matters is on disk already; a daemon half alive, answering DHCP
//! without TFTP, would cost a night. What is expected to fail for a while (a link that is down, an
//! address that is gone) is waited for inside its server and shown by `status`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::StatusCode;
use clap::Args;
use images::{Depot, Loaders};
use netboot::attempt::Fact;
use netboot::event::{Change, Event};
use netboot::net::{LinkName, Timestamp};
use netboot::site::Site;
use netboot::spec::SiteSpec;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{Exit, Failure};
use crate::config::{self, Report, Settings};
use crate::controller::{Controller, NotWritten, now};
use crate::dhcp::{self, Dhcp};
use crate::http::control::{self, Problem, Reloaded};
use crate::http::{self, Http, web};
use crate::ledger::Ledger;
use crate::link::{self, Links};
use crate::loaders::{self, Tftp};
use crate::ra::{self, QuietIpv6};
use crate::simulate::Stand;
use crate::status::{Health, RefusedSite, SiteFiles, Status, Surroundings};
use crate::store::{self, Opened, Store};
use crate::tls::SiteCa;
use crate::{image, notify};

/// Where the site's files are.
pub const SITE: &str = "/etc/reveille";
/// Where the daemon keeps what it must not forget.
pub const STATE: &str = "/var/lib/reveille";
/// Where the daemon listens for administrators.
pub const SOCKET: &str = "/run/reveille/control.sock";

/// How long servers may take to end once they are told to.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long the two writers may take. A machine that holds a connection open holds them too; records
/// are on disk before anybody is answered, and the ledger writes twice a second.
const WRITE_TIME: Duration = Duration::from_secs(1);
/// How often the supervisor's status line is brought up to date.
const STATUS_TIME: Duration = Duration::from_secs(2);
/// How often the records are exported.
const EXPORT_TIME: Duration = Duration::from_secs(600);
/// Faults of a refused site that `status` shows; `check` shows them all.
const FAULTS_SHOWN: usize = 20;

/// Where the daemon finds everything.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The directory of the site's files
    #[arg(long, env = "REVEILLE_SITE", default_value = SITE, value_name = "DIR")]
    pub site: PathBuf,
    /// The directory of records, artefacts and certificates
    #[arg(long, env = "REVEILLE_STATE", default_value = STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// The control socket
    #[arg(long, env = "REVEILLE_SOCKET", default_value = SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// What runs, for whoever asks the daemon.
pub struct Bastion {
    /// The single writer, and the snapshots it publishes.
    pub controller: Controller,
    /// Where facts go.
    pub ledger: Ledger,
    /// Where rooms say how they are.
    pub health: Health,
    servers: Servers,
    links: watch::Receiver<Arc<Links>>,
    ca_pem: String,
    options: Options,
    settings: Settings,
    started: Timestamp,
    files: Mutex<SiteFiles>,
    reloads: tokio::sync::Mutex<()>,
    stop: CancellationToken,
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
}

impl Bastion {
    /// What the bastion does now.
    #[must_use]
    pub fn status(&self) -> Status {
        let around = Surroundings {
            started: self.started,
            site: self.files().clone(),
            conditions: self.health.conditions(),
            ledger_dropped: self.ledger.dropped(),
        };
        Status::of(&self.controller.snapshot().load(), around, now())
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

    /// Asks the servers which links they can't serve.
    fn gather_conditions(&self) {
        let mut faults = BTreeMap::<LinkName, Vec<String>>::new();
        let Servers {
            dhcp, tftp, http, ..
        } = &self.servers;
        for found in [dhcp.faults(), tftp.faults(), http.faults()] {
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
        let loaded = load(&self.options).await;
        let at = now();
        let (settings, spec) = match loaded {
            Ok(loaded) => loaded,
            Err(report) => {
                let faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
                tracing::error!(%by, "the site is not taken, the one in force stays: {report}");
                self.files().refused = Some(RefusedSite {
                    at,
                    faults: faults.iter().take(FAULTS_SHOWN).cloned().collect(),
                });
                return Err(Problem {
                    causes: faults,
                    ..Problem::new(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        "the site has faults and is not taken; the one in force stays",
                    )
                    .with_remedy("mend the files; `reveille check` judges them without the daemon")
                });
            }
        };
        let done = Reloaded {
            nodes: spec.node_count(),
            networks: spec.networks().count(),
            profiles: spec.profiles().count(),
            restart_needed: settings != self.settings,
        };
        if done.restart_needed {
            let what = "site.yaml changed ports, the TFTP engine or the socket's groups; restart the daemon to use them";
            self.health.ill("settings", what);
        } else {
            self.health.forget("settings");
        }
        self.controller
            .apply(Event::SpecReplaced(Arc::new(spec)))
            .await?;
        *self.files() = SiteFiles {
            directory: self.options.site.display().to_string(),
            loaded: at,
            refused: None,
        };
        tracing::info!(%by, machines = done.nodes, "the site was loaded again");
        let fact = Fact::Person {
            act: "reload".into(),
            by: by.to_owned(),
            detail: None,
        };
        self.ledger.note(None, None, fact);
        Ok(done)
    }

    fn files(&self) -> std::sync::MutexGuard<'_, SiteFiles> {
        // Each write is one assignment, so what a panicking holder left is whole.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `reveille serve`: runs until SIGTERM or SIGINT; SIGHUP loads the site again.
///
/// # Errors
/// [`Failure`] when it can't start, or a server ended by itself.
pub fn run(options: Options) -> Result<(), Failure> {
    start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of(Exit::Failed, "starting the runtime", &error))?;
    let stop = CancellationToken::new();
    let done = runtime.block_on(async {
        stop_on_signal(stop.clone())?;
        serve(options, stop).await
    });
    // What still runs on a thread of its own has had its time.
    runtime.shutdown_timeout(STOP_TIME);
    done
}

/// Serves a site until `stop`.
///
/// # Errors
/// See [`run`].
pub async fn serve(options: Options, stop: CancellationToken) -> Result<(), Failure> {
    let started = now();
    let (settings, spec) = load(&options).await.map_err(faulty_site)?;
    let ca = SiteCa::open(&options.state).map_err(failed("opening the site's authority"))?;
    let depot = image::depot(&options.state).map_err(failed("opening the depot"))?;
    let health = Health::default();
    let (site, store) = remember(&options, spec).await?;
    let links = link::start()
        .await
        .map_err(|error| Failure::of(Exit::Failed, "following the host's links", error.as_ref()))?;
    let (controller, controller_ended) = Controller::start(site, commits(store, health.clone()));
    let (ledger, entries) = Ledger::channel();
    let ledger_ended = ledger.start_writer(entries, &options.state);

    let ca_pem = ca.pem().to_owned();
    let servers = start_servers(&settings, depot, ca, &controller, &ledger, links.clone())?;
    let files = SiteFiles {
        directory: options.site.display().to_string(),
        loaded: started,
        refused: None,
    };
    let bastion = Arc::new(Bastion {
        controller,
        ledger,
        health,
        servers,
        links,
        ca_pem,
        options,
        settings,
        started,
        files: Mutex::new(files),
        reloads: tokio::sync::Mutex::new(()),
        stop: stop.clone(),
    });
    let mut tasks = JoinSet::new();
    let ended = match start_tasks(&mut tasks, &bastion, &stop).await {
        Ok(()) => {
            let sentence = bastion.status().sentence;
            notify::ready(&sentence);
            tracing::info!(site = %bastion.options.site.display(), "ready: {sentence}");
            until_stopped(&mut tasks, &stop).await
        }
        Err(failure) => Err(failure),
    };

    notify::stopping();
    tracing::info!("stopping");
    stop.cancel();
    end_in_time("the administrators' tasks", STOP_TIME, async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    tasks.shutdown().await;
    let _ = std::fs::remove_file(&bastion.options.socket);
    export_state(&bastion).await;
    // The servers stop here, and with them the last senders of events and facts, which ends the
    // two writers after what they still hold.
    drop(bastion);
    end_in_time("the writer of records", WRITE_TIME, controller_ended).await;
    end_in_time("the writer of the ledger", WRITE_TIME, ledger_ended).await;
    ended
}

/// The site as the store remembers it. The files that were damaged are dealt with and told of.
async fn remember(options: &Options, spec: SiteSpec) -> Result<(Site, Store), Failure> {
    let state = options.state.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(&state))
        .await
        .expect("opening the store does not panic, and nobody aborts it");
    let Opened {
        store,
        memory,
        story,
    } = opened.map_err(failed("opening the store"))?;
    for what in story {
        tracing::warn!("store: {what}");
    }
    Ok((Site::restore(Arc::new(spec), memory), store))
}

/// What makes changes durable, and says so when it can't.
fn commits(
    mut store: Store,
    health: Health,
) -> impl FnMut(&Site, &[Change]) -> Result<(), String> + Send + 'static {
    health.well("store", "open");
    let mut well = true;
    move |site, changes| match store.commit(site, changes) {
        Ok(()) => {
            if !well {
                tracing::info!("the store takes commits again");
                health.well("store", "open");
            }
            well = true;
            Ok(())
        }
        Err(error) => {
            if well {
                tracing::error!(%error, "nothing durable changes until the store takes commits again");
            }
            well = false;
            health.ill("store", error.to_string());
            Err(error.to_string())
        }
    }
}

fn start_servers(
    settings: &Settings,
    depot: Depot,
    ca: SiteCa,
    controller: &Controller,
    ledger: &Ledger,
    links: watch::Receiver<Arc<Links>>,
) -> Result<Servers, Failure> {
    let mut loaders = Loaders::read(&images::PACKAGE_DIRECTORIES);
    loaders
        .add_imported(&depot)
        .map_err(failed("reading the imported loaders"))?;
    let loaders = Arc::new(loaders);
    let (controller, ledger) = (|| controller.clone(), || ledger.clone());
    let http = http::Parts {
        depot,
        loaders: Arc::clone(&loaders),
        controller: controller(),
        ledger: ledger(),
        ca: Arc::new(ca),
        ports: settings.ports(),
        limits: http::Limits::default(),
    };
    let tftp = loaders::Parts {
        loaders,
        controller: controller(),
        ledger: ledger(),
        settings: settings.clone(),
    };
    Ok(Servers {
        dhcp: dhcp::start(controller(), ledger(), links.clone(), settings.http_port),
        tftp: loaders::start(tftp, links.clone()),
        http: http::start(http, links.clone()),
        quiet_ipv6: ra::start(controller(), ledger(), links),
    })
}

/// What administrators and the supervisor deal with. The control socket is the last of all: whoever
/// gets an answer there finds everything else at work.
async fn start_tasks(
    tasks: &mut JoinSet<Ended>,
    bastion: &Arc<Bastion>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (shared, until) = (|| Arc::clone(bastion), || stop.clone());
    tasks.spawn(named(
        "the watch over the rooms",
        supervise(shared(), until()),
    ));
    tasks.spawn(named("the exports", export_now_and_then(shared(), until())));
    tasks.spawn(named(
        "reload on SIGHUP",
        reload_on_signal(shared(), until()),
    ));
    if let Some(address) = bastion.settings.listen {
        let failed = |error| {
            let act = format!("serving the status page and the metrics on {address}");
            Failure::of(Exit::Failed, act, &error)
        };
        let token = web::Token::open(&bastion.options.state).map_err(failed)?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let routes = web::routes(shared(), address, token);
        tasks.spawn(named(
            "the status page",
            web::run(listener, routes, until()),
        ));
    }
    let socket = &bastion.options.socket;
    let listener = control::bind(socket).map_err(|error| cannot_bind(socket, &error))?;
    let Settings {
        group, read_group, ..
    } = &bastion.settings;
    let groups = control::Groups::look_up(group, read_group.as_deref());
    let api = control::api(shared());
    tasks.spawn(named(
        "the control socket",
        control::run(listener, api, groups, until()),
    ));
    Ok(())
}

/// Waits for something that was told to end, but not for ever.
async fn end_in_time(what: &str, limit: Duration, ending: impl Future) {
    if tokio::time::timeout(limit, ending).await.is_err() {
        tracing::debug!("{what} did not end within {limit:?} and is cut off");
    }
}

/// An error of one act, as a failure of the whole.
fn failed<E: std::error::Error>(act: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::of(Exit::Failed, act, &error)
}

async fn export_now_and_then(bastion: Arc<Bastion>, stop: CancellationToken) -> Result<(), String> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(EXPORT_TIME) => {
                // Its failure is in the log and in the status.
                let _ = export_state(&bastion).await;
            }
        }
    }
}

/// Writes the records to a file of their own, which is what is left if the store is ever lost, and tells
/// its name.
pub(crate) async fn export_state(bastion: &Bastion) -> Option<PathBuf> {
    let site = bastion.controller.snapshot().load();
    let directory = store::exports(&bastion.options.state);
    let written = tokio::task::spawn_blocking(move || store::export::write(&directory, &site))
        .await
        .expect("writing an export does not panic, and nobody aborts it");
    match written {
        Ok(file) => {
            bastion.health.forget("export");
            Some(file)
        }
        Err(error) => {
            tracing::warn!(%error, "exporting the records");
            bastion.health.ill("export", error.to_string());
            None
        }
    }
}

type Ended = (&'static str, Result<(), String>);

/// A server's end, with its name.
async fn named<E: std::fmt::Display>(
    name: &'static str,
    server: impl Future<Output = Result<(), E>>,
) -> Ended {
    (name, server.await.map_err(|error| error.to_string()))
}

/// Waits for the word to stop, or for a server that ended without it.
async fn until_stopped(
    servers: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let ended = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        ended = servers.join_next() => ended,
    };
    if stop.is_cancelled() {
        return Ok(());
    }
    let failure = match ended {
        Some(Ok((name, Ok(())))) => Failure::new(Exit::Failed, format!("{name} ended by itself")),
        Some(Ok((name, Err(why)))) => Failure {
            exit: Exit::Failed,
            causes: vec![format!("{name} ended by itself"), why],
            remedy: None,
        },
        Some(Err(panicked)) => Failure::of(Exit::Failed, "a server panicked", &panicked),
        None => Failure::new(Exit::Failed, "there was nothing to serve"),
    };
    tracing::error!("{}", failure.causes.join(": "));
    Err(failure.with_remedy("read the log above; the service's unit starts it anew"))
}

/// Tells the supervisor that the daemon lives, and what it does in one line.
async fn supervise(bastion: Arc<Bastion>, stop: CancellationToken) -> Result<(), NotWritten> {
    let beat = notify::watchdog_interval().unwrap_or(STATUS_TIME);
    let mut told = None;
    let mut ticks = tokio::time::interval(beat.min(STATUS_TIME));
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        // The writer is the one task that all others rest on. When it is stuck nothing is sent, and
        // the supervisor's patience ends.
        bastion.controller.alive().await?;
        notify::alive();
        bastion.gather_conditions();
        let generation = bastion.controller.snapshot().load().generation();
        let picture = (
            generation,
            bastion.health.conditions(),
            bastion.files().clone(),
        );
        if told.as_ref() != Some(&picture) {
            notify::status(&bastion.status().sentence);
            told = Some(picture);
        }
    }
}

async fn reload_on_signal(bastion: Arc<Bastion>, stop: CancellationToken) -> std::io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            heard = hangups.recv() => if heard.is_none() { return Ok(()) },
        }
        // A refusal is told by the log, the status and the status line; the good site stays.
        let _ = bastion.reload("SIGHUP").await;
    }
}

fn stop_on_signal(stop: CancellationToken) -> Result<(), Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::of(Exit::Failed, "listening for signals", &error))
    };
    let (mut terminate, mut interrupt) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// To the journal with its fields when it is the one reading, else to standard error.
fn start_log() {
    use std::io::IsTerminal;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    use tracing_subscriber::{EnvFilter, Layer, fmt, registry};
    let filter = EnvFilter::try_from_env("REVEILLE_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,sled=warn,async_tftp=info"));
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let output = match journal {
        Some(journal) => journal.boxed(),
        None => fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .boxed(),
    };
    // A test that serves twice in one process has its log already.
    let _ = registry().with(output.with_filter(filter)).try_init();
}

/// A site that can't be served, as a failure of the whole.
pub(crate) fn faulty_site(report: Report) -> Failure {
    let count = report.faults.len() + report.more;
    let mut failure = Failure::new(
        Exit::Configuration,
        format!("the site has {count} faults, so nothing is served"),
    );
    let shown = report.faults.iter().take(FAULTS_SHOWN);
    failure.causes.extend(shown.map(ToString::to_string));
    failure.with_remedy("mend the files; `reveille check` lists every fault")
}

fn cannot_bind(socket: &std::path::Path, error: &std::io::Error) -> Failure {
    let act = format!("listening on the control socket {}", socket.display());
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        Failure::of(Exit::NotPermitted, act, error).with_remedy(
            "run it as root or by its unit, or name a socket of your own with --socket",
        )
    } else {
        Failure::of(Exit::Failed, act, error)
    }
}

async fn load(options: &Options) -> Result<(Settings, SiteSpec), Report> {
    let (site, state) = (options.site.clone(), options.state.clone());
    tokio::task::spawn_blocking(move || config::load(&site, &state))
        .await
        .expect("reading a site does not panic, and nobody aborts it")
}
