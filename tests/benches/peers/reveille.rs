//! The daemon under test: the real binary, with its store, its ledger and its control socket, as an operator runs it.
//!
//! Touches: the site and state directories it makes in the lab's scratch directory.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::bastion::reveille;

use crate::dhcp_load::{Machine, machines};
use crate::dns::DOMAIN;
use crate::http::{self, Site};
use crate::lab::{CLIENT, SERVER, SERVER_LINK};
use crate::tftp;

/// Every machine is listed with its address; the ledger notes each packet, as always.
pub(crate) fn dhcp(directory: &Path, machines: &[Machine]) -> Result<Command> {
    import(directory, &small_file(directory)?, "kernel")?;
    serve(directory, machines, "")
}

pub(crate) fn tftp(directory: &Path) -> Result<Command> {
    let files = directory.join("files");
    fs::create_dir(&files)?;
    tftp::files(&files)?;
    for size in tftp::FILES {
        // What the depot has under this name is a loader, and loaders are what TFTP is for.
        let name = format!("loaders/{size}");
        import(directory, &files.join(size.to_string()), &name)?;
    }
    import(directory, &small_file(directory)?, "kernel")?;
    serve(directory, &machines(10), "")
}

pub(crate) fn http(directory: &Path) -> Result<Site> {
    let mut paths = Vec::new();
    for (name, bytes) in http::FILES {
        let file = directory.join(name);
        http::file(&file, *bytes)?;
        let digest = import(directory, &file, name)?;
        fs::remove_file(&file)?;
        paths.push(format!("/artifacts/{digest}/{name}"));
    }
    let machines = machines(10);
    let command = serve(directory, &machines, "")?;
    Ok(Site {
        command,
        port: 8080,
        paths,
        script: Some(format!(
            "/boot/{}/script.ipxe",
            crate::dhcp::mac(&machines[0])
        )),
    })
}

/// Every machine's name, and a server for the names of others.
pub(crate) fn dns(directory: &Path, machines: &[Machine]) -> Result<Command> {
    import(directory, &small_file(directory)?, "kernel")?;
    let more = format!("    domain: {DOMAIN}\ndns: {{ forward: [{CLIENT}] }}\n");
    serve(directory, machines, &more)
}

/// `more` goes on where the network's entry ends.
fn serve(directory: &Path, machines: &[Machine], more: &str) -> Result<Command> {
    let site = directory.join("site");
    fs::create_dir_all(site.join("profiles"))?;
    fs::write(
        site.join("site.yaml"),
        format!(
            "site: bench\nnetworks:\n  - name: provisioning\n    link: {SERVER_LINK}\n    subnet: 10.77.0.0/16\n    \
             router: {SERVER}\n    lease: 1h\n{more}"
        ),
    )
    .context("writing site.yaml")?;
    fs::write(
        site.join("profiles/live.yaml"),
        "kernel: kernel\npurpose: live\n",
    )
    .context("writing a profile")?;
    let mut inventory = String::from("machines:\n");
    for (index, machine) in machines.iter().enumerate() {
        writeln!(
            inventory,
            "  - {{ name: node-{index:05}, mac: \"{}\", address: {}, profile: live }}",
            crate::dhcp::mac(machine),
            machine.address
        )?;
    }
    fs::write(site.join("machines.yaml"), inventory).context("writing machines.yaml")?;
    let mut command = Command::new(reveille());
    command
        .arg("serve")
        .arg("--site")
        .arg(site)
        .arg("--state")
        .arg(directory.join("state"));
    command.arg("--socket").arg(directory.join("control.sock"));
    Ok(command)
}

fn small_file(directory: &Path) -> Result<std::path::PathBuf> {
    let file = directory.join("small");
    fs::write(&file, "a kernel").context("writing a small file")?;
    Ok(file)
}

/// Brings a file into the depot and returns its digest.
fn import(directory: &Path, file: &Path, name: &str) -> Result<String> {
    let state = directory.join("state");
    fs::create_dir_all(&state)?;
    let mut command = Command::new(reveille());
    command
        .args(["image", "import"])
        .arg(file)
        .args(["--name", name, "--state"])
        .arg(state);
    let output = command.output().context("importing a file")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "importing {name} failed: {said}");
    let digest = said
        .split(|letter: char| !letter.is_ascii_hexdigit())
        .find(|word| word.len() == 64);
    Ok(digest
        .with_context(|| format!("importing {name} named no digest: {said}"))?
        .to_owned())
}
