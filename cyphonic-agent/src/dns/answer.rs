//! One query in, one answer out.

use std::net::Ipv6Addr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::AAAA;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::zone_handler::MessageRequest;

use super::zone::{Subject, TTL_S, Zone};
use super::{ResolveError, Resolver};

/// Just under the 5 s after which glibc, dig and systemd-resolved stop waiting: they see why instead.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// RFC 8914 section 5 asks for brevity; a UDP answer has to keep room for the rest.
const MAX_EXTRA_TEXT: usize = 200;

/// The EDNS option code of Extended DNS Errors.
const EDE_CODE: u16 = 15;

/// The longest UDP message: as much as the server's socket reads. Loopback carries it whole.
const MAX_UDP_PAYLOAD: u16 = 4096;

/// Answers a query. Never fails: what cannot be answered is answered with an error.
pub(super) async fn answer(zone: &Zone, resolver: &dyn Resolver, query: &MessageRequest) -> Message {
    let mut reply = start(query);
    if query.version() > 0 {
        reply.metadata.response_code = ResponseCode::BADVERS;
        return reply;
    }
    if query.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply;
    }
    let [question] = query.queries.queries() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply;
    };
    let question = question.original();
    let subject = zone.subject(question.name());
    if subject == Subject::Outside || !is_served(question) {
        reply.metadata.response_code = ResponseCode::Refused;
        return reply;
    }
    reply.metadata.authoritative = true;
    match look_up(zone, resolver, &subject, question).await {
        Found::Records(records) => reply.answers = records,
        Found::NoData => reply.authorities.push(zone.soa(zone.origin_of(&subject, question.name()))),
        Found::NoName => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.push(zone.soa(zone.origin_of(&subject, question.name())));
        }
        Found::Failed(error) => fail(&mut reply, &error),
    }
    reply
}

/// The answer to a query that came while too many were in hand.
pub(super) fn overloaded(query: &MessageRequest) -> Message {
    let mut reply = start(query);
    fail(&mut reply, &ResolveError::Overloaded("ask again in a moment".into()));
    reply
}

/// The answer to a query outside our zones that no real server answered.
pub(super) fn upstream_failed(query: &MessageRequest, why: &str) -> Message {
    let mut reply = start(query);
    reply.metadata.response_code = ResponseCode::ServFail;
    // RFC 8914 section 4.23.
    explain(&mut reply, 22, why);
    reply
}

/// The answer to a name of ours to which a resolver has added its search list: nobody has it.
pub(super) fn of_search_list(query: &MessageRequest) -> Message {
    let mut reply = start(query);
    reply.metadata.response_code = ResponseCode::NXDomain;
    // RFC 8914 section 4.16.
    explain(
        &mut reply,
        15,
        "a name of the overlay with a search domain behind it is not asked for elsewhere",
    );
    reply
}

/// What the real server of a query outside our zones answered.
pub(super) fn relayed(query: &MessageRequest, mut reply: Message) -> Message {
    // By TCP it was asked under another ID.
    reply.metadata.id = query.metadata.id;
    if let Some(edns) = &mut reply.edns {
        edns.set_max_payload(udp_limit(query));
    }
    reply
}

enum Found {
    Records(Vec<Record>),
    NoData,
    NoName,
    Failed(ResolveError),
}

async fn look_up(zone: &Zone, resolver: &dyn Resolver, subject: &Subject, question: &Query) -> Found {
    let name = question.name();
    match (subject, question.query_type()) {
        (Subject::Apex | Subject::ReverseApex, RecordType::SOA) => {
            Found::Records(vec![zone.soa(zone.origin_of(subject, name))])
        }
        (Subject::Apex | Subject::ReverseApex, RecordType::NS) => {
            Found::Records(vec![zone.ns(zone.origin_of(subject, name))])
        }
        // ANY may be answered with any one set (RFC 8482 section 4.1).
        (Subject::Device(device), RecordType::AAAA | RecordType::ANY) => {
            resolve(resolver, name, device).await
        }
        // Where the zone is searched, "there is the name, and no such record" would end the search for a name that no
        // device has (systemd-resolved takes that for success).
        (Subject::Device(device), RecordType::A) if !zone.searched().is_empty() => {
            match resolve(resolver, name, device).await {
                Found::Records(_) => Found::NoData,
                other => other,
            }
        }
        (Subject::Address(address), kind) => match resolver.name_of(*address) {
            None => Found::NoName,
            Some(device) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                match zone.ptr(name, &device) {
                    Some(record) => Found::Records(vec![record]),
                    None => Found::NoData,
                }
            }
            Some(_) => Found::NoData,
        },
        (Subject::Impossible | Subject::Outside, _) => Found::NoName,
        // Whether the device exists is known only to the NMS: asking for another type sets no tunnel up.
        (Subject::Apex | Subject::ReverseApex | Subject::Device(_) | Subject::EmptyNonTerminal, _) => {
            Found::NoData
        }
    }
}

async fn resolve(resolver: &dyn Resolver, owner: &Name, device: &str) -> Found {
    let resolved = tokio::time::timeout(PATIENCE, resolver.resolve(device)).await.unwrap_or_else(|_| {
        Err(ResolveError::TimedOut(format!(
            "no tunnel after {} ms; it is still being tried",
            PATIENCE.as_millis()
        )))
    });
    match resolved {
        Ok(address) => Found::Records(vec![aaaa(owner, address)]),
        // A name above devices' (`plant` of `press-7.plant`) exists, too (RFC 8020). Which these are only the
        // NMS knows, and it says no more than that no device is called so.
        Err(ResolveError::NoSuchPeer) => Found::NoName,
        Err(error) => Found::Failed(error),
    }
}

fn aaaa(owner: &Name, address: Ipv6Addr) -> Record {
    Record::from_rdata(owner.clone(), TTL_S, RData::AAAA(AAAA(address)))
}

/// Transfers are not served, nor are classes other than the Internet's.
fn is_served(question: &Query) -> bool {
    matches!(question.query_class(), DNSClass::IN | DNSClass::ANY)
        && !matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR)
}

fn start(query: &MessageRequest) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    // RFC 6891 section 6.1.1: OPT in the answer exactly when it was in the query; RFC 3225 section 3: DO is
    // copied.
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(udp_limit(query)).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
        reply.edns = Some(edns);
    }
    reply
}

fn fail(reply: &mut Message, error: &ResolveError) {
    reply.metadata.response_code = ResponseCode::ServFail;
    explain(reply, error.info_code(), &error.to_string());
}

/// RFC 8914 section 2: INFO-CODE, then EXTRA-TEXT in UTF-8 without a final zero.
fn explain(reply: &mut Message, info_code: u16, text: &str) {
    let Some(edns) = &mut reply.edns else { return };
    let mut end = text.len().min(MAX_EXTRA_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut data = info_code.to_be_bytes().to_vec();
    data.extend_from_slice(&text.as_bytes()[..end]);
    edns.options_mut().insert(EdnsOption::Unknown(EDE_CODE, data));
}

/// How large an answer may be for a UDP client. The server reads it from the answer's OPT record, and
/// truncates (TC).
fn udp_limit(query: &MessageRequest) -> u16 {
    query.max_payload().min(MAX_UDP_PAYLOAD)
}
