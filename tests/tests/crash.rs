//! The daemon is killed with SIGKILL at random instants while machines boot. Whatever it acknowledged must still be so when
//! it is back: a script that left is honoured with its config, an install that was reported is never offered again, a
//! consent that was given is.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tests::bastion::{Bastion, Operator};
use tests::client::{Client, Script};
use tests::lab::Lab;
use tests::qemu::{Hardware, mac};
use tests::site::{add_machines, rehearsal, rehearsed};

/// With the kills of the test with real firmware, 200.
const KILLS: u32 = 190;
const KILLS_OF_FIRMWARE: u32 = 10;
const MACHINES: u8 = 8;
/// Far longer than any single act takes, killed daemons and all.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn no_acknowledged_fact_is_lost_in_190_kills() {
    let lab = Lab::flat(0);
    let mut bastion = rehearsal(&lab);
    let kernel = lab.path("kernel");
    std::fs::write(&kernel, [0x5a; 100_000]).expect("a small kernel");
    bastion.import(&kernel, "small-kernel");
    let profile = "kernel: small-kernel\narguments: [\"config={{ config_url }}config.ign\", \"report={{ report_url }}\"]\n\
                   config: {format: ignition, file: node.ign}\n";
    std::fs::write(bastion.site.join("profiles/small.yaml"), profile)
        .expect("the profile can be written");
    add_machines(&bastion.site, "crash", MACHINES, "small");
    let variables = std::fs::read_to_string(bastion.site.join("machines.d/crash.yaml"))
        .expect("the machines can be read");
    let variables = variables.replace(
        "profile: small",
        "profile: small, variables: {purpose: crash}",
    );
    std::fs::write(bastion.site.join("machines.d/crash.yaml"), variables)
        .expect("the machines can be written");
    bastion.start();

    let (over, installs) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients: Vec<Client> = (0..MACHINES)
        .map(|number| Client::plug_in(&lab, &format!("crash-{number:02}"), &mac(100 + number)))
        .collect();
    let operator = bastion.operator();
    std::thread::scope(|scope| {
        for client in &clients {
            let (over, installs, operator) = (&over, &installs, &operator);
            scope.spawn(move || {
                let _ends_with_me = SetOnDrop(over);
                while !over.load(Ordering::Relaxed) {
                    install(client, operator);
                    installs.fetch_add(1, Ordering::Relaxed);
                    consent(client, operator);
                }
            });
        }
        kill_at_random(&mut bastion, KILLS, 0..300, &over);
        over.store(true, Ordering::Relaxed);
    });
    // Each machine ended with a consent; one last install without a kill, and then the disk for ever.
    for client in &clients {
        install(client, &operator);
        assert!(
            matches!(client.script(), Script::Other(_)),
            "{} was offered a second install",
            client.name
        );
    }
    let installs = installs.load(Ordering::Relaxed);
    println!("{KILLS} kills, {installs} installs while they lasted");
    assert!(
        installs >= usize::from(MACHINES),
        "the machines got nowhere: {installs} installs"
    );
}

#[test]
fn machines_with_real_firmware_finish_although_the_daemon_is_killed() {
    let lab = Lab::flat(3);
    let mut bastion = rehearsal(&lab);
    bastion.start();
    let operator = bastion.operator();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for hardware in [rehearsed("bios-01"), rehearsed("uefi-01")] {
            let (lab, operator, over) = (&lab, &operator, &over);
            scope.spawn(move || {
                let _ends_with_me = SetOnDrop(over);
                finish(lab, operator, &hardware);
            });
        }
        kill_at_random(&mut bastion, KILLS_OF_FIRMWARE, 200..2500, &over);
    });
}

/// A whole boot of a fake machine, up to an acknowledged install.
fn install(client: &Client, operator: &Operator<'_>) {
    let deadline = Instant::now() + LIMIT;
    let script = loop {
        match client.try_script() {
            Ok(script @ Script::Boot { .. }) => break script,
            Ok(Script::Other(text)) => panic!(
                "{} was not told to boot although a person consented: {text}",
                client.name
            ),
            // A script that was counted but cut off by a kill is an attempt; after three a person looks.
            Err(reason) if reason.starts_with("503") => {
                drop(operator.command(&["node", "approve", &client.name]))
            }
            Err(reason) => assert!(
                Instant::now() < deadline,
                "{} got no script: {reason}",
                client.name
            ),
        }
    };
    // From here on nothing but the daemon's absence may keep the machine from finishing.
    for (method, argument) in [("GET", "config"), ("POST", "report")] {
        let url = script
            .argument(argument)
            .expect("the profile passes its URLs on");
        client
            .insist(method, &url, LIMIT)
            .unwrap_or_else(|error| panic!("{}: {error}", client.name));
    }
    match client.insist_on_script(LIMIT) {
        Script::Other(_) => {}
        Script::Boot { .. } => panic!("{} was offered a second install", client.name),
    }
}

/// A person gives a consent until it is acknowledged.
fn consent(client: &Client, operator: &Operator<'_>) {
    let deadline = Instant::now() + LIMIT;
    while let Err(error) =
        operator.command(&["node", "reinstall", &client.name, "--disk", "LAB-DISK-1"])
    {
        assert!(Instant::now() < deadline, "{}: {error}", client.name);
    }
}

/// Powers a machine on until it finished.
fn finish(lab: &Lab, operator: &Operator<'_>, hardware: &Hardware) {
    for _ in 0..8 {
        let mut machine = hardware.power_on(lab);
        let patience = hardware.firmware.patience() * 2;
        let phoned = machine
            .process
            .try_wait_for("node: phoned home", 1, patience);
        machine.process.kill();
        match phoned {
            Ok(_) => return,
            Err(_) => drop(operator.command(&["node", "approve", &hardware.name])),
        }
    }
    panic!("{}\n{} never finished", lab.timeline.told(), hardware.name);
}

/// Kills and restarts the daemon `kills` times, each time after a random number of milliseconds of life.
fn kill_at_random(
    bastion: &mut Bastion<'_>,
    kills: u32,
    life: std::ops::Range<u64>,
    over: &AtomicBool,
) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970")
        .as_nanos();
    let seed = std::env::var("REVEILLE_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut state =
        seed.unwrap_or(u64::try_from(now % u128::from(u64::MAX)).expect("it was made to fit")) | 1;
    println!("REVEILLE_SEED={state}");
    for _ in 0..kills {
        // Xorshift (Marsaglia 2003) is random enough for a moment in time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_millis(
            life.start + state % (life.end - life.start),
        ));
        if over.load(Ordering::Relaxed) {
            return;
        }
        bastion.kill();
        bastion.start();
    }
}

/// A machine that failed ends the test for all, instead of being waited for.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
