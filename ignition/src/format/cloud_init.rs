//! NoCloud's documents. `meta-data` is ours: its `instance-id` stays the same for one install, so that
//! cloud-init runs its per-instance modules once, and changes with the next (cloud-init,
//! doc/rtd/reference/datasources/nocloud.rst).

use crate::format::lint_yaml;
use crate::{Fault, Subject};

/// The first lines by which cloud-init knows what user-data is (doc/rtd/explanation/format.rst).
const HEADERS: [&str; 8] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template:",
    "Content-Type: multipart/",
    "MIME-Version:",
];

/// `meta-data` as JSON, which every YAML reader takes.
pub(crate) fn meta_data(subject: &Subject<'_>) -> String {
    let name = subject.node.map_or("unlisted", |node| node.name.as_str());
    let hostname = subject.node.map_or(name, |node| node.hostname.as_str());
    let document = serde_json::json!({
        "instance-id": format!("{name}-g{}", subject.generation),
        "local-hostname": hostname,
    });
    format!("{document}\n")
}

/// Refuses user-data that cloud-init would skip with a warning nobody reads.
pub(crate) fn lint_user_data(text: &str) -> Result<(), Fault> {
    let field = "config.user_data";
    if text.trim().is_empty() {
        return Ok(());
    }
    if !HEADERS.iter().any(|header| text.starts_with(header)) {
        let first: String = text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(40)
            .collect();
        let problem = format!("begins with {first:?}, which cloud-init does not know");
        let remedy = "begin it with #cloud-config, #! or another header of cloud-init's".to_owned();
        return Err(Fault {
            field,
            line: Some(1),
            problem,
            remedy,
        });
    }
    if text.starts_with("#cloud-config") {
        let documents = lint_yaml(field, text)?;
        if documents
            .iter()
            .any(|document| !document.is_object() && !document.is_null())
        {
            let problem = "is a #cloud-config that is not a mapping".to_owned();
            return Err(Fault {
                field,
                line: None,
                problem,
                remedy: "write keys and values at the top".to_owned(),
            });
        }
    }
    Ok(())
}
