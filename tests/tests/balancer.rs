//! The balancer between real kernels: users on one side, a cluster's machines on the other, and backends that do what
//! backends do.
//!
//! ```text
//!   user 203.0.113.9 ── eth0 bastion eth1 ── machines 10.107.0.11 to .19
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tests::balance::{Balancer, Engine, Wanted};
use tests::bastion::reveille;
use tests::lab::{Lab, until};
use tests::manager::Manager;
use tests::netns::Netns;

const PROGRAM: &str = env!("CARGO_BIN_EXE_balance");
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 107, 0, 1);
const LIMIT: Duration = Duration::from_secs(20);
const API: u16 = 6443;

/// A bastion's links, a user on the public one and the machines on the private one.
struct Site {
    lab: Lab,
    user: Netns,
    machines: Netns,
}

fn site() -> Site {
    let (lab, user, machines) = (Lab::empty(), Netns::new(), Netns::new());
    lab.netns.cable("eth0", &user, "eth0");
    lab.netns.cable("eth1", &machines, "eth0");
    lab.netns.ip(&format!("addr add {PUBLIC}/24 dev eth0"));
    lab.netns.ip(&format!("addr add {PRIVATE}/24 dev eth1"));
    user.ip("addr add 203.0.113.9/24 dev eth0");
    for last in 8..20 {
        machines.ip(&format!("addr add 10.107.0.{last}/24 dev eth0"));
    }
    Site {
        lab,
        user,
        machines,
    }
}

fn machine(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 107, 0, last)
}

fn backend(last: u8) -> (String, SocketAddrV4, bool) {
    (
        format!("m-{last}"),
        SocketAddrV4::new(machine(last), API),
        false,
    )
}

fn api(backends: &[u8]) -> Wanted {
    Wanted {
        name: "api".to_owned(),
        port: API,
        private: false,
        places: vec![("eth0".to_owned(), PUBLIC), ("eth1".to_owned(), PRIVATE)],
        backends: backends.iter().map(|last| backend(*last)).collect(),
        source_hash: false,
        proxy_protocol: false,
    }
}

/// What a machine does with a connection.
#[derive(Clone, Copy)]
enum Manner {
    /// Answers a line with its address and that line, and closes.
    Serves,
    /// Answers everything it was sent, when the client is done.
    Echoes,
    /// Takes connections and says nothing.
    Hangs,
    /// Breaks connections.
    Resets,
    /// Says what no client understands.
    Babbles,
    /// Answers before it has read everything, and closes.
    Refuses,
}

/// A machine's port, open until this is dropped.
struct Port {
    at: SocketAddrV4,
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn serve(machines: &Netns, last: u8, manner: Manner) -> Port {
    let at = SocketAddrV4::new(machine(last), API);
    let listener = machines.run(move || TcpListener::bind(at).expect("a free port"));
    listener.set_nonblocking(true).expect("a socket");
    let closed = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&closed);
    let thread = std::thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).expect("a socket");
                    std::thread::spawn(move || behave(stream, at, manner));
                }
                // Who was taken by the kernel is served: what a dying machine breaks is no balancer's to mend.
                Err(_) if until.load(SeqCst) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    Port {
        at,
        closed,
        thread: Some(thread),
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.closed.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn behave(mut stream: TcpStream, at: SocketAddrV4, manner: Manner) {
    let mut bytes = [0; 512];
    match manner {
        Manner::Serves => {
            if let Ok(count @ 1..) = stream.read(&mut bytes) {
                let said = String::from_utf8_lossy(&bytes[..count]).into_owned();
                let _ = stream.write_all(format!("{} {said}", at.ip()).as_bytes());
            }
        }
        Manner::Echoes => {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            let _ = stream.write_all(&all);
        }
        Manner::Hangs => while !matches!(stream.read(&mut bytes), Ok(0) | Err(_)) {},
        Manner::Resets => {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        Manner::Refuses => {
            let _ = stream.read(&mut bytes);
            let _ = stream.write_all(b"413");
        }
        Manner::Babbles => {
            let _ = stream.write_all(&[0xff; 64]);
        }
    }
}

/// One request: which machine answered.
fn request(to: SocketAddrV4) -> Result<Ipv4Addr, String> {
    let step = |step: &'static str| move |error: std::io::Error| format!("{step}: {error}");
    let limit = Duration::from_secs(4);
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::V4(to), limit).map_err(step("connect"))?;
    stream
        .set_read_timeout(Some(limit))
        .map_err(step("limit"))?;
    stream.write_all(b"hello\n").map_err(step("send"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(step("read"))?;
    let address = answer
        .strip_suffix(" hello\n")
        .and_then(|address| address.parse().ok());
    address.ok_or_else(|| format!("was answered {answer:?}"))
}

/// Asks 200 times a second, whatever becomes of the answers, until it is told to end.
struct Crowd {
    ended: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

fn crowd(netns: &Netns, to: SocketAddrV4) -> Crowd {
    const ASKERS: u32 = 40;
    let (ended, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (until, count) = (Arc::clone(&ended), Arc::clone(&asked));
    // A thread belongs to the namespace of the one that began it.
    let threads = netns.run(move || {
        let ask = |number: u32| {
            let (until, count) = (Arc::clone(&until), Arc::clone(&count));
            std::thread::spawn(move || {
                let pace = Duration::from_millis(5) * ASKERS;
                let mut next = Instant::now() + Duration::from_millis(5) * number;
                let mut failures = Vec::new();
                while !until.load(SeqCst) {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += pace;
                    count.fetch_add(1, SeqCst);
                    failures.extend(request(to).err());
                }
                failures
            })
        };
        (0..ASKERS).map(ask).collect()
    });
    Crowd {
        ended,
        asked,
        threads,
    }
}

impl Crowd {
    /// Waits for so many more requests.
    fn goes_on(&self, more: usize) {
        let before = self.asked.load(SeqCst);
        until("more requests", LIMIT, || {
            self.asked.load(SeqCst) >= before + more
        });
    }

    /// Every failure there was.
    fn end(self) -> Vec<String> {
        self.ended.store(true, SeqCst);
        let threads = self.threads.into_iter();
        threads
            .flat_map(|thread| thread.join().expect("an asker"))
            .collect()
    }
}

fn nobody_is_refused_while_backends_come_and_die_and_the_balancer_restarts(engine: Engine) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let bootstrap = serve(&site.machines, 11, Manner::Serves);
    balancer.want(&[api(&[11, 12, 13, 14])]);
    balancer.start();
    balancer.until("the bootstrap machine to be up", |listeners| {
        listeners
            .iter()
            .any(|listener| listener.backends.iter().any(|b| b.health == "up"))
    });
    let crowd = crowd(&site.user, SocketAddrV4::new(PUBLIC, API));
    crowd.goes_on(100);
    // The control plane comes up one by one.
    let mut control_plane = Vec::new();
    for last in 12..=14 {
        control_plane.push(serve(&site.machines, last, Manner::Serves));
        crowd.goes_on(50);
    }
    balancer.until_up(API, &["m-11", "m-12", "m-13", "m-14"]);
    crowd.goes_on(100);
    // The evidence is there: the bootstrap machine leaves the set, and then the world.
    balancer.want(&[api(&[12, 13, 14])]);
    balancer.until_up(API, &["m-12", "m-13", "m-14"]);
    drop(bootstrap);
    crowd.goes_on(100);
    // One dies without a word to anybody.
    drop(control_plane.pop());
    crowd.goes_on(200);
    balancer.until("its death to be noticed", |listeners| {
        listeners[0]
            .backends
            .iter()
            .any(|b| b.node.as_str() == "m-14" && b.health == "down")
    });
    // An upgrade: the process ends as it is told to and another takes its place.
    balancer.stop();
    // They wait in the kernel's queue meanwhile, each asker with one.
    crowd.goes_on(20);
    balancer.start();
    crowd.goes_on(200);
    balancer.until("the new process to serve", |listeners| {
        listeners
            .iter()
            .any(|listener| listener.totals.accepted > 50)
    });
    let asked = crowd.asked.load(SeqCst);
    let failures = crowd.end();
    assert!(
        failures.is_empty(),
        "{} of {asked}: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}

fn after_a_kill_new_connections_are_taken_within_a_second(engine: Engine) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _up = serve(&site.machines, 11, Manner::Serves);
    balancer.want(&[api(&[11])]);
    balancer.start();
    balancer.until_up(API, &["m-11"]);
    let to = SocketAddrV4::new(PUBLIC, API);
    assert_eq!(site.user.run(move || request(to)), Ok(machine(11)));
    balancer.kill();
    let began = Instant::now();
    balancer.start();
    // The socket was kept, so not even the first is refused.
    assert_eq!(site.user.run(move || request(to)), Ok(machine(11)));
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_changed_set_leaves_connections_alone_and_a_removed_backend_finishes_what_it_has() {
    let engine = Engine::Embedded;
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _one = serve(&site.machines, 11, Manner::Echoes);
    let _other = serve(&site.machines, 12, Manner::Serves);
    balancer.want(&[api(&[11])]);
    balancer.start();
    balancer.until_up(API, &["m-11"]);
    let mut stream = site
        .user
        .run(|| TcpStream::connect((PUBLIC, API)).expect("taken"));
    stream.write_all(b"before, ").expect("sent");
    balancer.until("the connection to be given", |all| {
        all[0].backends[0].connections == 1
    });
    balancer.want(&[api(&[12])]);
    balancer.until_up(API, &["m-12"]);
    let leaving = balancer.status()[0]
        .backends
        .iter()
        .any(|b| b.health == "leaving" && b.connections == 1);
    assert!(leaving, "{:?}", balancer.status());
    // Enough to be spliced, in both directions.
    let filling = vec![b'x'; 3 << 20];
    let mut writer = stream.try_clone().expect("a twin");
    let sent = filling.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("sent");
        writer.shutdown(Shutdown::Write).expect("shut down");
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    writing.join().expect("written");
    assert_eq!(answer, [b"before, ".as_slice(), &filling].concat());
    let to = SocketAddrV4::new(PUBLIC, API);
    assert_eq!(site.user.run(move || request(to)), Ok(machine(12)));
    balancer.until("it to be gone", |all| all[0].backends.len() == 1);
}

/// HAProxy gives a client to the backend of its address until a check failed; ours asks the next one at once.
fn known_down(balancer: &Balancer<'_>, engine: Engine, count: usize) {
    if engine == Engine::Haproxy {
        balancer.until("its death to be known", |all| {
            let down = |listener: &daemon::balancer::ListenerStatus| {
                let backends = listener.backends.iter();
                backends.filter(|backend| backend.health == "down").count()
            };
            all.first().map(down) == Some(count)
        });
    }
}

fn a_client_sticks_to_its_backend_by_its_address_and_a_spare_serves_only_when_nobody_else_does(
    engine: Engine,
) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let mut ports: Vec<Port> = (11..=13)
        .map(|last| serve(&site.machines, last, Manner::Serves))
        .collect();
    let mut wanted = api(&[11, 12, 13]);
    wanted.source_hash = true;
    wanted.backends[2].2 = true;
    balancer.want(&[wanted]);
    balancer.start();
    balancer.until_up(API, &["m-11", "m-12", "m-13"]);
    let to = SocketAddrV4::new(PUBLIC, API);
    let ask = || site.user.run(move || request(to)).expect("an answer");
    let first = ask();
    assert_ne!(first, machine(13));
    for _ in 0..20 {
        assert_eq!(ask(), first);
    }
    ports.retain(|port| *port.at.ip() != first);
    known_down(&balancer, engine, 1);
    let second = ask();
    assert!(second != first && second != machine(13));
    ports.retain(|port| *port.at.ip() != second);
    known_down(&balancer, engine, 2);
    assert_eq!(ask(), machine(13));
}

fn a_private_port_is_closed_to_whoever_comes_by_another_link(engine: Engine) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _up = serve(&site.machines, 11, Manner::Serves);
    let mut config = api(&[11]);
    config.private = true;
    config.places = vec![("eth1".to_owned(), PRIVATE)];
    balancer.want(&[config]);
    balancer.start();
    balancer.until_up(API, &["m-11"]);
    let to = SocketAddrV4::new(PRIVATE, API);
    assert_eq!(site.machines.run(move || request(to)), Ok(machine(11)));
    assert_eq!(site.lab.netns.run(move || request(to)), Ok(machine(11)));
    // Linux takes packets for any of its addresses on any link, if the sender only knows the way.
    site.user.ip("route add 10.107.0.0/24 via 203.0.113.1");
    let refused = site.user.run(move || TcpStream::connect(to).map(drop));
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionRefused)
    );
}

fn a_port_becomes_private_and_public_again_without_refusing_its_own(engine: Engine) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _up = serve(&site.machines, 11, Manner::Serves);
    let open = api(&[11]);
    let mut private = open.clone();
    private.private = true;
    private.places.retain(|(link, _)| link == "eth1");
    balancer.want(std::slice::from_ref(&open));
    balancer.start();
    balancer.until_up(API, &["m-11"]);
    let crowd = crowd(&site.machines, SocketAddrV4::new(PRIVATE, API));
    site.user.ip("route add 10.107.0.0/24 via 203.0.113.1");
    let shut_out = || {
        let connect = || TcpStream::connect((PRIVATE, API)).map(drop);
        site.user.run(connect).is_err()
    };
    for (wanted, shut) in [(&private, true), (&open, false), (&private, true)] {
        crowd.goes_on(100);
        balancer.want(std::slice::from_ref(wanted));
        until("the change", LIMIT, || shut_out() == shut);
    }
    // A new process finds the sockets as the one before left them, and another wish.
    balancer.stop();
    balancer.want(std::slice::from_ref(&open));
    balancer.start();
    until("the change", LIMIT, || !shut_out());
    crowd.goes_on(100);
    let failures = crowd.end();
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn backends_that_hang_break_and_babble_harm_nobody_but_their_own_clients() {
    let engine = Engine::Embedded;
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _ports = [
        serve(&site.machines, 11, Manner::Hangs),
        serve(&site.machines, 12, Manner::Resets),
        serve(&site.machines, 13, Manner::Babbles),
        serve(&site.machines, 14, Manner::Serves),
    ];
    // Nobody has 10.107.0.99, and no answer comes from there.
    balancer.want(&[api(&[11, 12, 13, 14, 99])]);
    balancer.start();
    balancer.until("the dumb one to be known", |all| {
        let health = |node: &str| {
            all.first()?
                .backends
                .iter()
                .find(|b| b.node.as_str() == node)
                .map(|b| b.health.clone())
        };
        health("m-14").as_deref() == Some("up") && health("m-99").as_deref() == Some("down")
    });
    let to = SocketAddrV4::new(PUBLIC, API);
    let mut hanging = Vec::new();
    let mut answered = 0;
    for _ in 0..40 {
        // A quarter of a second is plenty for those who answer at all.
        let stream = site.user.run(move || {
            let mut stream = TcpStream::connect(to).expect("taken");
            stream
                .set_read_timeout(Some(Duration::from_millis(250)))
                .expect("a limit");
            let _ = stream.write_all(b"hello\n");
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            (stream, answer, read.is_err())
        });
        match stream {
            (_, answer, false) if answer.ends_with(b" hello\n") => answered += 1,
            (stream, answer, true) if answer.is_empty() => hanging.push(stream),
            _ => {}
        }
    }
    // Those that hang have the most connections, so most of the others went to whoever finishes.
    assert!(
        answered >= 8,
        "{answered} of 40 were answered: {:?}",
        balancer.status()
    );
    drop(hanging);
    balancer.until("every connection to end", |all| all[0].connections == 0);
}

fn the_backend_is_told_who_the_client_is(engine: Engine) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _up = serve(&site.machines, 11, Manner::Echoes);
    let mut wanted = api(&[11]);
    wanted.proxy_protocol = true;
    balancer.want(&[wanted]);
    balancer.start();
    balancer.until_up(API, &["m-11"]);
    let (client, answer) = site.user.run(|| {
        let mut stream = TcpStream::connect((PUBLIC, API)).expect("taken");
        stream.write_all(b"hello").expect("sent");
        stream.shutdown(Shutdown::Write).expect("shut down");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        (stream.local_addr().expect("bound").port(), answer)
    });
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    expected.extend([203, 0, 113, 9]);
    expected.extend(PUBLIC.octets());
    expected.extend(client.to_be_bytes());
    expected.extend(API.to_be_bytes());
    expected.extend(b"hello");
    assert_eq!(answer, expected);
}

fn who_has_the_port_is_named_and_waited_for_and_so_is_a_link(engine: Engine) {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, engine);
    let _up = serve(&site.machines, 11, Manner::Serves);
    let squatter = site
        .lab
        .netns
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, API)).expect("free"));
    let mut wanted = api(&[11]);
    wanted
        .places
        .push(("eth7".to_owned(), Ipv4Addr::new(10, 7, 0, 1)));
    balancer.want(&[wanted]);
    balancer.start();
    let us = format!("(process {})", std::process::id());
    balancer.until("the squatter to be named", |listeners| {
        let fault = listeners
            .first()
            .and_then(|listener| listener.fault.clone())
            .unwrap_or_default();
        fault.contains(&us) && fault.contains("there is no link eth7")
    });
    drop(squatter);
    site.lab.netns.ip("link add eth7 type veth peer name eth8");
    site.lab.netns.ip("addr add 10.7.0.1/24 dev eth7");
    site.lab.netns.ip("link set eth7 up");
    balancer.until("every place to be served", |all| {
        all[0].fault.is_none() && all[0].addresses.len() == 3
    });
    balancer.until_up(API, &["m-11"]);
    let to = SocketAddrV4::new(PUBLIC, API);
    assert_eq!(site.user.run(move || request(to)), Ok(machine(11)));
}

#[test]
fn a_backend_comes_back_after_haproxy_began_anew_without_it() {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, Engine::Haproxy);
    let _ports = [11, 12].map(|last| serve(&site.machines, last, Manner::Serves));
    balancer.want(&[api(&[11, 12])]);
    balancer.start();
    balancer.until_up(API, &["m-11", "m-12"]);
    balancer.want(&[api(&[11])]);
    balancer.until_up(API, &["m-11"]);
    balancer.restart_haproxy();
    balancer.until_up(API, &["m-11"]);
    balancer.want(&[api(&[11, 12])]);
    balancer.until_up(API, &["m-11", "m-12"]);
}

#[test]
fn streams_arrive_whole_or_are_known_to_be_cut() {
    let site = site();
    let mut balancer = Balancer::new(&site.lab, PROGRAM, Engine::Embedded);
    let (private, others) = (SocketAddrV4::new(PRIVATE, API), [81, 82]);
    let mut wanted = vec![api(&[11])];
    for (last, port) in (12..).zip(others) {
        let mut other = api(&[last]);
        other.port = port;
        wanted.push(other);
    }
    let _ports = [
        serve(&site.machines, 11, Manner::Echoes),
        serve(&site.machines, 12, Manner::Refuses),
        serve(&site.machines, 13, Manner::Hangs),
    ];
    balancer.want(&wanted);
    balancer.start();
    balancer.until_up(API, &["m-11"]);
    balancer.until_up(81, &["m-12"]);
    balancer.until_up(82, &["m-13"]);
    let connect = |port| {
        let at = SocketAddrV4::new(*private.ip(), port);
        let stream = site.machines.run(move || TcpStream::connect(at));
        let stream = stream.expect("taken");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream
    };
    // Urgent data in the middle of what is spliced.
    let mut stream = connect(API);
    let part = vec![b'x'; 1 << 20];
    stream.write_all(&part).expect("sent");
    let urgent = socket2::SockRef::from(&stream).send_out_of_band(b"!");
    assert_eq!(urgent.expect("sent"), 1);
    stream.write_all(&part).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut down");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    // Urgent data is beside the stream, and nothing that we serve uses it.
    assert_eq!(answer.len(), 2 * part.len());
    // An answer that comes before the request was read.
    for _ in 0..50 {
        let mut stream = connect(81);
        let _ = stream.write_all(&part);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"413");
    }
    // A stop in the middle of an answer.
    let mut stream = connect(82);
    stream.write_all(b"hello").expect("sent");
    balancer.until("the connection to be given", |all| {
        all.iter()
            .any(|listener| listener.port == 82 && listener.connections == 1)
    });
    balancer.stop();
    let cut = stream.read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(cut, Err(ErrorKind::ConnectionReset));
}

#[test]
fn another_engine_leaves_no_port_open_that_the_embedded_one_had() {
    let lab = Lab::empty();
    let site = lab.path("site");
    let state = lab.path("state");
    for directory in [&site, &state] {
        std::fs::create_dir(directory).expect("a directory");
    }
    let text = "site: lab
networks:
  - { name: cluster, link: eth1, subnet: 10.107.0.0/24 }
balancer: { engine: off }
";
    std::fs::write(site.join("site.yaml"), text).expect("a site");
    let manager = Manager::new(&state);
    let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, API);
    let left = lab.netns.run(move || TcpListener::bind(at).expect("free"));
    manager.leave(&format!("balancer-{}-{}", at.ip(), at.port()), left.into());
    let connect = move || {
        TcpStream::connect(at)
            .map(drop)
            .map_err(|error| error.kind())
    };
    assert_eq!(lab.netns.run(connect), Ok(()), "the kernel queues them");
    let socket = lab.path("control.sock");
    let path = |path: &std::path::Path| path.to_str().expect("paths are text").to_owned();
    let program = [
        "serve",
        "--site",
        &path(&site),
        "--state",
        &path(&state),
        "--socket",
    ];
    let mut program = program.map(str::to_owned).to_vec();
    program.insert(0, reveille().to_owned());
    program.push(path(&socket));
    let _daemon = manager.start(&lab.netns, &lab.timeline, "reveille", &program);
    until("the daemon to close it", LIMIT, || {
        lab.netns.run(connect) == Err(ErrorKind::ConnectionRefused)
    });
}

/// The promises of every engine.
macro_rules! kept_by {
    ($name:ident, $engine:expr, $($promise:ident)*) => {
        mod $name {
            $(#[test]
            fn $promise() {
                super::$promise($engine);
            })*
        }
    };
}

kept_by! { embedded, super::Engine::Embedded,
   nobody_is_refused_while_backends_come_and_die_and_the_balancer_restarts
   after_a_kill_new_connections_are_taken_within_a_second
   a_client_sticks_to_its_backend_by_its_address_and_a_spare_serves_only_when_nobody_else_does
   a_private_port_is_closed_to_whoever_comes_by_another_link
   a_port_becomes_private_and_public_again_without_refusing_its_own
   the_backend_is_told_who_the_client_is
   who_has_the_port_is_named_and_waited_for_and_so_is_a_link
}
kept_by! { haproxy, super::Engine::Haproxy,
   nobody_is_refused_while_backends_come_and_die_and_the_balancer_restarts
   after_a_kill_new_connections_are_taken_within_a_second
   a_client_sticks_to_its_backend_by_its_address_and_a_spare_serves_only_when_nobody_else_does
   a_private_port_is_closed_to_whoever_comes_by_another_link
   a_port_becomes_private_and_public_again_without_refusing_its_own
   the_backend_is_told_who_the_client_is
   who_has_the_port_is_named_and_waited_for_and_so_is_a_link
}
