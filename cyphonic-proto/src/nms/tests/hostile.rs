//! Whatever devices send, in whatever order: one answer for each request, tables within their limits, and
//! nothing of who may not.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::message::{
    BindingRequest, Endpoint, FamilyFindings, Findings, LoginRequest, ObservationRequest, RelayLatency,
    RouteWithdrawal, TunnelRequest,
};

const LIMIT: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Connect(u8, String),
    Request(u8, Message),
    /// The answer to one of the NMS's requests, the latest first.
    Response(usize, Message),
    Moved(u8, SocketAddr),
    Gone(u8),
    Revoked(String),
    Wait(u64),
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let odd =
        prop_oneof![Just("127.0.0.1:1"), Just("[::]:0"), Just("224.0.0.1:5"), Just("[::ffff:10.0.0.1]:9")];
    prop_oneof![3 => any::<SocketAddr>(), 1 => odd.prop_map(at)]
}

/// What stands on the wire for an address, or should.
fn wire() -> impl Strategy<Value = Endpoint> {
    let bytes =
        (vec(any::<u8>(), 0..20), any::<u32>()).prop_map(|(address, port)| Endpoint { address, port });
    prop_oneof![3 => address().prop_map(endpoint::to_wire), 1 => bytes]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-d]\\.lab", 1 => "\\PC{0,12}", 1 => "[a-z.]{0,300}"]
}

fn registration() -> impl Strategy<Value = Message> {
    let observation = (wire(), wire()).prop_map(|(a, b)| Observation { server: Some(a), observed: Some(b) });
    let family = || {
        (any::<i32>(), any::<i32>(), any::<u32>(), vec(wire(), 0..8), any::<i32>()).prop_map(
            |(mapping, filtering, lifetime_ms, port_mapped, port_delta)| FamilyFindings {
                mapping,
                filtering,
                lifetime_ms,
                port_mapped,
                port_delta,
                hairpin: None,
            },
        )
    };
    let findings = (family(), family()).prop_map(|(v4, v6)| Findings { v4: Some(v4), v6: Some(v6) });
    let latency = (name(), any::<u32>()).prop_map(|(name, rtt_us)| RelayLatency { name, rtt_us });
    let version = prop_oneof![4 => Just(version::CURRENT), 1 => any::<u32>()];
    let all = (version, vec(wire(), 0..40), vec(observation, 0..20), prop::option::of(findings));
    let peer = prop_oneof![
        1 => vec(any::<u8>(), 0..20),
        2 => prop::sample::select(vec!["a.lab", "b.lab", "c.lab"])
            .prop_map(|fqdn| identity(fqdn).virtual_address.unwrap().octets().to_vec()),
    ];
    (all, vec(latency, 0..80), any::<bool>(), name(), 0..3u64, vec(peer, 0..40)).prop_map(
        |(first, relay_latencies, udp_blocked, pin, run, peers)| {
            let (protocol_version, addresses, observations, findings) = first;
            Message::RegistrationRequest(RegistrationRequest {
                protocol_version,
                addresses,
                observations,
                findings,
                relay_latencies,
                udp_blocked,
                pinned_relay: pin,
                run,
                peers,
            })
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let bytes = prop_oneof![vec(any::<u8>(), 0..40), Just(vec![0xee; 16])];
    let asks = (name(), bytes.clone(), vec(any::<i32>(), 0..12), vec(name(), 0..12)).prop_map(
        |(fqdn, virtual_address, failed, failed_relays)| {
            Message::DirectionRequest(DirectionRequest { fqdn, virtual_address, failed, failed_relays })
        },
    );
    let others = (0..7u8, bytes, name(), any::<u64>()).prop_map(|(kind, bytes, name, n)| match kind {
        0 => Message::LoginRequest(LoginRequest { software_version: name, ..LoginRequest::default() }),
        1 => Message::ObservationRequest(ObservationRequest::default()),
        2 => Message::BindingRequest(BindingRequest {
            setup_id: bytes,
            peer_fqdn: name,
            context: n,
            ..BindingRequest::default()
        }),
        3 => Message::RouteConfirmation(RouteConfirmation { setup_id: bytes }),
        4 => Message::RouteWithdrawal(RouteWithdrawal { setup_id: bytes, refusal: None }),
        5 => Message::TunnelRequest(TunnelRequest { setup_id: bytes, ..TunnelRequest::default() }),
        _ => Message::Refusal(Refusal { code: n as i32, reason: name, retry_after_ms: n as u32 }),
    });
    prop_oneof![3 => registration(), 4 => asks, 2 => others]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4u8, "[a-e]\\.lab").prop_map(|(channel, name)| Step::Connect(channel, name)),
        8 => (0..4u8, any_message()).prop_map(|(channel, message)| Step::Request(channel, message)),
        3 => (0..4usize, any_message()).prop_map(|(which, message)| Step::Response(which, message)),
        1 => (0..4u8, address()).prop_map(|(channel, to)| Step::Moved(channel, to)),
        1 => (0..4u8).prop_map(Step::Gone),
        1 => name().prop_map(Step::Revoked),
        2 => (0..4000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn every_request_has_one_answer_and_tables_stay_bounded(steps in vec(step(), 1..80)) {
        let timing = NmsTiming { pending: LIMIT, pending_per_node: 2, nodes: 3, ..NmsTiming::default() };
        let mut bench = Bench::new(timing);
        let (mut exchange, mut asked) = (10_000, Vec::new());
        // As their shell would: a channel belongs to one connection.
        let mut live: [Option<u64>; 4] = [Some(0), Some(1), None, None];
        for step in steps {
            let mut expected = None;
            match step {
                Step::Connect(slot, name) => {
                    exchange += 1;
                    live[usize::from(slot)] = Some(exchange);
                    bench.connect(exchange, &name, at("203.0.113.9:7000"));
                }
                Step::Request(slot, message) => {
                    let message = crate::message::decode(&crate::message::encode(&message));
                    if let (Some(channel), Ok(message)) = (live[usize::from(slot)], message) {
                        exchange += 1;
                        expected = Some(ExchangeId(exchange));
                        bench.request(channel, exchange, message);
                    }
                }
                Step::Response(which, message) => {
                    let known = asked.len().checked_sub(which + 1).map(|index| asked.swap_remove(index));
                    let to = known.unwrap_or(ExchangeId(which as u64));
                    bench.nms.handle_response(bench.now, to, message);
                }
                Step::Moved(slot, to) => {
                    if let Some(channel) = live[usize::from(slot)] {
                        bench.nms.handle_moved(bench.now, Channel(channel), to);
                    }
                }
                Step::Gone(slot) => {
                    if let Some(channel) = live[usize::from(slot)].take() {
                        bench.nms.handle_disconnected(bench.now, Channel(channel));
                    }
                }
                Step::Revoked(name) => bench.nms.handle_revoked(bench.now, &name),
                Step::Wait(ms) => {
                    bench.now += Duration::from_millis(ms);
                    bench.nms.handle_timeout(bench.now);
                }
            }
            let actions = bench.actions();
            let answers: Vec<_> = actions.iter().filter_map(|action| match action {
                Action::Respond { exchange, .. } => Some(*exchange),
                _ => None,
            }).collect();
            prop_assert_eq!(answers, expected.into_iter().collect::<Vec<_>>());
            for action in &actions {
                if let Action::Request { exchange, message, .. } = action {
                    asked.push(*exchange);
                    if let Message::RouteDirection(order) = message {
                        let told = order.peer_endpoints.iter().filter_map(endpoint::from_wire);
                        let usable = told.clone().all(|to| endpoint::is_candidate(to.ip(), prefix()));
                        prop_assert!(usable, "{:?}", told.collect::<Vec<_>>());
                    }
                }
            }
            let (nodes, pending) = bench.nms.sizes();
            prop_assert!(nodes <= 3 && pending <= LIMIT, "{nodes} {pending}");
        }
    }
}
