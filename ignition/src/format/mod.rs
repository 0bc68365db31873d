//! The three readers a node may have, and what each of them refuses.

pub(crate) mod cloud_init;
pub(crate) mod ignition;
pub(crate) mod talos;

use crate::Fault;

/// YAML whose long words stand on the line of their key, where people look for them with `grep`.
pub(crate) fn yaml_unfolded(document: &serde_json::Value) -> String {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(document, options).expect("what JSON can say, YAML can")
}

/// Refuses what no YAML parser would take.
pub(crate) fn lint_yaml(field: &'static str, text: &str) -> Result<Vec<serde_json::Value>, Fault> {
    serde_saphyr::from_multiple(text).map_err(|error| {
        let line = error
            .location()
            .map(|place| usize::try_from(place.line()).unwrap_or(usize::MAX));
        let first = error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        Fault {
            field,
            line,
            problem: format!("is not YAML: {first}"),
            remedy: "mend the file".to_owned(),
        }
    })
}
