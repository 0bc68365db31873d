//! The real Ignition, as Debian packages it: its validator, and its own stages against a root of a test's own.
//!
//! Needs root and what `tests/lab/setup.sh images` brings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::lab::asset;
use crate::process;

/// # Panics
/// When Ignition would refuse the config, with its words.
pub fn is_valid(config: &str) {
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("config.ign");
    fs::write(&path, config).expect("written");
    let mut validate = packaged("usr/bin/ignition-validate");
    let output = validate.arg(&path).output().expect("the validator runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("warning"),
        "{said}\n{config}"
    );
}

/// A root file system that Ignition configured.
pub struct Root {
    scratch: TempDir,
}

impl Root {
    /// Fetches, merges and applies `config`: the stages that need no disk.
    ///
    /// # Panics
    /// When a stage fails, with its words.
    pub fn of(config: &str) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let at = |name: &str| scratch.path().join(name);
        for directory in [
            "root/etc/selinux",
            "root/usr/lib",
            "root/tmp",
            "root/root",
            "root/home",
            "root/run",
            "root/var",
            "bin",
        ] {
            fs::create_dir_all(at(directory)).expect("made");
        }
        // Debian's build always relabels: it wants a policy's name and a `setfiles`.
        fs::write(
            at("root/etc/selinux/config"),
            "SELINUX=disabled\nSELINUXTYPE=targeted\n",
        )
        .expect("written");
        fs::write(at("bin/setfiles"), "#!/bin/sh\ncat >/dev/null\n").expect("written");
        make_executable(&at("bin/setfiles"));
        for file in ["passwd", "group", "shadow", "gshadow"] {
            fs::write(at("root/etc").join(file), "").expect("written");
        }
        fs::write(at("config.ign"), config).expect("written");
        let path = std::env::var("PATH").unwrap_or_default();
        for stage in ["fetch-offline", "fetch", "files"] {
            let mut run = packaged("usr/lib/dracut/modules.d/30ignition/ignition");
            run.env("IGNITION_CONFIG_FILE", at("config.ign"))
                .env(
                    "PATH",
                    format!("{}:{path}:/usr/sbin:/sbin", at("bin").display()),
                )
                .args(["--platform", "file", "--stage", stage, "--log-to-stdout"])
                .args(["--fetch-timeout", "20s"])
                .arg("--root")
                .arg(at("root"))
                .arg("--config-cache")
                .arg(at("cache"))
                .arg("--state-file")
                .arg(at("state"))
                .arg("--neednet")
                .arg(at("neednet"));
            let output = run.output().expect("Ignition runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "ignition {stage}: {said}");
        }
        Self { scratch }
    }

    /// Where an absolute path of the root lies here.
    pub fn path(&self, path: &str) -> PathBuf {
        self.scratch.path().join(format!("root{path}"))
    }

    /// # Panics
    /// When there is no such text.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The permissions of a file.
    pub fn mode(&self, path: &str) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        let metadata =
            fs::metadata(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        metadata.permissions().mode() & 0o7777
    }
}

fn packaged(program: &str) -> Command {
    let path = asset("ignition").join(program);
    process::command(path.to_str().expect("the cache's path is text"))
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made executable");
}
