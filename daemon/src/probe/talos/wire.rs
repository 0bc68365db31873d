//! The messages of Talos' machine API that we speak, derived by hand: field numbers and types are the protocol, and
//! fields that nobody here reads are skipped by their numbers.
//!
//! | message | upstream file |
//! |---|---|
//! | `MachineService`: Version, Bootstrap, ServiceList, EtcdMemberList | siderolabs/talos `api/machine/machine.proto` |
//! | `Metadata` of each reply | siderolabs/talos `api/common/common.proto` |
//! | `State`: Get, List | cosi-project/specification `proto/v1alpha1/state.proto`, `resource.proto` |
//! | `MachineStatus`, `Diagnostic` | siderolabs/talos `api/resource/definitions/runtime/runtime.proto`, `enums/enums.proto` |
//! | `EventSinkService`: Publish | siderolabs/siderolink `api/events/events.proto` |
//! | the events | siderolabs/talos `api/machine/machine.proto` |
//! | `Any`, `Status` | protocolbuffers/protobuf `google/protobuf/any.proto`, googleapis `google/rpc/status.proto` |
//!
//! Ugly facts. `MachineStatusEvent` and the resource `MachineStatusSpec` are two messages of one shape, and here they
//! are one type. A reply is a list because apid can ask many nodes at once; asked of one node it has one entry, and
//! the entry may bear an error where the call itself went well.

use prost::Message;

/// `google.protobuf.Empty`, and every request of which we set no field: `BootstrapRequest` with nothing to recover.
pub type Empty = ();

/// Every reply of the machine API: `repeated … messages = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct Reply<M: Message + Default + std::fmt::Debug> {
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<M>,
}

/// `common.Metadata`: `string error = 2`, `google.rpc.Status status = 3`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(string, tag = "2")]
    pub error: String,
    #[prost(message, optional, tag = "3")]
    pub status: Option<RpcStatus>,
}

/// `google.rpc.Status`: `int32 code = 1`, `string message = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `machine.Bootstrap`: `common.Metadata metadata = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct Bootstrap {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
}

/// `machine.Version`: `metadata = 1`, `VersionInfo version = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct Version {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub version: Option<VersionInfo>,
}

/// `machine.VersionInfo`: `string tag = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct VersionInfo {
    #[prost(string, tag = "1")]
    pub tag: String,
}

/// `machine.ServiceList`: `metadata = 1`, `repeated ServiceInfo services = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceList {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    #[prost(message, repeated, tag = "2")]
    pub services: Vec<ServiceInfo>,
}

/// `machine.ServiceInfo`: `string id = 1`, `string state = 2`, `ServiceEvents events = 3`, `ServiceHealth health = 4`.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceInfo {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub state: String,
    #[prost(message, optional, tag = "3")]
    pub events: Option<ServiceEvents>,
    #[prost(message, optional, tag = "4")]
    pub health: Option<ServiceHealth>,
}

/// `machine.ServiceEvents`: `repeated ServiceEvent events = 1`, the oldest first.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceEvents {
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<ServiceEvent>,
}

/// `machine.ServiceEvent`: `string msg = 1`, `string state = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceEvent {
    #[prost(string, tag = "1")]
    pub msg: String,
    #[prost(string, tag = "2")]
    pub state: String,
}

/// `machine.ServiceHealth`: `bool unknown = 1`, `bool healthy = 2`, `string last_message = 3`.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceHealth {
    #[prost(bool, tag = "1")]
    pub unknown: bool,
    #[prost(bool, tag = "2")]
    pub healthy: bool,
    #[prost(string, tag = "3")]
    pub last_message: String,
}

/// `machine.EtcdMemberListRequest`: `bool query_local = 1`, to ask the node's own etcd and no other.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdMemberListRequest {
    #[prost(bool, tag = "1")]
    pub query_local: bool,
}

/// `machine.EtcdMembers`: `metadata = 1`, `repeated EtcdMember members = 3`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdMembers {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    #[prost(message, repeated, tag = "3")]
    pub members: Vec<EtcdMember>,
}

/// `machine.EtcdMember`: `uint64 id = 2`, `string hostname = 3`, `repeated string peer_urls = 4`, `bool is_learner = 6`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdMember {
    #[prost(uint64, tag = "2")]
    pub id: u64,
    #[prost(string, tag = "3")]
    pub hostname: String,
    #[prost(string, repeated, tag = "4")]
    pub peer_urls: Vec<String>,
    #[prost(bool, tag = "6")]
    pub is_learner: bool,
}

/// `cosi.resource.GetRequest` and `ListRequest`: `string namespace = 1`, `string type = 2`, and `string id = 3` of the
/// former, which for the latter stays empty and thereby unsent.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceRequest {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub kind: String,
    #[prost(string, tag = "3")]
    pub id: String,
}

/// `cosi.resource.GetResponse` and `ListResponse`: `Resource resource = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceReply {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
}

/// `cosi.resource.Resource`: `Spec spec = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, optional, tag = "2")]
    pub spec: Option<Spec>,
}

/// `cosi.resource.Spec`: `bytes proto_spec = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct Spec {
    #[prost(bytes = "vec", tag = "1")]
    pub proto_spec: Vec<u8>,
}

/// `machine.MachineStatusEvent` and `MachineStatusSpec`: `MachineStage stage = 1`, `MachineStatus status = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct MachineStatus {
    #[prost(enumeration = "Stage", tag = "1")]
    pub stage: i32,
    #[prost(message, optional, tag = "2")]
    pub status: Option<Readiness>,
}

/// `MachineStatusEvent.MachineStatus`: `bool ready = 1`, `repeated UnmetCondition unmet_conditions = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct Readiness {
    #[prost(bool, tag = "1")]
    pub ready: bool,
    #[prost(message, repeated, tag = "2")]
    pub unmet_conditions: Vec<UnmetCondition>,
}

/// `UnmetCondition`: `string name = 1`, `string reason = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct UnmetCondition {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// `MachineStatusEvent.MachineStage`, and `RuntimeMachineStage` of the resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    Unknown = 0,
    Booting = 1,
    Installing = 2,
    Maintenance = 3,
    Running = 4,
    Rebooting = 5,
    ShuttingDown = 6,
    Resetting = 7,
    Upgrading = 8,
}

impl Stage {
    /// The word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Booting => "booting",
            Self::Installing => "installing",
            Self::Maintenance => "maintenance",
            Self::Running => "running",
            Self::Rebooting => "rebooting",
            Self::ShuttingDown => "shutting-down",
            Self::Resetting => "resetting",
            Self::Upgrading => "upgrading",
        }
    }
}

/// `DiagnosticSpec`: `string message = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct Diagnostic {
    #[prost(string, tag = "1")]
    pub message: String,
}

/// `events.EventRequest`: `google.protobuf.Any data = 1`, `string id = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct EventRequest {
    #[prost(message, optional, tag = "1")]
    pub data: Option<Any>,
    #[prost(string, tag = "2")]
    pub id: String,
}

/// `google.protobuf.Any`: `string type_url = 1`, `bytes value = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `machine.ConfigLoadErrorEvent` and `machine.ConfigValidationErrorEvent`: `string error = 1`.
#[derive(Clone, PartialEq, Message)]
pub struct ConfigError {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// `machine.SequenceEvent`: `string sequence = 1`, `common.Error error = 3`.
#[derive(Clone, PartialEq, Message)]
pub struct SequenceEvent {
    #[prost(string, tag = "1")]
    pub sequence: String,
    #[prost(message, optional, tag = "3")]
    pub error: Option<SequenceError>,
}

/// `common.Error`: `string message = 2`.
#[derive(Clone, PartialEq, Message)]
pub struct SequenceError {
    #[prost(string, tag = "2")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field as protobuf writes it: number and wire type in one byte, then the content.
    fn text(number: u8, content: &str) -> Vec<u8> {
        inner(number, content.as_bytes())
    }

    fn inner(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short in these tests");
        [&[number << 3 | 2, length], content].concat()
    }

    fn varint(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn check<M: Message + Default + PartialEq + std::fmt::Debug>(message: M, bytes: &[Vec<u8>]) {
        let bytes = bytes.concat();
        assert_eq!(message.encode_to_vec(), bytes, "{message:?}");
        assert_eq!(M::decode(&*bytes), Ok(message));
    }

    #[test]
    fn requests_are_the_bytes_that_upstreams_field_numbers_make() {
        check::<Empty>((), &[]);
        // machine.proto: EtcdMemberListRequest.query_local = 1.
        let local = EtcdMemberListRequest { query_local: true };
        check(local, &[varint(1, 1)]);
        // state.proto: GetRequest.namespace = 1, type = 2, id = 3.
        let get = ResourceRequest {
            namespace: "runtime".into(),
            kind: "t".into(),
            id: "machine".into(),
        };
        check(get, &[text(1, "runtime"), text(2, "t"), text(3, "machine")]);
    }

    #[test]
    fn replies_are_read_at_upstreams_field_numbers() {
        // machine.proto: VersionResponse.messages = 1, Version.version = 2, VersionInfo.tag = 1.
        let version = Version {
            metadata: None,
            version: Some(VersionInfo { tag: "v1".into() }),
        };
        let messages = vec![version];
        check(Reply { messages }, &[inner(1, &inner(2, &text(1, "v1")))]);
        // common.proto: Metadata.error = 2, status = 3; status.proto: code = 1, message = 2.
        let metadata = Metadata {
            error: "e".into(),
            status: Some(RpcStatus {
                code: 9,
                message: "m".into(),
            }),
        };
        let status = [varint(1, 9), text(2, "m")].concat();
        let bytes = [text(2, "e"), inner(3, &status)].concat();
        let bootstrap = Bootstrap {
            metadata: Some(metadata),
        };
        check(bootstrap, &[inner(1, &bytes)]);
        // machine.proto: ServiceInfo.id = 1, state = 2, events = 3, health = 4; ServiceEvent.msg = 1, state = 2;
        // ServiceHealth.unknown = 1, healthy = 2, last_message = 3.
        let service = ServiceInfo {
            id: "etcd".into(),
            state: "Running".into(),
            events: Some(ServiceEvents {
                events: vec![ServiceEvent {
                    msg: "m".into(),
                    state: "s".into(),
                }],
            }),
            health: Some(ServiceHealth {
                unknown: true,
                healthy: true,
                last_message: "l".into(),
            }),
        };
        let event = [text(1, "m"), text(2, "s")].concat();
        let health = [varint(1, 1), varint(2, 1), text(3, "l")].concat();
        let bytes = [
            text(1, "etcd"),
            text(2, "Running"),
            inner(3, &inner(1, &event)),
            inner(4, &health),
        ]
        .concat();
        let services = ServiceList {
            metadata: None,
            services: vec![service],
        };
        check(services, &[inner(2, &bytes)]);
        // machine.proto: EtcdMembers.members = 3; EtcdMember.id = 2, hostname = 3, peer_urls = 4, is_learner = 6.
        let member = EtcdMember {
            id: 7,
            hostname: "h".into(),
            peer_urls: vec!["p".into()],
            is_learner: true,
        };
        let bytes = [varint(2, 7), text(3, "h"), text(4, "p"), varint(6, 1)].concat();
        let members = EtcdMembers {
            metadata: None,
            members: vec![member],
        };
        check(members, &[inner(3, &bytes)]);
        // state.proto: GetResponse.resource = 1; resource.proto: Resource.spec = 2, Spec.proto_spec = 1.
        let resource = Resource {
            spec: Some(Spec {
                proto_spec: b"b".to_vec(),
            }),
        };
        let reply = ResourceReply {
            resource: Some(resource),
        };
        check(reply, &[inner(1, &inner(2, &text(1, "b")))]);
        // runtime.proto: DiagnosticSpec.message = 1.
        let diagnostic = Diagnostic {
            message: "m".into(),
        };
        check(diagnostic, &[text(1, "m")]);
    }

    #[test]
    fn events_are_read_at_upstreams_field_numbers() {
        // events.proto: EventRequest.data = 1, id = 2; any.proto: type_url = 1, value = 2.
        let event = EventRequest {
            data: Some(Any {
                type_url: "u".into(),
                value: b"v".to_vec(),
            }),
            id: "i".into(),
        };
        let any = [text(1, "u"), text(2, "v")].concat();
        check(event, &[inner(1, &any), text(2, "i")]);
        // machine.proto: MachineStatusEvent.stage = 1, status = 2; MachineStatus.ready = 1, unmet_conditions = 2;
        // UnmetCondition.name = 1, reason = 2; MachineStage.RUNNING = 4.
        let status = MachineStatus {
            stage: Stage::Running.into(),
            status: Some(Readiness {
                ready: true,
                unmet_conditions: vec![UnmetCondition {
                    name: "n".into(),
                    reason: "r".into(),
                }],
            }),
        };
        let unmet = [text(1, "n"), text(2, "r")].concat();
        let readiness = [varint(1, 1), inner(2, &unmet)].concat();
        check(status, &[varint(1, 4), inner(2, &readiness)]);
        // machine.proto: ConfigLoadErrorEvent.error = 1; SequenceEvent.sequence = 1, error = 3; common.proto: Error.message = 2.
        check(ConfigError { error: "e".into() }, &[text(1, "e")]);
        let sequence = SequenceEvent {
            sequence: "s".into(),
            error: Some(SequenceError {
                message: "m".into(),
            }),
        };
        check(sequence, &[text(1, "s"), inner(3, &text(2, "m"))]);
    }

    #[test]
    fn fields_that_upstream_adds_are_skipped() {
        // machine.proto: ServiceEvent.ts = 3 and EventRequest.actor_id = 3 are not read here.
        let bytes = [text(1, "m"), text(3, "later"), text(2, "s")].concat();
        let event = ServiceEvent::decode(&*bytes).expect("what is unknown is skipped");
        assert_eq!((event.msg.as_str(), event.state.as_str()), ("m", "s"));
    }
}
