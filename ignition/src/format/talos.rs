//! Talos machine configs are passed through. A node that is given an invalid one fetches it again for
//! ever and never says why (siderolabs/talos, internal/app/machined/pkg/controllers/config/acquire.go),
//! so what can be seen from here is refused here.

use crate::Fault;
use crate::format::lint_yaml;

/// Refuses a config that is empty, not YAML, or holds no document Talos knows.
pub(crate) fn lint(text: &str) -> Result<(), Fault> {
    let field = "config.file";
    let documents = lint_yaml(field, text)?;
    let refuse = |problem: &str, remedy: &str| {
        Err(Fault {
            field,
            line: None,
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        })
    };
    let mut machine = None;
    for document in documents.iter().filter(|document| !document.is_null()) {
        let Some(version) = document
            .get("version")
            .or_else(|| document.get("apiVersion"))
        else {
            return refuse(
                "holds a document without version or apiVersion",
                "write what `talosctl gen config` writes",
            );
        };
        if version != "v1alpha1" {
            return refuse(&format!("has version {version}"), "Talos knows v1alpha1");
        }
        if document.get("kind").is_none() {
            machine = Some(document);
        }
    }
    // Without a machine document the node waits in maintenance mode, where anybody may configure it.
    let Some(machine) = machine else {
        return refuse(
            "has no machine document",
            "begin with `version: v1alpha1` and a `machine` section",
        );
    };
    let kind = machine
        .pointer("/machine/type")
        .and_then(serde_json::Value::as_str);
    match kind {
        Some("controlplane" | "init" | "worker") => {}
        _ => return refuse("has no machine.type", "say controlplane or worker"),
    }
    let key = machine
        .pointer("/machine/ca/key")
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    if kind == Some("worker") && !key.is_empty() {
        return refuse(
            "gives a worker the CA's key",
            "leave machine.ca.key out; Talos refuses it, and so should you",
        );
    }
    Ok(())
}
