//! One member's machine config.
//!
//! What a new cluster is given beyond the minimum is what `talosctl gen config` gives for the same release
//! (siderolabs/talos, pkg/machinery/config/generate/init.go and worker.go of release-1.9 to release-1.12, and the files that
//! they are held to, types/v1alpha1/testdata/stability).
//!
//! Ugly facts. The disk is chosen by a pattern over its serial number or WWID, and the first that matches by name is
//! taken. A machine with several links may show the wrong address as its own, to the API and to etcd, unless it is told
//! the subnet.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use netboot::net::Subnet;
use netboot::node::DiskRule;
use serde_json::{Value, json};

use super::bundle::{Bundle, Certified, Encryption};
use super::patch;
use super::settings::{Settings, judge};
use super::version::{Contract, Version};
use crate::network::{comments, talos as network, yaml};
use crate::platform::{Membership, Role};
use crate::{Document, Fault, Subject, format, own};

/// The port of the API.
const API_PORT: u16 = 6443;
/// KubePrism, the API on every member's own loopback (siderolabs/talos, pkg/machinery/constants, `DefaultKubePrismPort`).
const KUBE_PRISM_PORT: u16 = 7445;

/// A member's machine config, with its documents behind it; `None` for every other document.
///
/// # Errors
/// A role, release or setting that Talos doesn't have, a machine without a disk to install to, links that can't be written,
/// and a patch that does not fit.
pub fn document(
    member: &Membership<'_>,
    bundle: &Bundle,
    subject: &Subject<'_>,
    wanted: Document,
) -> Result<Option<String>, Fault> {
    if wanted != Document::Talos {
        return Ok(None);
    }
    if !matches!(member.role, Role::ControlPlane | Role::Worker | Role::Infra) {
        return Err(fault(
            "nodeGroups",
            format!(
                "{} is no control plane and no worker, and Talos has nothing else",
                member.hostname
            ),
            "take the group out of the cluster: the first control plane starts it",
        ));
    }
    let version: Version = member.version.parse().map_err(|error| {
        fault(
            "version",
            format!("{error}"),
            "correct the cluster's version",
        )
    })?;
    let settings = judge(member.settings, version).map_err(|faults| {
        let problems: Vec<String> = faults.iter().map(ToString::to_string).collect();
        fault(
            "platformConfig",
            problems.join("; "),
            "correct the cluster's definition",
        )
    })?;
    let making = Making {
        member,
        bundle,
        subject,
        settings: &settings,
        contract: version.contract(),
    };
    making.text().map(Some)
}

fn fault(field: &'static str, problem: String, remedy: &str) -> Fault {
    Fault {
        field,
        line: None,
        problem,
        remedy: remedy.to_owned(),
    }
}

/// All that one config is made of.
struct Making<'a> {
    member: &'a Membership<'a>,
    bundle: &'a Bundle,
    subject: &'a Subject<'a>,
    settings: &'a Settings,
    contract: Contract,
}

impl Making<'_> {
    fn text(&self) -> Result<String, Fault> {
        let mut config = json!({
            "version": "v1alpha1",
            "debug": false,
            "persist": true,
            "machine": self.machine()?,
            "cluster": self.cluster(),
        });
        let mut documents = Vec::new();
        let unsaid = self.network(&mut config, &mut documents)?;
        self.clock(&mut config, &mut documents);
        documents.insert(0, config);
        for patch in self.settings.patches(self.member.role) {
            patch::apply(&mut documents, patch).map_err(|problem| {
                fault(
                    "platformConfig",
                    format!("a patch does not fit: {problem}"),
                    "correct the patch",
                )
            })?;
        }
        let texts: Vec<String> = documents.iter().map(yaml).collect();
        let text = unsaid + &texts.join("---\n");
        format::talos::lint(&text)?;
        if !self.is_control_plane() && documents.iter().any(|document| self.leaks(document)) {
            return Err(fault(
                "platformConfig",
                "a patch gives a worker a private key of the cluster".to_owned(),
                "leave private keys out of patches",
            ));
        }
        Ok(text)
    }

    fn is_control_plane(&self) -> bool {
        self.member.role == Role::ControlPlane
    }

    /// Whether a private key of the cluster stands anywhere in a value, as PEM, its body alone, or PEM in base64.
    fn leaks(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => {
                let plain: String = text.split_whitespace().collect();
                self.bundle.private_keys().any(|key| {
                    let lines = key.expose().lines();
                    let body: String = lines.filter(|line| !line.starts_with('-')).collect();
                    plain.contains(&body) || plain.contains(&STANDARD.encode(key.expose()))
                })
            }
            Value::Array(list) => list.iter().any(|below| self.leaks(below)),
            Value::Object(map) => map.values().any(|below| self.leaks(below)),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// A CA for whoever may sign with it, or only its certificate.
    fn authority(&self, ca: &Certified) -> Value {
        let mut authority = json!({ "crt": STANDARD.encode(&ca.certificate) });
        if self.is_control_plane() {
            authority["key"] = json!(STANDARD.encode(ca.key.expose()));
        }
        authority
    }

    fn machine(&self) -> Result<Value, Fault> {
        let kind = if self.is_control_plane() {
            "controlplane"
        } else {
            "worker"
        };
        let mut features = json!({
            "diskQuotaSupport": true,
            "kubePrism": { "enabled": true, "port": KUBE_PRISM_PORT },
            "hostDNS": { "enabled": true, "forwardKubeDNSToHost": true },
        });
        // From 1.12 on these are always so.
        if !self.contract.has_documents() {
            features["rbac"] = json!(true);
            features["stableHostname"] = json!(true);
            features["apidCheckExtKeyUsage"] = json!(true);
        }
        let mut machine = json!({
            "type": kind,
            "token": self.bundle.trustd_token.expose(),
            "ca": self.authority(&self.bundle.os),
            "certSANs": self.settings.cert_sans,
            "kubelet": {
                "image": format!("ghcr.io/siderolabs/kubelet:v{}", self.settings.kubernetes),
                "defaultRuntimeSeccompProfileEnabled": true,
                "disableManifestsDirectory": true,
            },
            "install": self.install()?,
            "features": features,
        });
        if let Some(subnet) = self.own_subnet() {
            machine["kubelet"]["nodeIP"] = json!({ "validSubnets": [subnet.to_string()] });
        }
        if self.is_control_plane() {
            machine["nodeLabels"] =
                json!({ "node.kubernetes.io/exclude-from-external-load-balancers": "" });
        }
        Ok(machine)
    }

    fn install(&self) -> Result<Value, Fault> {
        let mut install = json!({ "image": self.settings.install_image, "wipe": false });
        match self.subject.disk {
            Some(DiskRule::Serial(serial)) => install["diskSelector"] = json!({ "serial": serial }),
            // The kernel puts the kind of name before the digits: `naa.5000…`, `eui.0025…`.
            Some(DiskRule::Wwn(wwn)) => {
                let digits = wwn.strip_prefix("0x").unwrap_or(wwn);
                install["diskSelector"] = json!({ "wwid": format!("*.{digits}") });
            }
            Some(DiskRule::Path(path)) => install["disk"] = json!(path),
            None => {
                return Err(fault(
                    "disk",
                    format!(
                        "{} has no disk that Talos may be installed to",
                        self.member.hostname
                    ),
                    "give the machine or its profile a `disk`",
                ));
            }
        }
        if self.contract.has_documents() {
            install["grubUseUKICmdline"] = json!(true);
        }
        Ok(install)
    }

    /// The cluster's network, where the machine is on others too.
    fn own_subnet(&self) -> Option<Subnet> {
        let several = self.subject.node?.links.len() > 1;
        let home = self
            .subject
            .site
            .network_behind(self.member.address)
            .filter(|_| several)?;
        Some(home.subnet)
    }

    fn cluster(&self) -> Value {
        let member = self.member;
        let endpoint = format!("https://{}:{API_PORT}", member.api());
        let mut cluster = json!({
            "id": self.bundle.cluster_id,
            "secret": self.bundle.cluster_secret.expose(),
            "controlPlane": { "endpoint": endpoint },
            "clusterName": member.cluster,
            "network": {
                "dnsDomain": "cluster.local",
                "podSubnets": words(member.pods),
                "serviceSubnets": words(member.services),
            },
            "token": self.bundle.bootstrap_token.expose(),
            "ca": self.authority(&self.bundle.kubernetes),
            "discovery": {
                "enabled": self.settings.discovery,
                "registries": { "kubernetes": { "disabled": true }, "service": {} },
            },
        });
        if self.is_control_plane() {
            self.control_plane(&mut cluster);
        }
        cluster
    }

    fn control_plane(&self, cluster: &mut Value) {
        let (name, encryption) = match &self.bundle.encryption {
            Encryption::Secretbox(secret) => ("secretboxEncryptionSecret", secret),
            Encryption::AesCbc(secret) => ("aescbcEncryptionSecret", secret),
        };
        cluster[name] = json!(encryption.expose());
        cluster["aggregatorCA"] = self.authority(&self.bundle.aggregator);
        let key = STANDARD.encode(self.bundle.service_account.expose());
        cluster["serviceAccount"] = json!({ "key": key });
        cluster["etcd"] = json!({ "ca": self.authority(&self.bundle.etcd) });
        if let Some(subnet) = self.own_subnet() {
            cluster["etcd"]["advertisedSubnets"] = json!([subnet.to_string()]);
        }
        for (part, image) in [
            ("apiServer", "kube-apiserver"),
            ("controllerManager", "kube-controller-manager"),
            ("proxy", "kube-proxy"),
            ("scheduler", "kube-scheduler"),
        ] {
            let image = format!("registry.k8s.io/{image}:v{}", self.settings.kubernetes);
            cluster[part] = json!({ "image": image });
        }
        let server = &mut cluster["apiServer"];
        let mut names = vec![self.member.api(), self.member.api_address.to_string()];
        names.extend(self.settings.cert_sans.iter().cloned());
        server["certSANs"] = json!(names);
        server["admissionControl"] = json!([{
            "name": "PodSecurity",
            "configuration": {
                "apiVersion": "pod-security.admission.config.k8s.io/v1alpha1",
                "kind": "PodSecurityConfiguration",
                "defaults": {
                    "audit": "restricted",
                    "audit-version": "latest",
                    "enforce": "baseline",
                    "enforce-version": "latest",
                    "warn": "restricted",
                    "warn-version": "latest",
                },
                "exemptions": {
                    "namespaces": ["kube-system"],
                    "runtimeClasses": [],
                    "usernames": [],
                },
            },
        }]);
        server["auditPolicy"] = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "rules": [{ "level": "Metadata" }],
        });
        if !self.contract.has_documents() {
            server["disablePodSecurityPolicy"] = json!(true);
        }
    }

    /// The machine's name and, where the inventory lists more than one plain card, its links. Returns comments on what could
    /// not be said.
    fn network(&self, config: &mut Value, documents: &mut Vec<Value>) -> Result<String, Fault> {
        let hostname = self.member.hostname.as_str();
        let listed = own::listed("machines", self.subject, true)?;
        let Some(links) = listed else {
            if self.contract.has_documents() {
                documents.push(json!({
                    "apiVersion": "v1alpha1",
                    "kind": "HostnameConfig",
                    "hostname": hostname,
                }));
            } else {
                config["machine"]["network"] = json!({ "hostname": hostname });
            }
            return Ok(String::new());
        };
        let (text, unsaid) = if self.contract.has_documents() {
            let told = network::documents(&links);
            (told.said, told.unsaid)
        } else {
            let told = network::section(&links);
            (told.said, told.unsaid)
        };
        let parsed = format::lint_yaml("machines", &text)?;
        if self.contract.has_documents() {
            documents.extend(parsed.into_iter().filter(|document| !document.is_null()));
        } else if let Some(section) = parsed.into_iter().next() {
            config["machine"]["network"] = section;
        }
        Ok(comments(&unsaid))
    }

    /// Without a clock that is right the cluster never starts, and static addresses bring no time servers by DHCP.
    fn clock(&self, config: &mut Value, documents: &mut Vec<Value>) {
        let home = self.subject.site.network_behind(self.member.address);
        let servers = match home {
            _ if !self.settings.time_servers.is_empty() => self.settings.time_servers.clone(),
            Some(home) => words(&home.ntp),
            None => Vec::new(),
        };
        if servers.is_empty() {
            return;
        }
        if self.contract.has_documents() {
            documents.push(json!({
                "apiVersion": "v1alpha1",
                "kind": "TimeSyncConfig",
                "ntp": { "servers": servers },
            }));
        } else {
            config["machine"]["time"] = json!({ "servers": servers });
        }
    }
}

fn words<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}
