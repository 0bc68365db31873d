//! What this machine knows of itself: for now, the report URL that its boot script put on the kernel
//! command line.

use std::fs;

const KEY: &str = "reveille.report=";

/// The URL of the kernel argument `reveille.report`; the last one counts, as with the kernel's own.
pub(crate) fn report_url() -> Result<String, String> {
    let line = fs::read_to_string("/proc/cmdline")
        .map_err(|error| format!("reading /proc/cmdline: {error}; name the URL with --url"))?;
    url_in(&line).ok_or_else(|| {
        format!(
            "the kernel command line has no {KEY}URL; name it with --url, or put {KEY}{{{{ report_url }}}} into the profile's arguments"
        )
    })
}

fn url_in(line: &str) -> Option<String> {
    line.split_ascii_whitespace()
        .rev()
        .find_map(|word| word.trim_matches('"').strip_prefix(KEY))
        .map(|url| url.trim_matches('"').to_owned())
        .filter(|url| !url.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_argument_counts_whatever_its_quotes() {
        let url = |line| url_in(line);
        assert_eq!(
            url("quiet reveille.report=http://a/x ro"),
            Some("http://a/x".to_owned())
        );
        assert_eq!(
            url("reveille.report=http://a/x \"reveille.report=http://b/y\"\n"),
            Some("http://b/y".to_owned())
        );
        assert_eq!(
            url("reveille.report=\"http://a/x\""),
            Some("http://a/x".to_owned())
        );
        assert_eq!(url("reveille.report= quiet"), None);
        assert_eq!(url("xreveille.report=http://a"), None);
    }
}
