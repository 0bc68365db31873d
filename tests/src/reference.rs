//! The control: dnsmasq and nginx doing the daemon's work with hand-written configuration, for the benchmarks' boot rows
//! and for telling a fault of ours from one of the laboratory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::{BASTION, LINK, Lab, asset, packaged};
use crate::process::{self, Process};

const LIMIT: Duration = Duration::from_secs(20);

pub struct Reference {
    _dnsmasq: Process,
    _nginx: Process,
}

impl Reference {
    /// Serves the laboratory's kernel to every machine, with these kernel arguments.
    pub fn start(lab: &Lab, initrds: &[&str], arguments: &str) -> Self {
        let root = lab.path("reference");
        fs::create_dir(&root).expect("a directory for the reference");
        for name in ["vmlinuz"].iter().chain(initrds) {
            symlink(asset(name), root.join(name)).expect("a link to an asset");
        }
        for loader in ["undionly.kpxe", "snponly.efi"] {
            symlink(
                packaged(&format!("/usr/lib/ipxe/{loader}")),
                root.join(loader),
            )
            .expect("a link to a loader");
        }
        let named: String = initrds
            .iter()
            .map(|name| format!(" initrd={name}"))
            .collect();
        let fetched: String = initrds
            .iter()
            .map(|name| format!("initrd http://{BASTION}/{name}\n"))
            .collect();
        let script =
            format!("#!ipxe\nkernel http://{BASTION}/vmlinuz{named} {arguments}\n{fetched}boot\n");
        fs::write(root.join("boot.ipxe"), script).expect("the script can be written");

        let mut dnsmasq = process::command("dnsmasq");
        let configuration = dnsmasq_configuration(lab, &root);
        dnsmasq.args([
            "--no-daemon",
            &format!("--conf-file={}", configuration.display()),
        ]);
        let dnsmasq = lab.netns.start(&lab.timeline, "dnsmasq", dnsmasq);
        let mut nginx = process::command("nginx");
        nginx
            .arg("-c")
            .arg(nginx_configuration(lab, &root))
            .args(["-e", "stderr"]);
        let nginx = lab.netns.start(&lab.timeline, "nginx", nginx);
        dnsmasq.wait_for("TFTP root is", LIMIT);
        lab.answers_tcp(80);
        Self {
            _dnsmasq: dnsmasq,
            _nginx: nginx,
        }
    }
}

fn dnsmasq_configuration(lab: &Lab, root: &std::path::Path) -> PathBuf {
    // iPXE waits 13 s for an IPv6 router to speak, and 3 s for a proxy unless 175.176 tells it that there is none.
    let text = format!(
        "port=0\nuser=root\ninterface={LINK}\nbind-interfaces\nno-ping\nlog-dhcp\ndhcp-authoritative\n\
         dhcp-range=10.107.0.50,10.107.0.200,255.255.255.0,10m\ndhcp-option=3,{BASTION}\n\
         enable-tftp\ntftp-root={root}\ndhcp-leasefile={leases}\n\
         dhcp-match=set:ipxe,175\n\
         dhcp-vendorclass=set:bios,PXEClient:Arch:00000\n\
         dhcp-vendorclass=set:efi64,PXEClient:Arch:00007\n\
         dhcp-vendorclass=set:http,HTTPClient:Arch:00016\n\
         dhcp-boot=tag:!ipxe,tag:bios,undionly.kpxe\n\
         dhcp-boot=tag:!ipxe,tag:efi64,snponly.efi\n\
         dhcp-option-force=tag:http,60,HTTPClient\n\
         dhcp-boot=tag:http,http://{BASTION}/snponly.efi\n\
         dhcp-boot=tag:ipxe,http://{BASTION}/boot.ipxe\n\
         dhcp-option=tag:ipxe,encap:175,176,1b\n\
         enable-ra\ndhcp-range=fd00:107::,ra-only,64,10m\n",
        root = root.display(),
        leases = lab.path("leases").display(),
    );
    lab.netns
        .ip(&format!("addr add fd00:107::1/64 dev {LINK} nodad"));
    let path = lab.path("dnsmasq.conf");
    fs::write(&path, text).expect("dnsmasq's configuration can be written");
    path
}

fn nginx_configuration(lab: &Lab, root: &std::path::Path) -> PathBuf {
    let text = format!(
        "daemon off; master_process off; pid {pid}; error_log stderr;\nevents {{}}\nhttp {{ access_log /dev/stdout; sendfile on;\n\
         server {{ listen {BASTION}:80; root {root}; location = /phone-home {{ return 204; }} }} }}\n",
        pid = lab.path("nginx.pid").display(),
        root = root.display(),
    );
    let path = lab.path("nginx.conf");
    fs::write(&path, text).expect("nginx's configuration can be written");
    path
}
