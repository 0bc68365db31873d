//! A fake machine: no firmware, no kernel, only the requests that they make, so that hundreds of boots fit into a minute.
//!
//! What can be real is: it has a namespace, a cable and an address of its own, and busybox `udhcpc` does its DHCP with the
//! options of iPXE. Its HTTP client and its reading of the script stand in for iPXE and the initramfs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::{LINK, Lab};
use crate::netns::Netns;

/// Bodies larger than this are an error: the sites of these machines have small kernels.
const BODY_BYTES_MAX: u64 = 64 << 20;
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

pub struct Client {
    pub name: String,
    pub mac: String,
    pub netns: Netns,
}

/// What DHCP gave.
#[derive(Clone, Debug)]
pub struct Lease {
    pub address: Ipv4Addr,
    /// Options by udhcpc's names.
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// What an iPXE script of the daemon tells a machine to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    Boot {
        kernel: String,
        initrds: Vec<String>,
        arguments: Vec<String>,
    },
    /// Anything that is not a boot: the local disk, a refusal.
    Other(String),
}

impl Client {
    /// A machine on the flat network of a laboratory.
    pub fn plug_in(lab: &Lab, name: &str, mac: &str) -> Self {
        let netns = Netns::new();
        let port = format!("port-{}", &mac.replace(':', "")[6..]);
        lab.netns.cable(&port, &netns, "eth0");
        lab.netns.ip(&format!("link set {port} master {LINK}"));
        netns.sysctl("ipv6/conf/eth0/disable_ipv6", "1");
        netns.ip(&format!("link set eth0 address {mac}"));
        Self {
            name: name.to_owned(),
            mac: mac.to_owned(),
            netns,
        }
    }

    /// One DHCP run with iPXE's options; `None` when nobody answered within four seconds.
    pub fn dhcp(&self) -> Option<Lease> {
        // 77 is the user class "iPXE", 93 the architecture (PC BIOS), 175 iPXE's own features.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/lab/print-lease");
        let words = format!(
            "udhcpc -f -q -n -i eth0 -t 4 -T 1 -s {script} -V PXEClient:Arch:00000:UNDI:002001 \
             -x 0x4d:69505845 -x 0x5d:0000 -x 0xaf:b105018086100e -O bootfile"
        );
        let words: Vec<&str> = words.split_whitespace().collect();
        let said = self.netns.try_output("busybox", &words).ok()?;
        let options: BTreeMap<_, _> = said
            .lines()
            .filter_map(|line| line.strip_prefix("lease: ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        Some(Lease {
            address: options.get("ip")?.parse().ok()?,
            options,
        })
    }

    /// DHCP and the script it names, once. A status other than 200 is an error that begins with it.
    pub fn try_script(&self) -> Result<Script, String> {
        let lease = self.dhcp().ok_or("no lease")?;
        let url = lease.boot_file().ok_or("the lease names no script")?;
        let response = self.get(&expanded(&url))?;
        let text = String::from_utf8_lossy(&response.body);
        if response.status == 200 {
            Ok(Script::read(&text))
        } else {
            Err(format!("{}: {text}", response.status))
        }
    }

    /// As `try_script`, until there is one: what firmware repeats for ever.
    ///
    /// # Panics
    /// When there is no script within the limit.
    pub fn insist_on_script(&self, limit: Duration) -> Script {
        let deadline = Instant::now() + limit;
        loop {
            match self.try_script() {
                Ok(script) => return script,
                Err(reason) => assert!(
                    Instant::now() < deadline,
                    "{} got no script: {reason}",
                    self.name
                ),
            }
        }
    }

    pub fn script(&self) -> Script {
        self.insist_on_script(SCRIPT_LIMIT)
    }

    /// As `script`, for a machine that must be told to boot.
    pub fn boot_script(&self) -> Script {
        let script = self.script();
        assert!(
            matches!(script, Script::Boot { .. }),
            "{} was not told to boot: {script:?}",
            self.name
        );
        script
    }

    /// One HTTP request on a connection of its own.
    pub fn request(
        &self,
        method: &'static str,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response, String> {
        let (host, path) = split(url)?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if method == "POST" {
            head += "Content-Length: 0\r\n";
        }
        head += "\r\n";
        self.netns.run(move || exchange(host, &head))
    }

    pub fn get(&self, url: &str) -> Result<Response, String> {
        self.request("GET", url, &[("User-Agent", "iPXE/1.0.0+")])
    }

    /// Asks again until the answer is a 200, as ignition and curl do when nobody is there.
    pub fn insist(
        &self,
        method: &'static str,
        url: &str,
        limit: Duration,
    ) -> Result<Response, String> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = match self.request(method, url, &[("User-Agent", "Ignition/2.14.0")]) {
                Ok(response) if (200..300).contains(&response.status) => return Ok(response),
                Ok(response) => format!("{} {url}", response.status),
                Err(error) => format!("{error} at {url}"),
            };
            if Instant::now() > deadline {
                return Err(answer);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Lease {
    /// What to fetch next, by option 67 or the header's field.
    pub fn boot_file(&self) -> Option<String> {
        ["bootfile", "boot_file"]
            .iter()
            .find_map(|name| self.options.get(*name))
            .cloned()
    }
}

impl Script {
    pub fn read(text: &str) -> Self {
        let (mut kernel, mut initrds) = (None, Vec::new());
        for line in text.lines() {
            let mut words = line
                .split_whitespace()
                .filter(|word| !word.starts_with("--"));
            match words.next() {
                Some("kernel") => kernel = Some(words.map(str::to_owned).collect::<Vec<_>>()),
                Some("initrd") => {
                    initrds.extend(words.find(|word| word.contains("://")).map(str::to_owned))
                }
                _ => {}
            }
        }
        match kernel {
            Some(mut words) if !words.is_empty() => {
                let kernel = words.remove(0);
                Self::Boot {
                    kernel,
                    initrds,
                    arguments: words,
                }
            }
            _ => Self::Other(text.to_owned()),
        }
    }

    /// The value of a kernel argument.
    pub fn argument(&self, name: &str) -> Option<String> {
        let Self::Boot { arguments, .. } = self else {
            return None;
        };
        arguments.iter().find_map(|word| {
            word.strip_prefix(name)?
                .strip_prefix('=')
                .map(str::to_owned)
        })
    }
}

/// iPXE's settings in a URL, as a machine without SMBIOS would fill them in.
fn expanded(url: &str) -> String {
    let settings = [
        ("platform", "pcbios"),
        ("buildarch", "i386"),
        ("uuid", ""),
        ("serial:uristring", ""),
    ];
    settings.iter().fold(url.to_owned(), |url, (name, value)| {
        url.replace(&format!("${{{name}}}"), value)
    })
}

fn split(url: &str) -> Result<(SocketAddr, String), String> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("{url} is not plain HTTP"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    Ok((
        host.parse().map_err(|error| format!("{host}: {error}"))?,
        format!("/{path}"),
    ))
}

fn exchange(host: SocketAddr, head: &str) -> Result<Response, String> {
    let act = |act: &'static str| move |error: std::io::Error| format!("{act}: {error}");
    let mut stream = TcpStream::connect_timeout(&host, TIMEOUT).map_err(act("connecting"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(act("setting a timeout"))?;
    stream.write_all(head.as_bytes()).map_err(act("sending"))?;
    let mut bytes = Vec::new();
    stream
        .take(BODY_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(act("receiving"))?;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or("the answer was cut off in its head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let body = bytes.split_off(end + 4);
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or("the answer has no status")?;
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    // A daemon killed in mid-answer must not pass for one that answered.
    match headers
        .get("content-length")
        .map(|length| length.parse::<usize>())
    {
        Some(Ok(length)) if length != body.len() => Err(format!(
            "the answer was cut off at {} of {length}",
            body.len()
        )),
        _ => Ok(Response {
            status,
            headers,
            body,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_script_is_told_from_one_that_leaves_for_the_disk() {
        let boot = "#!ipxe\nkernel --name vmlinuz http://10.107.0.1:8080/k initrd=a console=ttyS0 x=http://h/c\ninitrd --name a http://10.107.0.1:8080/i a\nboot\n";
        let script = Script::read(boot);
        assert_eq!(script.argument("x").as_deref(), Some("http://h/c"));
        assert!(
            matches!(script, Script::Boot { initrds, .. } if initrds == ["http://10.107.0.1:8080/i"])
        );
        let local = "#!ipxe\nsanboot --no-describe --drive 0x80\n";
        assert_eq!(Script::read(local), Script::Other(local.to_owned()));
    }
}
