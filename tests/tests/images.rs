//! The depot filled over HTTPS. The server is the bastion's own TLS side, which curl and Ignition have tried elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use daemon::http::Limits;
use images::{Artifact, Depot, FetchError, Pull, Roots, pull};
use netboot::attempt::Fact;
use tests::bastion::reveille;
use tests::http::{Bastion, LIVE, read, url};
use tests::lab::until;
use tests::netns::Netns;

/// Pulls inside a namespace; `stop_at` breaks off once so many bytes are there, as Ctrl-C would.
fn fetch(
    netns: &Netns,
    depot: &Depot,
    wanted: &Pull,
    ca: PathBuf,
    stop_at: Option<u64>,
) -> Option<Result<Artifact, FetchError>> {
    let (depot, wanted) = (depot.clone(), wanted.clone());
    netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let roots = Roots::of_file(&ca).expect("the CA is one");
            let (enough, mut is_enough) = tokio::sync::mpsc::unbounded_channel();
            let watch = move |progress: images::Progress| {
                if stop_at.is_some_and(|limit| progress.done >= limit) {
                    let _ = enough.send(());
                }
            };
            tokio::select! {
                done = pull(&depot, &wanted, &roots, watch) => Some(done),
                Some(()) = is_enough.recv() => None,
            }
        })
    })
}

fn secure(artifact: &Artifact) -> String {
    url(artifact).replace("http://10.107.0.1:8080", "https://10.107.0.1:8443")
}

#[test]
fn a_pull_goes_on_where_the_last_one_broke_off_and_ends_with_the_very_file() {
    let mut bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let source = bastion.artifact("big/rootfs", 40_000_000);
    let ca = PathBuf::from(bastion.ca());
    let depot = Depot::open(bastion.path("other")).expect("a depot");
    let name = "site/rootfs".parse().expect("a name");
    let wanted = Pull {
        name,
        url: secure(&source),
        digest: source.digest,
    };

    assert!(
        fetch(&machine, &depot, &wanted, ca.clone(), Some(5_000_000)).is_none(),
        "broken off"
    );
    assert_eq!(
        depot.list().expect("listed"),
        [],
        "nothing half done has a name"
    );
    let pulled = fetch(&machine, &depot, &wanted, ca.clone(), None)
        .expect("run to its end")
        .expect("pulled");
    assert_eq!((pulled.digest, pulled.size), (source.digest, 40_000_000));
    assert!(read(&depot.path(&source.digest)) == read(&bastion.depot.path(&source.digest)));
    assert_eq!(depot.verify().expect("verified"), []);

    let mut offsets = Vec::new();
    until(
        "both transfers in the ledger",
        Duration::from_secs(20),
        || {
            for entry in bastion.facts() {
                if let Fact::Transfer { offset, .. } = entry.fact {
                    offsets.push(offset);
                }
            }
            offsets.len() == 2
        },
    );
    assert!(
        offsets.contains(&0) && offsets.iter().any(|offset| *offset >= 5_000_000),
        "{offsets:?}"
    );
    let again = fetch(&machine, &depot, &wanted, ca, None)
        .expect("run to its end")
        .expect("there already");
    assert_eq!(again, pulled);
    assert!(
        bastion.facts().is_empty(),
        "what is there is not fetched again"
    );
}

#[test]
fn a_file_of_another_digest_and_a_server_of_another_ca_are_refused() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let source = bastion.artifact("big/rootfs", 100_000);
    let depot = Depot::open(bastion.path("other")).expect("a depot");
    let digest = "0123456789abcdef".repeat(4).parse().expect("a digest");
    let mut wanted = Pull {
        name: "a/b".parse().expect("a name"),
        url: secure(&source),
        digest,
    };
    let ca = PathBuf::from(bastion.ca());
    let refused = fetch(&machine, &depot, &wanted, ca.clone(), None).expect("run to its end");
    assert!(
        matches!(refused, Err(FetchError::Digest { .. })),
        "{refused:?}"
    );
    wanted.digest = source.digest;
    wanted.url = url(&source);
    let refused = fetch(&machine, &depot, &wanted, ca.clone(), None).expect("run to its end");
    assert!(
        matches!(refused, Err(FetchError::Url(_))),
        "plain HTTP: {refused:?}"
    );
    wanted.url = secure(&source) + "/x";
    let refused = fetch(&machine, &depot, &wanted, ca, None).expect("run to its end");
    assert!(
        matches!(refused, Err(FetchError::Status { .. })),
        "{refused:?}"
    );
    assert_eq!(depot.list().expect("listed"), []);

    let other = daemon::tls::SiteCa::open(&bastion.path("other-ca")).expect("a CA");
    std::fs::write(bastion.path("other.pem"), other.pem()).expect("written");
    wanted.url = secure(&source);
    let refused =
        fetch(&machine, &depot, &wanted, bastion.path("other.pem"), None).expect("run to its end");
    assert!(
        matches!(refused, Err(FetchError::Connect { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_stream_s_kernel_initramfs_and_root_are_pulled_as_one_build() {
    let bastion = Bastion::start(Limits::default());
    let machine = bastion.machine(LIVE);
    let parts = ["kernel.x86_64", "initramfs.x86_64.img", "rootfs.x86_64.img"];
    let published =
        parts.map(|part| bastion.artifact(&format!("c10s/scos-10.1-live-{part}"), 3_000));
    let file = |artifact: &Artifact| serde_json::json!({ "location": secure(artifact), "sha256": artifact.digest.to_string() });
    let [kernel, initramfs, rootfs] = published.each_ref().map(file);
    let stream = serde_json::json!({ "stream": "c10s", "architectures": { "x86_64": { "artifacts": { "metal": {
        "release": "10.1",
        "formats": { "pxe": { "kernel": kernel, "initramfs": initramfs, "rootfs": rootfs } },
    } } } } });
    std::fs::write(bastion.path("stream.json"), stream.to_string()).expect("written");
    let [stream, state] = ["stream.json", "other-state"].map(|name| bastion.path(name));
    let text = |path: &std::path::Path| path.to_str().expect("paths are text").to_owned();
    let (ca, stream, state) = (bastion.ca(), text(&stream), text(&state));
    machine.output(
        reveille(),
        &[
            "image", "pull", "--stream", &stream, "--ca", &ca, "--state", &state,
        ],
    );
    let depot = Depot::open(bastion.path("other-state/depot")).expect("a depot");
    let listed = depot.list().expect("listed");
    let names: Vec<&str> = listed
        .iter()
        .map(|artifact| artifact.name.as_str())
        .collect();
    let wanted =
        ["initramfs.img", "rootfs.img", "vmlinuz"].map(|file| format!("scos/10.1/x86_64/{file}"));
    assert_eq!(names, wanted);
    let arguments = [
        "image", "pull", "--stream", &stream, "--arch", "s390x", "--state", &state,
    ];
    let refused = machine.try_output(reveille(), &arguments);
    assert!(refused.is_err_and(|said| said.contains("it has x86_64")));
}
