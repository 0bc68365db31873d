//! The secrets bundle as a file: written, read, and refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ignition::platform::talos::{Bundle, Certified, Encryption};
use ignition::secret::Secret;
use proptest::prelude::*;
use serde_json::json;

use crate::sample::bundle;

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let mut old = bundle(9);
    old.encryption = Encryption::AesCbc(Secret::new(STANDARD.encode([1; 32])));
    for bundle in [bundle(200), old] {
        let text = bundle.yaml();
        let again = Bundle::read(text.expose()).expect("a sound bundle");
        assert_eq!(again.yaml().expose(), text.expose());
    }
}

#[test]
fn a_bundle_is_read_as_json_in_camel_case_too() {
    let bundle = bundle(77);
    let both = |of: &Certified| json!({ "crt": STANDARD.encode(&of.certificate), "key": STANDARD.encode(of.key.expose()) });
    let Encryption::Secretbox(encryption) = &bundle.encryption else {
        panic!("a new bundle");
    };
    let text = json!({
        "Cluster": { "Id": bundle.cluster_id, "Secret": bundle.cluster_secret.expose() },
        "Secrets": {
            "BootstrapToken": bundle.bootstrap_token.expose(),
            "SecretboxEncryptionSecret": encryption.expose(),
        },
        "TrustdInfo": { "Token": bundle.trustd_token.expose() },
        "Certs": {
            "Etcd": both(&bundle.etcd),
            "K8s": both(&bundle.kubernetes),
            "K8sAggregator": both(&bundle.aggregator),
            "K8sServiceAccount": { "Key": STANDARD.encode(bundle.service_account.expose()) },
            "OS": both(&bundle.os),
        },
    });
    let read = Bundle::read(&text.to_string()).expect("a sound bundle");
    assert_eq!(read.yaml().expose(), bundle.yaml().expose());
}

#[test]
fn every_fault_of_a_bundle_is_named_with_its_line_and_without_its_value() {
    let text = bundle(40).yaml();
    let text = text.expose();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(lines[4].contains("bootstraptoken") && lines[7].contains("token"));
    lines[4] = "    bootstraptoken: Aaaaaa.bbbbbbbbbbbbbbbb".to_owned();
    lines[7] = "    token: 12345.5".to_owned();
    lines[10] = lines[11].replace("key:", "crt:");
    lines.push("    extra: hidden-words".to_owned());
    lines.retain(|line| !line.contains("secretbox"));
    let faults = Bundle::read(&lines.join("\n")).expect_err("faults");
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for words in [
        "line 5: secrets.bootstraptoken is no token",
        "line 7: trustdinfo.token is no text",
        "line 10: certs.etcd.crt holds PEM of the kind EC PRIVATE KEY",
        "secrets.secretboxencryptionsecret is missing",
        "certs.extra is no key of a secrets bundle",
    ] {
        assert!(
            texts.iter().any(|text| text.contains(words)),
            "{words}: {texts:?}"
        );
    }
    assert_eq!(faults.len(), 5, "{texts:?}");
    let all = texts.join(" ");
    assert!(!all.contains("Aaaaaa") && !all.contains("12345") && !all.contains("hidden-words"));
}

proptest! {
    #[test]
    fn a_foreign_bundle_is_refused_without_repeating_it(cut in any::<prop::sample::Index>(), put in "[ -~]{0,12}") {
        let text = bundle(40).yaml();
        let text = text.expose();
        let cut = cut.index(text.len());
        let mangled = format!("{}{put}{}", &text[..cut], &text[cut..]);
        if let Err(faults) = Bundle::read(&mangled) {
            prop_assert!(!faults.is_empty());
            for fault in faults {
                prop_assert!(fault.to_string().len() < 250);
            }
        }
    }
}
