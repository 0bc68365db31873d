//! OKD: sets of openshift-install read, judged and laid under each machine's own config, which the real Ignition takes
//! and applies. The installer itself is a fake (`tests/lab/openshift-install-fake`), for the real one can't be had here.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::okd::{OkdError, Wanted, generate, import};
use flate2::Compression;
use flate2::write::GzEncoder;
use ignition::Document;
use ignition::platform::Role;
use ignition::platform::okd::{Age, Definition, File, InstallerSet, document};
use netboot::net::Hostname;
use netboot::node::DiskRule;
use netboot::spec::Purpose;
use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::ignition::{Root, is_valid};
use tests::okd::{certificate, data, files, now, pointer, read, undo, write};

const NODES: [Role; 4] = [
    Role::Bootstrap,
    Role::ControlPlane,
    Role::Worker,
    Role::Infra,
];

fn node_ign(cluster: &Cluster, set: &InstallerSet, role: Role) -> String {
    let made = cluster.member(role, 0, |member, subject| {
        document(member, set, &cluster.profile, subject, Document::Ignition)
    });
    made.expect("rendered").expect("every node has one")
}

#[test]
fn ignition_takes_every_member_s_config() {
    let (cluster, set) = (
        Cluster::new(Value::Null, &[]),
        read(&files(0)).expect("sound"),
    );
    for role in NODES {
        is_valid(&node_ign(&cluster, &set, role));
        let pointer = cluster.member(role, 0, |member, subject| {
            document(
                member,
                &set,
                &cluster.profile,
                subject,
                Document::IgnitionPointer,
            )
        });
        is_valid(&pointer.expect("rendered").expect("there"));
    }
}

#[test]
fn ignition_applies_the_bootstrap_s_config_and_the_machine_s_own_beneath_it() {
    let (cluster, set) = (
        Cluster::new(Value::Null, &[]),
        read(&files(0)).expect("sound"),
    );
    let root = Root::of(&node_ign(&cluster, &set, Role::Bootstrap));
    assert_eq!(root.read("/etc/hostname"), "machine-7.lab.example.test\n");
    assert_eq!(root.read("/etc/motd"), "the bootstrap of lab\n");
    assert!(
        root.read("/opt/openshift/tls/root-ca.key")
            .contains("PRIVATE KEY")
    );
    let unit = root.read("/etc/systemd/system/reveille-report.service");
    assert!(unit.contains(&cluster.urls.report), "{unit}");
    assert!(
        root.read("/etc/systemd/system/bootkube.service")
            .contains("bootkube.sh")
    );
    let preset = root.read("/etc/systemd/system-preset/20-ignition.preset");
    for unit in ["reveille-report.service", "bootkube.service"] {
        assert!(preset.contains(&format!("enable {unit}")), "{preset}");
    }
}

#[test]
fn an_install_writes_the_member_s_config_to_the_disk_and_reports_before_it_reboots() {
    let (mut cluster, set) = (
        Cluster::new(Value::Null, &[]),
        read(&files(0)).expect("sound"),
    );
    let installed = node_ign(&cluster, &set, Role::Bootstrap);
    cluster.profile.purpose = Purpose::Install;
    let refused = cluster.member(Role::Bootstrap, 0, |member, subject| {
        document(member, &set, &cluster.profile, subject, Document::Ignition)
    });
    assert!(refused.is_err_and(|fault| fault.field == "disk"));
    cluster.disk = Some(DiskRule::Path("/dev/disk/by-path/pci-1".to_owned()));
    let live = node_ign(&cluster, &set, Role::Bootstrap);
    is_valid(&live);
    let root = Root::of(&live);
    assert_eq!(root.read("/etc/coreos/dest.ign"), installed);
    assert_eq!(root.mode("/etc/coreos/dest.ign"), 0o600);
    let installer: Value =
        serde_json::from_str(&root.read("/etc/coreos/installer.d/50-reveille.yaml")).expect("JSON");
    assert_eq!(installer["dest-device"], "/dev/disk/by-path/pci-1");
    assert_eq!(installer["ignition-file"], "/etc/coreos/dest.ign");
    let unit = root.read("/etc/systemd/system/reveille-installed.service");
    for line in ["RequiredBy=coreos-installer.target", "Type=oneshot"] {
        assert!(unit.lines().any(|said| said == line), "no {line} in {unit}");
    }
    assert!(
        unit.contains("--data 'installed'") && unit.contains(&cluster.urls.report),
        "{unit}"
    );
}

#[test]
fn what_the_installer_says_of_a_path_wins_over_what_we_say() {
    let mut files = files(0);
    let mut bootstrap: Value = serde_json::from_str(&files[&File::Bootstrap]).expect("JSON");
    let theirs = json!({ "path": "/etc/hostname", "overwrite": true, "contents": { "source": data("theirs\n") } });
    bootstrap["storage"]["files"]
        .as_array_mut()
        .expect("files")
        .push(theirs);
    files.insert(File::Bootstrap, bootstrap.to_string());
    let set = read(&files).expect("sound");
    let root = Root::of(&node_ign(
        &Cluster::new(Value::Null, &[]),
        &set,
        Role::Bootstrap,
    ));
    assert_eq!(root.read("/etc/hostname"), "theirs\n");
}

#[test]
fn a_member_s_config_has_the_spec_of_the_installer_s_and_its_bytes_unchanged() {
    let mut files = files(0);
    let master = files[&File::Master].replace("3.2.0", "3.5.0");
    files.insert(File::Master, master.clone());
    let set = read(&files).expect("sound");
    let made: Value = serde_json::from_str(&node_ign(
        &Cluster::new(Value::Null, &[]),
        &set,
        Role::ControlPlane,
    ))
    .expect("JSON");
    assert_eq!(made["ignition"]["version"], "3.5.0");
    let source = made["ignition"]["config"]["merge"][0]["source"]
        .as_str()
        .expect("a source");
    assert_eq!(
        source,
        data(&master).replace("text/plain;charset=utf-8", "")
    );
}

#[test]
fn a_set_is_warned_of_from_twelve_hours_and_refused_when_an_install_could_not_finish() {
    for (hours, age) in [
        (0, Age::Fresh),
        (11, Age::Fresh),
        (12, Age::Aging { hours: 12 }),
        (20, Age::Aging { hours: 20 }),
        (22, Age::TooOld { hours_left: 1 }),
        (25, Age::TooOld { hours_left: 0 }),
    ] {
        let found = read(&files(hours)).expect("sound").life().age(now());
        assert_eq!(found, age, "{hours} h");
        assert_eq!(found.may_install(), hours < 21, "{hours} h");
    }
    let set = read(&files(0)).expect("sound");
    let before = netboot::net::Timestamp::from_millis(now().millis() - 86_400_000);
    assert_eq!(set.life().age(before), Age::Unborn);
}

#[test]
fn the_certificate_that_ends_first_counts_wherever_it_stands() {
    let (young, (old, _)) = (files(0), certificate(23));
    let in_base64 = data(&old).replace("data:text/plain;charset=utf-8;base64,", "");
    let places: [(&str, File, Value); 4] = [
        (
            "in clear",
            File::Bootstrap,
            json!({ "path": "/opt/openshift/tls/x.crt", "contents": { "source": data(&old) } }),
        ),
        (
            "in a kubeconfig",
            File::Bootstrap,
            json!({ "path": "/etc/kubernetes/kubeconfig", "contents": { "source": data(&format!("certificate-authority-data: {in_base64}\n")) } }),
        ),
        (
            "percent-encoded",
            File::Bootstrap,
            json!({ "path": "/x", "contents": { "source": format!("data:,{}", old.replace('\n', "%0A")) } }),
        ),
        (
            "in a bundle of the user's own",
            File::Bootstrap,
            json!({ "path": "/opt/openshift/manifests/user-ca-bundle-config.yaml", "contents": { "source": data(&old) } }),
        ),
    ];
    for (place, file, entry) in places {
        let mut files = young.clone();
        let mut config: Value = serde_json::from_str(&files[&file]).expect("JSON");
        config["storage"]["files"]
            .as_array_mut()
            .expect("files")
            .push(entry);
        files.insert(file, config.to_string());
        let counts =
            read(&files).expect("sound").life().age(now()) == Age::TooOld { hours_left: 0 };
        assert_eq!(counts, place != "in a bundle of the user's own", "{place}");
    }
    let mut files = young;
    files.insert(File::Worker, pointer("worker", &old).to_string());
    assert!(!read(&files).expect("sound").life().age(now()).may_install());
}

#[test]
fn a_set_that_can_t_be_used_is_refused_with_all_its_faults() {
    let (_, key) = certificate(0);
    let mut files = files(0);
    let mut worker: Value = serde_json::from_str(&files[&File::Worker]).expect("JSON");
    worker["storage"] =
        json!({ "files": [{ "path": "/x", "contents": { "source": data(&key) } }] });
    files.insert(File::Worker, worker.to_string());
    files.insert(
        File::Master,
        r#"{"ignition":{"version":"2.2.0"}}"#.to_owned(),
    );
    files.insert(File::Metadata, "{}".to_owned());
    files.remove(&File::Password);
    let faults: Vec<String> = read(&files)
        .expect_err("refused")
        .iter()
        .map(ToString::to_string)
        .collect();
    for words in [
        "auth/kubeadmin-password: is missing",
        "master.ign: is of Ignition spec 2.2.0",
        "worker.ign: holds a private key",
        "metadata.json: has no clusterName",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(words)),
            "{words}: {faults:#?}"
        );
    }
    assert_eq!(faults.len(), 4, "{faults:#?}");
}

#[test]
fn a_worker_s_config_with_a_key_is_refused_however_it_is_wrapped() {
    let (_, key) = certificate(0);
    let wrapped = data(&key).replace("data:text/plain;charset=utf-8;base64,", "");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(key.as_bytes()).expect("packed");
    let packed = STANDARD.encode(gzip.finish().expect("packed"));
    for contents in [
        json!({ "source": data(&key) }),
        json!({ "source": data(&format!("key: {wrapped}\n")) }),
        json!({ "source": format!("data:;base64,{packed}"), "compression": "gzip" }),
    ] {
        let mut files = files(0);
        let mut worker: Value = serde_json::from_str(&files[&File::Worker]).expect("JSON");
        worker["storage"] = json!({ "files": [{ "path": "/x", "append": [contents] }] });
        files.insert(File::Worker, worker.to_string());
        let faults = read(&files).expect_err("refused");
        assert_eq!(faults[0].file, File::Worker, "{faults:?}");
    }
}

#[test]
fn a_set_of_another_cluster_or_domain_is_named_as_such() {
    let set = read(&files(0)).expect("sound");
    let domain: Hostname = "example.test".parse().expect("a domain");
    assert_eq!(set.foreign("lab", &domain), []);
    let other: Hostname = "example.org".parse().expect("a domain");
    let faulty: Vec<File> = set
        .foreign("lab", &other)
        .iter()
        .map(|fault| fault.file)
        .collect();
    assert_eq!(faulty, [File::Master, File::Worker, File::Kubeconfig]);
    let named: Vec<File> = set
        .foreign("field", &domain)
        .iter()
        .map(|fault| fault.file)
        .collect();
    assert_eq!(
        named,
        [File::Metadata, File::Master, File::Worker, File::Kubeconfig]
    );
}

#[test]
fn a_set_comes_back_whole_from_the_bytes_it_was_sealed_to() {
    let files = files(3);
    let set = read(&files).expect("sound");
    let again = InstallerSet::unseal(&set.seal()).expect("sound");
    assert_eq!(again.life(), set.life());
    for (file, text) in files {
        assert_eq!(*again.file(file).expose(), text);
    }
    assert!(!format!("{set:?}").contains("PRIVATE"), "{set:?}");
}

fn fake() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/lab/openshift-install-fake"
    ))
}

fn made(
    workers: usize,
    settings: &Value,
    site: &std::path::Path,
    installer: &std::path::Path,
) -> Result<InstallerSet, OkdError> {
    let scratch = tempfile::tempdir().expect("a directory");
    let domain: Hostname = "example.test".parse().expect("a domain");
    let definition = Definition {
        cluster: "lab",
        domain: &domain,
        machines: "10.107.0.0/24".parse().expect("a subnet"),
        pods: &["10.128.0.0/14".parse().expect("a subnet")],
        services: &["172.30.0.0/16".parse().expect("a subnet")],
        control_planes: 3,
        workers,
    };
    let wanted = Wanted::of(&definition, settings, site).expect("sound");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let set = runtime.block_on(generate(installer, &wanted, scratch.path()));
    let left: Vec<_> = std::fs::read_dir(scratch.path()).expect("there").collect();
    assert!(left.is_empty(), "the installer's directory stays: {left:?}");
    set
}

#[test]
fn an_installer_that_is_given_makes_a_set_of_the_definition_and_leaves_nothing_behind() {
    let site = tempfile::tempdir().expect("a directory");
    for (workers, schedulable) in [(0, true), (2, false)] {
        let set = made(workers, &Value::Null, site.path(), &fake()).expect("made");
        assert_eq!(
            set.foreign("lab", &"example.test".parse().expect("a domain")),
            []
        );
        assert!(set.life().age(now()).may_install());
        let bootstrap: Value =
            serde_json::from_str(set.file(File::Bootstrap).expose()).expect("JSON");
        let manifest = &bootstrap["storage"]["files"][2];
        assert_eq!(
            manifest["path"],
            "/opt/openshift/manifests/cluster-scheduler-02-config.yml"
        );
        let wanted = format!("\"mastersSchedulable\":{schedulable}");
        let manifest = Root::of(set.file(File::Bootstrap).expose())
            .read("/opt/openshift/manifests/cluster-scheduler-02-config.yml");
        assert!(manifest.contains(&wanted), "{manifest}");
    }
}

#[test]
fn an_installer_that_fails_is_quoted_and_a_pull_secret_for_everybody_is_refused() {
    let site = tempfile::tempdir().expect("a directory");
    let failing = site.path().join("openshift-install");
    std::fs::write(&failing, "#!/bin/sh\n# A fake that fails.\necho 'level=fatal msg=no such network type' >&2\nexit 3\n").expect("written");
    std::fs::set_permissions(&failing, std::fs::Permissions::from_mode(0o755)).expect("set");
    let failed = made(2, &Value::Null, site.path(), &failing)
        .expect_err("failed")
        .to_string();
    assert!(failed.contains("no such network type"), "{failed}");

    let settings = json!({ "pullSecretFile": "secrets/pull" });
    std::fs::create_dir(site.path().join("secrets")).expect("made");
    std::fs::write(site.path().join("secrets/pull"), "{}").expect("written");
    let refused = made(2, &settings, site.path(), &fake())
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
}

#[test]
fn a_directory_is_imported_and_one_that_lacks_files_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = import(directory.path()).expect_err("empty").to_string();
    assert_eq!(refused.matches("is missing").count(), 6, "{refused}");
    write(directory.path(), &files(1));
    import(directory.path()).expect("imported");
}

#[test]
fn only_the_bootstrap_s_config_holds_the_keys_of_the_cluster() {
    let (cluster, set) = (
        Cluster::new(Value::Null, &[]),
        read(&files(0)).expect("sound"),
    );
    let holds = |role| {
        let text = node_ign(&cluster, &set, role);
        let config: Value = serde_json::from_str(&text).expect("JSON");
        let inner = config["ignition"]["config"]["merge"][0]["source"]
            .as_str()
            .expect("a source")
            .to_owned();
        let inner = undo(&inner);
        let config: Value = serde_json::from_str(&inner).expect("JSON");
        let listed = config["storage"]["files"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let texts = listed
            .iter()
            .filter_map(|file| Some(undo(file["contents"]["source"].as_str()?)));
        texts
            .chain([text, inner.clone()])
            .any(|text| text.contains("PRIVATE KEY"))
    };
    for role in NODES {
        assert_eq!(holds(role), role == Role::Bootstrap, "{role:?}");
    }
}
