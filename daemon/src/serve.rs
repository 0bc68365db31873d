//! The daemon from start to stop, readable from top to bottom: settings, depot, store, controller,
//! servers, ready. Stopping is the same list upwards, and bounded.
//!
//! A server task that ends before it is told to is a fault nobody planned for, so the daemon says
//! which one it was and exits with 1 for the supervisor to start it anew. Starting takes well under
//! a second and every fact that matters is on disk already; a daemon half alive, answering DHCP
//! without TFTP, would cost a night. What is expected to fail for a while (a link that is down, an
//! address that is gone) is waited for inside its server and shown by `status`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use images::{Depot, Loaders};
use netboot::event::{Change, Event, Outcome};
use netboot::site::Site;
use netboot::spec::SiteSpec;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::balancer::haproxy::Haproxy;
use crate::balancer::{self, Balancer, Limits, feed};
use crate::bastion::{Bastion, Servers, load_changed};
use crate::clusters::conductor::Conductor;
use crate::clusters::keyring::Keyring;
use crate::clusters::services;
use crate::config::{BalancerEngine, Settings, clusters};
use crate::controller::{Controller, NotWritten, now};
use crate::dhcp::{self};
use crate::elsewhere::Elsewhere;
use crate::failure::{Exit, Failure, faulty_site};
use crate::handover::Inheritance;
use crate::health::Health;
use crate::host::Journal;
use crate::host::keeper::Keeper;
use crate::host::kernel::Failed;
use crate::http::{self, web};
use crate::http::{control, handout};
use crate::ledger::Ledger;
use crate::link::{self, Links};
use crate::loaders::{self};
use crate::places::Options;
use crate::ra::{self};
use crate::status::SiteFiles;
use crate::store::{Opened, Store};
use crate::tls::SiteCa;
use crate::vault::{Vault, VaultError};
use crate::{dns, image, notify, ntp, vault};

/// How long servers may take to end once they are told to.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long the two writers may take. A machine that holds a connection open holds them too; records
/// are on disk before anybody is answered, and the ledger writes twice a second.
const WRITE_TIME: Duration = Duration::from_secs(1);
/// How often the supervisor's status line is brought up to date.
const STATUS_TIME: Duration = Duration::from_secs(2);
/// How often the records are exported.
const EXPORT_TIME: Duration = Duration::from_secs(600);
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
    let loaded = load_changed(&options, clusters::Change::None);
    let loaded = loaded.await.map_err(faulty_site)?;
    let settings = loaded.settings.clone();
    let ca = SiteCa::open(&options.state).map_err(failed("opening the site's authority"))?;
    let depot = image::depot(&options.state).map_err(failed("opening the depot"))?;
    let health = Health::default();
    let host = Arc::clone(loaded.spec.host());
    let (site, store) = remember(&options, loaded.spec.clone()).await?;
    if let Err(unplaced) = site.seats_under(&loaded.spec) {
        loaded.must_place(&unplaced).map_err(faulty_site)?;
    }
    let vault = open_vault(&options, &health)?;
    let keyring = Arc::new(Keyring::new(Arc::clone(&vault)));
    let (controller, controller_ended) = Controller::start(site, commits(store, health.clone()));
    seat(&controller).await?;
    let (ledger, entries) = Ledger::channel();
    let ledger_ended = ledger.start_writer(entries, &options.state);
    let journal = Journal::new(&options.state);
    let (keeper, keeping) = Keeper::start(journal, ledger.clone(), health.clone(), host)
        .await
        .map_err(cannot_look)?;
    let links = link::start()
        .await
        .map_err(|error| Failure::of(Exit::Failed, "following the host's links", error.as_ref()))?;

    let ca_pem = ca.pem().to_owned();
    let (servers, followers) = start_servers(
        &settings,
        depot,
        ca,
        &keyring,
        &controller,
        &ledger,
        links.clone(),
    )?;
    let mut tasks = JoinSet::new();
    let wishes = feed::Wishes {
        controller: controller.clone(),
        links: links.clone(),
        public: settings.public_links.clone(),
        health: health.clone(),
    };
    let balancer = start_balancer(&options, &settings, wishes, &stop, &mut tasks)?;
    let elsewhere = Elsewhere::default();
    let following = elsewhere.clone().follow(
        controller.clone(),
        links.clone(),
        Arc::clone(&keyring),
        health.clone(),
        stop.clone(),
    );
    tasks.spawn(named("the watch over other servers", following));
    let files = SiteFiles {
        directory: options.site.display().to_string(),
        loaded: started,
        refused: None,
    };
    let bastion = Arc::new(Bastion {
        controller,
        ledger,
        health,
        keeper,
        vault,
        keyring,
        servers,
        balancer,
        elsewhere,
        links,
        ca_pem,
        options,
        settings,
        started,
        files: Mutex::new(files),
        reloads: tokio::sync::Mutex::new(()),
        preflights: tokio::sync::Mutex::default(),
        stop: stop.clone(),
    });
    let conductor = Conductor::new(&bastion);
    tasks.spawn(named(
        "the clusters' conductor",
        conductor.run(stop.clone()),
    ));
    let watch = services::watch(Arc::clone(&bastion), stop.clone());
    tasks.spawn(named("the watch over the clusters' services", watch));
    let keeping = keeping.run(stop.clone());
    tasks.spawn(named("the keeper of the host's network", keeping));
    for (name, follower) in followers {
        tasks.spawn(named(name, outlived_by(stop.clone(), follower)));
    }
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
    bastion.export().await;
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

/// The secrets at rest. The store's lock is held by now, so no other daemon has them.
fn open_vault(options: &Options, health: &Health) -> Result<Arc<Vault>, Failure> {
    let opened = Vault::open(&options.state, vault::credentials_directory().as_deref());
    let vault = opened.map_err(|error| {
        // A key doesn't come back by itself; a disk may.
        let exit = match matches!(error, VaultError::File { .. }) {
            true => Exit::Failed,
            false => Exit::Configuration,
        };
        Failure::of(exit, "opening the vault of secrets", &error)
    })?;
    for damaged in vault.damaged() {
        tracing::error!("vault: {damaged}");
    }
    match vault.damaged() {
        [] => health.well("vault", format!("its key is {}", vault.key().display())),
        damaged => {
            let said: Vec<String> = damaged.iter().map(ToString::to_string).collect();
            health.ill("vault", said.join("; "));
        }
    }
    Ok(Arc::new(vault))
}

/// Gives the clusters' places to machines, on disk before anybody boots.
async fn seat(controller: &Controller) -> Result<(), Failure> {
    let spec = Arc::clone(controller.snapshot().load().spec());
    let seated = controller.apply(Event::SpecReplaced(spec)).await;
    let seated = seated.map_err(failed("placing machines in clusters"))?;
    if let Outcome::Refused(why) = seated {
        return Err(Failure {
            exit: Exit::Configuration,
            causes: vec!["the clusters can't be filled".to_owned(), why],
            remedy: None,
        });
    }
    Ok(())
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
    keyring: &Arc<Keyring>,
    controller: &Controller,
    ledger: &Ledger,
    links: watch::Receiver<Arc<Links>>,
) -> Result<(Servers, [Follower; 6]), Failure> {
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
        keyring: Arc::clone(keyring),
        flow_key: keyring.vault().derive("device flow"),
        limits: http::Limits::default(),
    };
    let tftp = loaders::Parts {
        loaders,
        controller: controller(),
        ledger: ledger(),
        settings: settings.clone(),
    };
    let (dhcp, of_dhcp) = dhcp::start(controller(), ledger(), links.clone(), settings.http_port);
    let (tftp, of_tftp) = loaders::start(tftp, links.clone());
    let (http, of_http) = http::start(http, links.clone());
    let (quiet_ipv6, of_ipv6) = ra::start(controller(), ledger(), links.clone());
    let (dns, of_dns) = dns::start(controller(), links.clone());
    let (time, of_time) = ntp::start(controller(), links);
    let servers = Servers {
        dhcp,
        tftp,
        http,
        quiet_ipv6,
        dns,
        time,
    };
    let followers = [
        ("DHCP", of_dhcp),
        ("TFTP", of_tftp),
        ("boot HTTP", of_http),
        ("quiet IPv6", of_ipv6),
        ("DNS", of_dns),
        ("NTP", of_time),
    ];
    Ok((servers, followers))
}

/// The balancer, and what tells it the site's wishes. It lets connections finish when all else stops.
fn start_balancer(
    options: &Options,
    settings: &Settings,
    wishes: feed::Wishes,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Ended>,
) -> Result<Balancer, Failure> {
    // Known from the first moment: HAProxy would stop listening until it is.
    let (publish, wanted) = watch::channel(Arc::new(wishes.now()));
    let (limits, links, until) = (Limits::default(), wishes.links.clone(), stop.clone());
    let feed = wishes.follow(publish, stop.clone());
    // Another engine finds the ports free, and nobody waits in a queue that is never served.
    let mut inheritance = Inheritance::take();
    if settings.balancer != BalancerEngine::Embedded {
        inheritance.renounce();
    }
    let balancer = match settings.balancer {
        BalancerEngine::Off | BalancerEngine::External => return Ok(Balancer::default()),
        BalancerEngine::Haproxy => {
            let (balancer, haproxy) = Haproxy::new(options.state.join("haproxy"), limits);
            let engine = haproxy.run(wanted, links, until);
            tasks.spawn(named("the balancer's HAProxy", engine));
            balancer
        }
        BalancerEngine::Embedded => {
            let act = "starting the balancer's threads";
            let started = balancer::start(limits, inheritance);
            let (balancer, balancing) = started.map_err(failed(act))?;
            let engine = balancing.run(wanted, links, until);
            tasks.spawn(named("the balancer", engine));
            balancer
        }
    };
    tasks.spawn(named("the balancer's view of the site", feed));
    Ok(balancer)
}

/// A server's name, and the task that opens its sockets as links come and go. It ends when the server is dropped.
type Follower = (&'static str, JoinHandle<()>);

/// A follower that ends before `stop` panicked, or lost the links.
async fn outlived_by(stop: CancellationToken, follower: JoinHandle<()>) -> Result<(), JoinError> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = follower => ended,
    }
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
    let api = control::api(shared()).merge(handout::routes(shared()));
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
                let _ = bastion.export().await;
            }
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

fn cannot_look(failed: Failed) -> Failure {
    let act = "looking at the host's network";
    Failure::of(Exit::Failed, act, &failed).with_remedy(failed.remedy)
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
