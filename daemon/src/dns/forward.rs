//! Names that aren't ours, asked of the servers that the site names, for machines on provisioning links.
//!
//! hickory's pool speaks to the servers: a random port and a random mix of cases for each question, TCP where an answer
//! is too long, two servers at once, the quicker ones first. Its first word is final, also where it is that a server won't
//! or can't say: then each is asked by itself. What comes back is kept as the bytes it is sent as, with the servers who
//! said it: where the site names others, nothing of the old ones is told any more.
//!
//! All who ask the same at one time wait for one question. The pool sees to that for as long as it waits itself; who comes
//! between its answer and our keeping it would ask again, so the last word on who waits for whom is ours.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use hickory_proto::op::{
    DnsRequest, DnsRequestOptions, Message, MessageType, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_server::net::runtime::TokioRuntimeProvider;
use hickory_server::net::xfer::DnsHandle;
use hickory_server::net::{DnsError, NetError};
use hickory_server::resolver::config::{NameServerConfig, ResolverOpts};
use hickory_server::resolver::{NameServerPool, PoolContext, TlsConfig};
use netboot::zone::packet::{Code, DATAGRAM_MAX, Kept, Question};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tracing::debug;

use super::cache::{self, Cache, Entry, Key};

/// How long the servers have for one try, and for all: clients ask again after five seconds.
const ANSWER_TIME: Duration = Duration::from_secs(2);
const ANSWERS_TIME: Duration = Duration::from_secs(5);
const TRIES: usize = 2;
/// Questions under way at once, and those of one machine.
const UNDER_WAY_MAX: usize = 2048;
const UNDER_WAY_EACH: usize = 128;
/// Longest time that a reply is kept, in seconds; a negative one (RFC 2308, section 5: one to three hours), and that
/// all servers failed (RFC 9520, section 3.2: one second at least).
const POSITIVE_MAX: u32 = 86_400;
const NEGATIVE_MAX: u32 = 3600;
const FAILURE: u32 = 2;

type Pool = NameServerPool<TokioRuntimeProvider>;

/// Asks other servers, and remembers what they said.
pub(super) struct Forwarder {
    /// Those that were asked last.
    panel: Mutex<Arc<Panel>>,
    under_way: Mutex<UnderWay>,
}

/// Some servers, and what they said.
#[derive(Default)]
struct Panel {
    servers: Vec<SocketAddr>,
    pools: OnceLock<Result<Pools, String>>,
    cache: Mutex<Cache>,
    /// Taken before the cache's lock.
    asking: Mutex<HashMap<Key, Arc<OnceCell<Arc<Kept>>>>>,
}

struct Pools {
    all: Pool,
    /// Each server by itself.
    each: Vec<Pool>,
}

#[derive(Default)]
struct UnderWay {
    all: usize,
    each: HashMap<Ipv4Addr, usize>,
}

/// One question that may be asked; the right ends when it is dropped.
pub(super) struct Turn {
    of: Arc<Forwarder>,
    client: Ipv4Addr,
}

impl Forwarder {
    pub(super) fn new() -> Self {
        Self {
            panel: Mutex::default(),
            under_way: Mutex::default(),
        }
    }

    /// A reply of these servers that is kept, and its age in seconds.
    pub(super) fn kept(
        &self,
        servers: &[SocketAddr],
        key: &Key,
        now: Instant,
    ) -> Option<(Arc<Kept>, u32)> {
        self.panel(servers).kept(key, now)
    }

    /// Lets a machine's question be asked, unless it or all together have too many under way.
    pub(super) fn turn(self: &Arc<Self>, client: Ipv4Addr) -> Option<Turn> {
        let mut under_way = lock(&self.under_way);
        if under_way.all >= UNDER_WAY_MAX {
            return None;
        }
        let each = under_way.each.entry(client).or_default();
        if *each >= UNDER_WAY_EACH {
            return None;
        }
        *each += 1;
        under_way.all += 1;
        Some(Turn {
            of: Arc::clone(self),
            client,
        })
    }

    /// Asks the servers. The reply is kept, also that there is none.
    pub(super) async fn ask(&self, servers: &[SocketAddr], question: &Question<'_>) -> Arc<Kept> {
        self.panel(servers).ask(question).await
    }

    /// These servers. Questions under way to others end with those, and so does what comes of them.
    fn panel(&self, servers: &[SocketAddr]) -> Arc<Panel> {
        let mut panel = lock(&self.panel);
        if panel.servers != servers {
            *panel = Arc::new(Panel {
                servers: servers.to_vec(),
                ..Panel::default()
            });
        }
        Arc::clone(&panel)
    }
}

impl Panel {
    fn kept(&self, key: &Key, now: Instant) -> Option<(Arc<Kept>, u32)> {
        lock(&self.cache).get(key, now)
    }

    async fn ask(&self, question: &Question<'_>) -> Arc<Kept> {
        let mut key = Key::new();
        cache::key(question, &mut key);
        let asked = {
            let mut asking = lock(&self.asking);
            if let Some((kept, _)) = self.kept(&key, Instant::now()) {
                return kept;
            }
            Arc::clone(asking.entry(key.clone()).or_default())
        };
        let asking = Asking {
            of: self,
            key: &key,
        };
        let ask = async {
            let answered = timeout(ANSWERS_TIME, self.ask_servers(question));
            let reply = match answered.await.unwrap_or_else(|late| Err(late.to_string())) {
                Ok(reply) => reply,
                Err(why) => {
                    debug!(%why, "no server answered");
                    Kept::bare(Code::ServFail, FAILURE)
                }
            };
            let reply = Arc::new(reply);
            let entry = Entry::new(Arc::clone(&reply), Instant::now());
            lock(&self.cache).put(key.clone(), entry);
            reply
        };
        let reply = Arc::clone(asked.get_or_init(|| ask).await);
        drop(asking);
        reply
    }

    async fn ask_servers(&self, question: &Question<'_>) -> Result<Kept, String> {
        let query = read_query(question.raw()).ok_or("the question can't be said")?;
        let pools = self.pools.get_or_init(|| Pools::of(&self.servers));
        let pools = pools.as_ref().map_err(Clone::clone)?;
        let mut last = String::new();
        for _ in 0..TRIES {
            match ask_pool(&pools.all, &query, question).await {
                Ok(message) => return keep(&query, question, message),
                Err(error @ NetError::Dns(DnsError::ResponseCode(_))) => {
                    debug!(%error, "each server is asked by itself");
                    for pool in &pools.each {
                        match ask_pool(pool, &query, question).await {
                            Ok(message) => return keep(&query, question, message),
                            Err(error) => last = error.to_string(),
                        }
                    }
                    return Err(last);
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

impl Pools {
    fn of(servers: &[SocketAddr]) -> Result<Self, String> {
        let mut options = ResolverOpts::default();
        options.timeout = ANSWER_TIME;
        options.case_randomization = true;
        options.edns_payload_len = DATAGRAM_MAX;
        let tls = TlsConfig::new().map_err(|error| error.to_string())?;
        let context = Arc::new(PoolContext::new(options, tls));
        let pool = |servers: &[SocketAddr]| {
            let configs = servers.iter().map(|address| {
                let mut config = NameServerConfig::udp_and_tcp(address.ip());
                for connection in &mut config.connections {
                    connection.port = address.port();
                }
                // They are asked for the whole world: that a name does not exist is their word to give.
                config.trust_negative_responses = true;
                config
            });
            Pool::from_config(
                configs,
                Arc::clone(&context),
                TokioRuntimeProvider::default(),
            )
        };
        Ok(Self {
            all: pool(servers),
            each: servers.chunks(1).map(pool).collect(),
        })
    }
}

/// What a pool says first; that there is nothing is a reply too.
async fn ask_pool(
    pool: &Pool,
    query: &Query,
    question: &Question<'_>,
) -> Result<Message, NetError> {
    match pool.send(request(query, question)).next().await {
        None => Err(NetError::NoConnections),
        Some(Ok(response)) => Ok(response.into_message()),
        Some(Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))) => {
            let mut message = Message::new(0, MessageType::Response, OpCode::Query);
            message.metadata.response_code = nothing.response_code;
            message.authorities = nothing.authorities.as_deref().unwrap_or_default().to_vec();
            Ok(message)
        }
        Some(Err(error)) => Err(error),
    }
}

/// Somebody waits for the answer to a question. The first who has it, or is gone, lets the next ask anew.
struct Asking<'a> {
    of: &'a Panel,
    key: &'a Key,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        lock(&self.of.asking).remove(self.key);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = lock(&self.of.under_way);
        under_way.all -= 1;
        if let Some(each) = under_way.each.get_mut(&self.client) {
            *each -= 1;
            if *each == 0 {
                under_way.each.remove(&self.client);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under a lock is whole before anything in it can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_query(raw: &[u8]) -> Option<Query> {
    let (name, rest) = raw.split_at_checked(raw.len().checked_sub(4)?)?;
    let mut labels = Vec::new();
    let mut at = 0;
    while let Some(length) = name.get(at).filter(|length| **length > 0) {
        let end = at + 1 + usize::from(*length);
        labels.push(name.get(at + 1..end)?.to_ascii_lowercase());
        at = end;
    }
    let name = Name::from_labels(labels).ok()?;
    let kind = RecordType::from(u16::from_be_bytes([rest[0], rest[1]]));
    Some(Query::query(name, kind))
}

fn request(query: &Query, question: &Question<'_>) -> DnsRequest {
    let mut options = DnsRequestOptions::default();
    options.edns_payload_len = DATAGRAM_MAX;
    options.edns_set_dnssec_ok = question.wants_dnssec();
    options.case_randomization = true;
    let mut request = DnsRequest::from_query(query.clone(), options);
    if question.checks_itself() {
        let original = request.original_query().cloned();
        let (mut message, options) = request.into_parts();
        message.metadata.checking_disabled = true;
        request = DnsRequest::new(message, options).with_original_query(original);
    }
    request
}

/// A reply's records as bytes behind a question of the same length, whose name they may point to.
fn keep(query: &Query, question: &Question<'_>, mut message: Message) -> Result<Kept, String> {
    // Aliases alone lead to a name that does not exist, or has nothing of this type (RFC 2308, sections 2.1 and 2.2).
    let kind = query.query_type();
    let positive = message
        .answers
        .iter()
        .any(|record| kind == RecordType::ANY || record.record_type() == kind);
    let authentic = message.metadata.authentic_data;
    let code = message.metadata.response_code;
    let code = if code == ResponseCode::NoError {
        Code::NoError
    } else if code == ResponseCode::NXDomain {
        Code::NxDomain
    } else {
        return Err(code.to_string());
    };
    let minimum = message.authorities.iter().find_map(|record| {
        let RData::SOA(soa) = &record.data else {
            return None;
        };
        Some(soa.minimum)
    });
    // The servers' own mix of cases is no business of the client's.
    let own = message
        .answers
        .iter_mut()
        .filter(|record| record.name == *query.name());
    own.for_each(|record| record.name = query.name().clone());
    if positive && !question.wants_dnssec() {
        // Whose servers the zone has is of use to nobody here.
        message.authorities.clear();
    }
    message.additionals.clear();
    message.edns = None;
    message.queries = vec![query.clone()];
    let bytes = message.to_vec().map_err(|error| error.to_string())?;
    let longest = match minimum {
        _ if positive => POSITIVE_MAX,
        Some(minimum) => minimum.min(NEGATIVE_MAX),
        // RFC 2308, section 5: without an SOA it should not be kept.
        None => 0,
    };
    Kept::read(&bytes, question.raw().len(), code, authentic, longest)
        .ok_or_else(|| "the reply is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};

    use super::*;

    const ALIAS: &str = "alias.example.org.";

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn alias() -> Record {
        let data = RData::CNAME(CNAME(name("target.example.org.")));
        Record::from_rdata(name(ALIAS), 3000, data)
    }

    fn soa(minimum: u32) -> Record {
        let (server, person) = (name("ns.example.org."), name("admin.example.org."));
        let data = SOA::new(server, person, 1, 2, 3, 4, minimum);
        Record::from_rdata(name("example.org."), 2000, RData::SOA(data))
    }

    /// The answers, the authorities and the seconds that a reply with these records is kept for.
    fn kept(
        kind: RecordType,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
    ) -> ([u16; 2], u32) {
        let mut packet =
            b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x05alias\x07example\x03org\0".to_vec();
        packet.extend(u16::from(kind).to_be_bytes());
        packet.extend([0, 1]);
        let question = Question::parse(&packet).unwrap();
        let query = read_query(question.raw()).unwrap();
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        (message.answers, message.authorities) = (answers, authorities);
        let kept = keep(&query, &question, message).unwrap();
        let mut reply = Vec::new();
        kept.write(&question, 0, 1232, &mut reply);
        let count = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
        ([count(6), count(8)], kept.seconds)
    }

    #[test]
    fn an_alias_that_leads_to_nothing_is_kept_no_longer_than_its_zone_says_and_says_why() {
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let told = kept(RecordType::A, code, vec![alias()], vec![soa(30)]);
            assert_eq!(told, ([1, 1], 30), "{code}");
            let long = kept(RecordType::A, code, vec![alias()], vec![soa(1000)]);
            assert_eq!(long, ([1, 1], 1000), "{code}");
            let unsaid = kept(RecordType::A, code, vec![alias()], vec![]);
            assert_eq!(unsaid, ([1, 0], 0), "{code}");
        }
    }

    #[test]
    fn an_alias_that_leads_somewhere_or_was_asked_for_is_kept_for_its_time() {
        let target = Record::from_rdata(
            name("target.example.org."),
            500,
            RData::A(A::new(192, 0, 2, 1)),
        );
        let whole = vec![alias(), target];
        let fine = ResponseCode::NoError;
        let told = kept(RecordType::A, fine, whole, vec![soa(30)]);
        assert_eq!(told, ([2, 0], 500));
        let told = kept(RecordType::CNAME, fine, vec![alias()], vec![soa(30)]);
        assert_eq!(told, ([1, 0], 3000));
    }
}
