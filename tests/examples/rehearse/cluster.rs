//! A fake of what runs on OKD's machines once they are up: the API, the two machine-config servers and the routers. It says what
//! the story makes it say, and listens in the bastion's namespace, where the machines' own ports lead (`tests/sites/okd`).

use std::collections::BTreeMap;
use std::path::Path;

use ignition::platform::okd::File;
use serde_json::{Value, json};
use tests::kube_fake::{Answer, Answers, Authority, Fake, Serving};
use tests::lab::Lab;
use tests::okd::authority;

use crate::okd::{FQDN, MASTERS, PRIVATE};

const ETCD: &str = "/apis/operator.openshift.io/v1/etcds/cluster";

/// The cluster's servers.
pub(crate) struct Cluster {
    authority: Authority,
    api: Answers,
    /// The control planes'; the bootstrap machine's own never knows workers.
    machine_config: Answers,
    _servers: [Fake; 5],
}

impl Cluster {
    /// One whose authority is of the set in a directory. Its control planes can fetch their config, and nothing else is up.
    pub(crate) fn of(lab: &Lab, set: &Path) -> Self {
        let bootstrap = std::fs::read_to_string(set.join(File::Bootstrap.path())).expect("read");
        let authority = authority(&BTreeMap::from([(File::Bootstrap, bootstrap)]));
        let [api, early, machine_config, routers] = [(); 4].map(|()| Answers::default());
        let config = json!({
            "ignition": { "version": "3.2.0" },
            "storage": { "files": [{ "path": "/etc/machine-config", "contents": { "source": "data:,master" } }] },
        });
        for answers in [&early, &machine_config] {
            answers.say("/config/master", says(config.to_string()));
        }
        routers.say("/", says("the console\n"));
        let int = authority.server(&[&format!("api-int.{FQDN}")]);
        let own = authority.server(&[&format!("api.{FQDN}")]);
        let apps = authority.server(&[&format!("*.apps.{FQDN}")]);
        let servers = [
            (16443, &own, &api),
            (16623, &int, &early),
            (16624, &int, &machine_config),
            (16444, &apps, &routers),
            (16080, &Serving::default(), &routers),
        ];
        let servers = servers.map(|(port, serving, answers)| {
            Fake::at(&lab.netns, &format!("{PRIVATE}:{port}"), serving, answers)
        });
        Self {
            authority,
            api,
            machine_config,
            _servers: servers,
        }
    }

    /// Who vouches for it, in PEM.
    pub(crate) fn ca(&self) -> &str {
        &self.authority.pem
    }

    pub(crate) fn api_is_ready(&self) {
        self.api.say("/readyz", says("ok"));
    }

    pub(crate) fn nodes_are_ready(&self) {
        let ready = |name: &&str| named(&format!("{name}.{FQDN}"), &[("Ready", "True")]);
        self.list("/api/v1/nodes", MASTERS.iter().map(ready).collect());
    }

    /// etcd runs on the control planes, and still on the bootstrap machine.
    pub(crate) fn bootstrap_is_complete(&self) {
        let path = "/api/v1/namespaces/kube-system/configmaps/bootstrap";
        self.object(path, &json!({ "data": { "status": "complete" } }));
        self.object(ETCD, &conditions(&[("EtcdRunningInCluster", "True")]));
    }

    pub(crate) fn bootstrap_member_is_removed(&self) {
        let removed = conditions(&[("EtcdBootstrapMemberRemoved", "True")]);
        self.object(ETCD, &removed);
    }

    pub(crate) fn workers_may_join(&self) {
        self.machine_config.say("/config/worker", says("{}"));
    }

    pub(crate) fn operators_settle(&self) {
        let settled = [
            ("Available", "True"),
            ("Progressing", "False"),
            ("Degraded", "False"),
        ];
        let operators = ["authentication", "etcd", "ingress", "kube-apiserver"];
        let operators = operators.map(|name| named(name, &settled)).into();
        self.list("/apis/config.openshift.io/v1/clusteroperators", operators);
        let version = [
            ("Available", "True"),
            ("Failing", "False"),
            ("Progressing", "False"),
        ];
        let path = "/apis/config.openshift.io/v1/clusterversions/version";
        self.object(path, &named("version", &version));
    }

    fn object(&self, path: &str, object: &Value) {
        self.api.say(path, says(object.to_string()));
    }

    fn list(&self, path: &str, items: Vec<Value>) {
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items });
        self.object(path, &list);
    }
}

fn says(text: impl Into<String>) -> Answer {
    Answer::Says(200, text.into())
}

fn conditions(given: &[(&str, &str)]) -> Value {
    let each = |(kind, status): &(&str, &str)| json!({ "type": kind, "status": status });
    let given: Vec<Value> = given.iter().map(each).collect();
    json!({ "status": { "conditions": given } })
}

fn named(name: &str, given: &[(&str, &str)]) -> Value {
    let mut object = conditions(given);
    object["metadata"] = json!({ "name": name });
    object
}
