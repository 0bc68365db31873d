//! A decision as the text that iPXE runs, and the words that a script's URL carries back.
//!
//! Scripts keep to what every stock build has, Debian's 1.0.0+git-20190125 for BIOS included: GET over
//! plain HTTP, `kernel`, `initrd`, `boot`, `iseq`, `inc`, `goto`, `sanboot`, `sleep`, `chain`, `exit`.
//! A hold is two answers. iPXE asks again by itself, for ever, when a failing status says `Retry-After`
//! (src/net/tcp/httpcore.c, http_parse_retry_after), but shows nothing of what that status came with. So
//! the first answer is a script that puts the reason on the console and asks again with the reason's
//! mark; whoever asks with the mark of the reason in force is answered 503, and waits. A new reason is
//! a new mark, and is shown.
//!
//! Ugly facts. EFI kernels find their initrd by a name in `initrd=`, so files get names of ours that no
//! two share. A failed fetch is tried again here: leaving would hand the machine to the next boot entry,
//! maybe an old disk. Leaving for the disk is the firmware's business under UEFI (`exit 1`) and ours
//! under BIOS (`sanboot`).

use std::fmt::Write as _;

use uuid::Uuid;

use crate::loader::{Architecture, Client};
use crate::net::MacAddress;
use crate::spec::Profile;

/// What iPXE fills in by itself when a URL of ours is fetched: DHCP's file name is expanded too
/// (src/usr/autoboot.c, fetch_next_server_and_filename).
const QUERY: &str =
    "?uuid=${uuid}&serial=${serial:uristring}&platform=${platform}&arch=${buildarch}";
/// Fetches of one script's files, five seconds apart, before the script itself is asked for anew.
const FETCHES_MAX: u8 = 24;

/// What a machine said of itself in the query of its script's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// SMBIOS serial.
    pub serial: Option<String>,
    /// Which build of iPXE it runs.
    pub client: Client,
    /// The mark of the reason to wait that its console shows.
    pub held: Option<String>,
}

/// The path of a machine's script.
#[must_use]
pub fn script_path(mac: MacAddress) -> String {
    format!("/boot/{}/script.ipxe", mac.hyphenated())
}

/// The URL of a machine's script, for DHCP to send to iPXE. `base` is `http://10.107.0.1:8080`.
#[must_use]
pub fn script_url(base: &str, mac: MacAddress) -> String {
    format!("{base}{}{QUERY}", script_path(mac))
}

/// Reads the query of a script's URL. What makes no sense counts as not said.
#[must_use]
pub fn said(query: &str) -> Said {
    let mut said = Said {
        uuid: None,
        serial: None,
        client: Client::Ipxe(Architecture::BIOS),
        held: None,
    };
    let (mut platform, mut arch) = (String::new(), String::new());
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent_decoded(value);
        match key {
            "uuid" => said.uuid = value.parse().ok(),
            "serial" if !value.trim().is_empty() => said.serial = Some(value.trim().to_owned()),
            "held" => said.held = Some(value),
            "platform" => platform = value,
            "arch" => arch = value,
            _ => {}
        }
    }
    said.client = Client::Ipxe(match (platform.as_str(), arch.as_str()) {
        ("efi", "arm64") => Architecture::ARM64_UEFI,
        ("efi", "i386") => Architecture(6),
        ("efi", "riscv64") => Architecture(27),
        ("efi", "loong64") => Architecture(39),
        ("efi", _) => Architecture::X64_UEFI,
        _ => Architecture::BIOS,
    });
    said
}

/// Boots a profile: `base` is where its artefacts are, `again` the script's own URL.
#[must_use]
pub fn boot(
    heading: &str,
    base: &str,
    again: &str,
    profile: &Profile,
    arguments: &[String],
) -> String {
    let mut script = opening(heading);
    script.push_str("set fetches:int32 0\n:fetch\n");
    let _ = write!(script, "kernel --name kernel {}", profile.kernel.url(base));
    for number in 0..profile.initrds.len() {
        let _ = write!(script, " initrd=initrd{number}");
    }
    for argument in arguments {
        let _ = write!(script, " {}", one_line(argument));
    }
    script.push_str(" || goto failed\n");
    for (number, initrd) in profile.initrds.iter().enumerate() {
        let _ = writeln!(
            script,
            "initrd --name initrd{number} {} || goto failed",
            initrd.url(base)
        );
    }
    let _ = write!(
        script,
        "boot || goto failed\n\
         :failed\n\
         echo Reveille: a file did not arrive or does not boot, trying again in 5 seconds\n\
         imgfree\n\
         sleep 5\n\
         inc fetches\n\
         iseq ${{fetches}} {FETCHES_MAX} || goto fetch\n\
         chain --replace --autofree {again} || goto fetch\n"
    );
    script
}

/// Leaves for the local disk.
#[must_use]
pub fn local_disk(heading: &str) -> String {
    let mut script = opening(heading);
    script.push_str(
        "iseq ${platform} efi && goto leave ||\n\
         sanboot --no-describe --drive 0x80 ||\n\
         :leave\n\
         exit 1\n",
    );
    script
}

/// Shows why the machine waits, and asks `again`, its script's own URL, with the reason's mark.
#[must_use]
pub fn hold(reason: &str, again: &str) -> String {
    let mut script = opening(reason);
    let mark = held_mark(reason);
    let _ = write!(
        script,
        "echo Reveille: this machine asks again by itself\n\
         :again\n\
         chain --replace --autofree {again}&held={mark} ||\n\
         sleep 5\n\
         goto again\n"
    );
    script
}

/// The mark of a reason to wait: FNV-1a of its text, 32 bits. It tells reasons apart and hides nothing.
#[must_use]
pub fn held_mark(reason: &str) -> String {
    let hash = reason.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

/// Says why there is nothing, long enough to be read, and leaves for the firmware's next boot entry.
#[must_use]
pub fn refuse(reason: &str) -> String {
    let mut script = opening(reason);
    script.push_str("sleep 10\nexit 1\n");
    script
}

/// Finds the machine's own script: for builds of iPXE that fetch `autoexec.ipxe` beside themselves
/// before any DHCP (iPXE 2.0, src/interface/efi/efi_autoexec.c).
#[must_use]
pub fn autoexec(base: &str) -> String {
    format!(
        "#!ipxe\n\
         isset ${{netX/ip}} || dhcp || goto leave\n\
         chain --replace --autofree {base}/boot/${{netX/mac:hexhyp}}/script.ipxe{QUERY} || goto leave\n\
         :leave\n\
         exit 1\n"
    )
}

/// Seconds until a held machine asks again, 5 to 15: spread by its address, so that a rack that was
/// powered on at once doesn't ask at once for ever.
#[must_use]
pub fn retry_after_seconds(mac: MacAddress) -> u8 {
    5 + mac.octets()[5] % 11
}

fn opening(heading: &str) -> String {
    format!("#!ipxe\necho Reveille: {}\n", spoken(heading))
}

/// A sentence for `echo`: nothing in it may expand, part commands or leave the line.
fn spoken(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '$' | '|' | '&' | '#' | '\\' | '"' | '\'' => ' ',
            letter if letter.is_ascii_graphic() || letter == ' ' => letter,
            letter if letter.is_control() => ' ',
            _ => '?',
        })
        .take(200)
        .collect()
}

/// A kernel argument is the profile's own word, iPXE's settings in it included; it only stays in its line.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Undoes percent-encoding (RFC 3986, section 2.1); what is not encoded well stays as it is.
#[must_use]
pub fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let decoded = digits
            .filter(|_| *first == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Digest;
    use crate::spec::{Artifact, ConfigSource, Purpose};

    fn profile() -> Profile {
        let artifact = |file: &str, byte| Artifact {
            file: file.to_owned(),
            digest: Digest::from_bytes([byte; 32]),
            size: 1,
        };
        Profile {
            name: "live".parse().unwrap(),
            kernel: artifact("vmlinuz", 0x11),
            initrds: vec![artifact("initrd.img", 0x22), artifact("initrd.img", 0x33)],
            artifacts: std::collections::BTreeMap::new(),
            arguments: Vec::new(),
            config: ConfigSource::None,
            purpose: Purpose::Install,
            disk: None,
        }
    }

    #[test]
    fn a_held_machine_shows_why_and_asks_again_with_the_mark_of_that_reason() {
        let again = script_url(
            "http://10.107.0.1:8080",
            "52:54:00:aa:00:01".parse().unwrap(),
        );
        let script = hold("set aside; `reveille node uncordon` lets it boot", &again);
        assert!(
            script.contains("echo Reveille: set aside; `reveille node uncordon` lets it boot\n"),
            "{script}"
        );
        let (_, query) = script.split_once("script.ipxe?").unwrap();
        let (query, _) = query.split_once(" ||").unwrap();
        let mark = said(query).held.unwrap();
        assert_eq!(
            mark,
            held_mark("set aside; `reveille node uncordon` lets it boot")
        );
        assert_ne!(mark, held_mark("3 boots without a success"));
    }

    #[test]
    fn a_boot_script_names_every_file_by_its_digest_and_no_two_initrds_alike() {
        let arguments = ["console=ttyS0".to_owned(), "a=b\nc".to_owned()];
        let again = "http://10.107.0.1:8080/boot/52-54-00-aa-00-01/script.ipxe";
        let script = boot(
            "worker-1 boots live",
            "http://10.107.0.1:8080",
            again,
            &profile(),
            &arguments,
        );
        let (one, two, three) = ("11".repeat(32), "22".repeat(32), "33".repeat(32));
        let base = "http://10.107.0.1:8080/artifacts";
        assert_eq!(
            script,
            format!(
                "#!ipxe\n\
                 echo Reveille: worker-1 boots live\n\
                 set fetches:int32 0\n\
                 :fetch\n\
                 kernel --name kernel {base}/{one}/vmlinuz initrd=initrd0 initrd=initrd1 console=ttyS0 a=b c || goto failed\n\
                 initrd --name initrd0 {base}/{two}/initrd.img || goto failed\n\
                 initrd --name initrd1 {base}/{three}/initrd.img || goto failed\n\
                 boot || goto failed\n\
                 :failed\n\
                 echo Reveille: a file did not arrive or does not boot, trying again in 5 seconds\n\
                 imgfree\n\
                 sleep 5\n\
                 inc fetches\n\
                 iseq ${{fetches}} 24 || goto fetch\n\
                 chain --replace --autofree {again} || goto fetch\n"
            )
        );
    }

    #[test]
    fn a_reason_can_neither_expand_nor_part_commands() {
        let script = refuse("serial ${uuid} || shell\nexit && é");
        let echo = script.lines().nth(1).unwrap();
        assert_eq!(echo, "echo Reveille: serial  {uuid}    shell exit    ?");
    }

    #[test]
    fn what_a_url_says_is_what_the_machine_filled_in() {
        let all = said(
            "uuid=4c4c4544-0042-3510-8057-b4c04f4e3132&serial=AB%2F%201&platform=efi&arch=arm64",
        );
        assert_eq!(all.serial.as_deref(), Some("AB/ 1"));
        assert!(all.uuid.is_some());
        assert_eq!(all.client, Client::Ipxe(Architecture::ARM64_UEFI));
        let nothing = Said {
            uuid: None,
            serial: None,
            client: Client::Ipxe(Architecture::BIOS),
            held: None,
        };
        for query in ["", "uuid=&serial=", "serial=%20", "uuid=${uuid}", "&&=&%"] {
            assert_eq!(said(query), nothing, "{query}");
        }
        assert_eq!(said("serial=%ff%").serial.as_deref(), Some("\u{fffd}%"));
    }

    #[test]
    fn held_machines_come_back_within_five_to_fifteen_seconds() {
        for last in 0..=255 {
            let mac = MacAddress::from_octets([0x52, 0x54, 0, 0, 0, last]).unwrap();
            assert!((5..=15).contains(&retry_after_seconds(mac)));
        }
    }
}
