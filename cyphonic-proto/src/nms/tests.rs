use super::*;
use crate::{
    identity::{NetworkId, Role},
    message::{
        DirectionRequest, Observation, RegistrationRequest, RouteConfirmation, RouteDirection, RouteKind,
    },
    node::Relay,
    version,
};
use std::time::Duration;

const NETWORK: NetworkId = NetworkId([7; 16]);

fn prefix() -> address::Prefix {
    address::Prefix::from_random([1, 2, 3, 4, 5])
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn identity(fqdn: &str) -> Identity {
    Identity {
        network_id: NETWORK,
        role: Role::Device,
        fqdn: fqdn.into(),
        virtual_address: Some(address::virtual_address(prefix(), NETWORK, fqdn)),
        spki_sha256: [0; 32],
        serial: vec![],
        not_before: 0,
        not_after: 0,
    }
}

fn ask(fqdn: &str) -> Message {
    Message::DirectionRequest(DirectionRequest { fqdn: fqdn.into(), ..DirectionRequest::default() })
}

struct Bench {
    nms: Nms,
    now: Instant,
}

impl Bench {
    /// A (channel 0) behind a symmetric NAT, B (channel 1) public, C (channel 2) enrolled but not connected.
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn new(timing: NmsTiming) -> Self {
        let config = NmsConfig {
            network_id: NETWORK,
            prefix: prefix(),
            zone: "lab".into(),
            relays: vec![Relay { name: "trs.lab".into(), addresses: vec![at("192.0.2.9:443")] }],
            devices: Some(["a.lab", "b.lab", "c.lab"].map(String::from).to_vec()),
            first_setup: 1000,
            timing,
        };
        let now = Instant::now();
        let mut bench = Self { nms: Nms::new(config, [1; 32], now), now: now + Duration::from_secs(60) };
        bench.connect(0, "a.lab", at("198.51.100.1:5000"));
        bench.register(0, &[at("10.0.0.2:7000")], &[(at("192.0.2.9:443"), at("198.51.100.1:5001"))]);
        bench.connect(1, "b.lab", at("203.0.113.2:7000"));
        bench.register(1, &[at("203.0.113.2:7000")], &[]);
        bench
    }

    fn connect(&mut self, channel: u64, fqdn: &str, observed: SocketAddr) {
        self.nms.handle_connected(self.now, Channel(channel), identity(fqdn), observed, at("192.0.2.1:443"));
    }

    fn register(
        &mut self,
        channel: u64,
        addresses: &[SocketAddr],
        seen: &[(SocketAddr, SocketAddr)],
    ) -> Message {
        let wire = |a: &SocketAddr| Some(endpoint::to_wire(*a));
        let request = RegistrationRequest {
            protocol_version: version::CURRENT,
            addresses: endpoint::list_to_wire(addresses),
            observations: seen
                .iter()
                .map(|(s, o)| Observation { server: wire(s), observed: wire(o) })
                .collect(),
            instance: vec![1; 16],
            ..RegistrationRequest::default()
        };
        self.request(channel, 900, Message::RegistrationRequest(request));
        let actions = self.actions();
        let [Action::Respond { message, .. }] = actions.as_slice() else { panic!("{actions:?}") };
        message.clone()
    }

    fn request(&mut self, channel: u64, exchange: u64, message: Message) {
        self.nms.handle_request(self.now, Channel(channel), ExchangeId(exchange), message);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.nms.poll_action()).collect()
    }

    /// The single request that is sent, and its exchange.
    fn sent(&mut self) -> (u64, ExchangeId, RouteDirection) {
        let actions = self.actions();
        let [Action::Request { channel, exchange, message: Message::RouteDirection(direction) }] =
            actions.as_slice()
        else {
            panic!("{actions:?}")
        };
        (channel.0, *exchange, direction.clone())
    }

    fn confirm(&mut self, exchange: ExchangeId, direction: &RouteDirection) {
        let confirmation = RouteConfirmation {
            setup_id: direction.setup_id.clone(),
            relay_connection_id: if direction.relay.is_some() { vec![0x88; 8] } else { vec![] },
        };
        self.nms.handle_response(self.now, exchange, Message::RouteConfirmation(confirmation));
    }

    /// The answers to requests, by their exchange.
    fn answers(&mut self) -> BTreeMap<u64, Message> {
        let answer = |action| match action {
            Action::Respond { exchange, message } => Some((exchange.0, message)),
            Action::Request { .. } | Action::CancelRequest { .. } | Action::Close { .. } => None,
        };
        self.actions().into_iter().filter_map(answer).collect()
    }

    fn refused(&mut self, channel: u64, message: Message) -> Refusal {
        let before = self.nms.sizes();
        self.request(channel, 800, message);
        assert_eq!(self.nms.sizes(), before, "refused input changed state");
        let answers = self.answers();
        let Some(Message::Refusal(refusal)) = answers.get(&800) else { panic!("{answers:?}") };
        refusal.clone()
    }
}

fn bench() -> Bench {
    Bench::new(NmsTiming::default())
}

#[test]
fn the_responder_is_directed_first_and_both_ends_get_one_set_up_and_key() {
    let mut bench = bench();
    bench.request(0, 1, ask("B.lab."));
    let (channel, exchange, responder) = bench.sent();
    assert_eq!((channel, responder.dial, responder.initiator), (1, false, false));
    assert_eq!((responder.peer_fqdn.as_str(), responder.kind()), ("a.lab", RouteKind::Direct));
    bench.confirm(exchange, &responder);
    let Some(Message::RouteDirection(initiator)) = bench.answers().remove(&1) else { panic!() };
    assert_eq!((initiator.dial, initiator.initiator), (true, true));
    assert_eq!((&initiator.setup_id, &initiator.tunnel_key), (&responder.setup_id, &responder.tunnel_key));
    assert_eq!(initiator.peer_endpoints, [endpoint::to_wire(at("203.0.113.2:7000"))]);
    assert_eq!(bench.nms.sizes(), (2, 0));
}

#[test]
fn a_relayed_set_up_carries_the_responder_s_leg_to_the_initiator() {
    let mut bench = bench();
    let failed = vec![RouteKind::Direct.into()];
    let request = DirectionRequest { fqdn: "b.lab".into(), failed, ..DirectionRequest::default() };
    bench.request(0, 1, Message::DirectionRequest(request));
    let (_, exchange, responder) = bench.sent();
    assert_eq!(responder.relay.as_ref().unwrap().name, "trs.lab");
    assert!(responder.relay_connection_id.is_empty());
    bench.confirm(exchange, &responder);
    let Some(Message::RouteDirection(initiator)) = bench.answers().remove(&1) else { panic!() };
    assert_eq!(initiator.relay_connection_id, [0x88; 8]);
    assert!(initiator.reason.starts_with("relayed because direct failed"), "{}", initiator.reason);
}

#[test]
fn a_confirmation_without_what_it_must_have_fails_the_set_up() {
    for (setup_id, leg) in [(vec![0; 16], vec![0x88; 8]), (vec![], vec![]), (vec![9; 3], vec![0x88; 8])] {
        let mut bench = bench();
        bench.request(0, 1, ask("b.lab"));
        let (_, exchange, _) = bench.sent();
        let wrong = RouteConfirmation { setup_id, relay_connection_id: leg };
        bench.nms.handle_response(bench.now, exchange, Message::RouteConfirmation(wrong));
        let answers = bench.answers();
        assert!(
            matches!(&answers[&1], Message::Refusal(r) if r.code() == RefusalCode::PeerRefused),
            "{answers:?}"
        );
        assert_eq!(bench.nms.sizes().1, 0);
    }
}

#[test]
fn a_request_of_the_other_end_joins_the_set_up_in_progress() {
    let mut bench = bench();
    bench.request(0, 1, ask("b.lab"));
    let (_, exchange, responder) = bench.sent();
    bench.request(1, 2, ask("a.lab"));
    assert!(bench.actions().is_empty(), "it waits");
    bench.confirm(exchange, &responder);
    let answers = bench.answers();
    let Message::RouteDirection(joined) = &answers[&2] else { panic!("{answers:?}") };
    assert_eq!(*joined, responder, "its own view of the same set-up");
    assert!(matches!(&answers[&1], Message::RouteDirection(direction) if direction.initiator));
    assert_eq!(bench.nms.counters().joined, 1);
}

#[test]
fn the_same_end_asking_again_replaces_its_request() {
    let mut bench = bench();
    bench.request(0, 1, ask("b.lab"));
    let (_, old, direction) = bench.sent();
    bench.request(0, 2, ask("b.lab"));
    let answers = bench.answers();
    assert!(matches!(&answers[&1], Message::Refusal(r) if r.retry_after().is_some()), "{answers:?}");
    bench.confirm(old, &direction);
    assert!(bench.actions().is_empty(), "the late confirmation of the first is nobody's");
    assert_eq!(bench.nms.sizes().1, 1);
}

#[test]
fn set_ups_are_numbered_upwards_and_not_to_be_guessed() {
    let mut bench = bench();
    let ids: Vec<_> = (0..20)
        .map(|n| {
            bench.request(0, n, ask("b.lab"));
            let (_, exchange, direction) = bench.sent();
            bench.confirm(exchange, &direction);
            bench.actions();
            direction.setup_id
        })
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(ids.windows(2).all(|pair| pair[0][8..] != pair[1][8..]));
}

#[test]
fn a_responder_that_is_silent_refuses_or_leaves_ends_the_set_up_with_a_reason() {
    let timing = NmsTiming::default();
    let ends: [fn(&mut Bench, ExchangeId); 4] = [
        |bench, _| {
            bench.now += NmsTiming::default().responder;
            bench.nms.handle_timeout(bench.now);
        },
        |bench, exchange| {
            let refusal = Refusal::new(RefusalCode::TooMany, "full");
            bench.nms.handle_response(bench.now, exchange, refusal.into());
        },
        |bench, exchange| bench.nms.handle_exchange_failed(bench.now, exchange, "stream reset"),
        |bench, _| bench.nms.handle_disconnected(bench.now, Channel(1)),
    ];
    for end in ends {
        let mut bench = Bench::new(timing.clone());
        bench.request(0, 1, ask("b.lab"));
        let (_, exchange, _) = bench.sent();
        end(&mut bench, exchange);
        let answers = bench.answers();
        assert!(
            matches!(&answers[&1], Message::Refusal(refusal) if refusal.reason.contains("b.lab")),
            "{answers:?}"
        );
        assert_eq!((bench.nms.sizes().1, bench.nms.poll_timeout()), (0, None));
    }
}

#[test]
fn an_absent_device_is_told_from_one_that_does_not_exist() {
    let mut bench = bench();
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::PeerOffline);
    assert_eq!(bench.refused(0, ask("d.lab")).code(), RefusalCode::NoSuchPeer);
    assert_eq!(bench.refused(0, ask("b.example")).code(), RefusalCode::NoSuchPeer);
    assert_eq!(bench.refused(0, ask("b b.lab")).code(), RefusalCode::Malformed);
    assert_eq!(bench.refused(0, ask("")).code(), RefusalCode::Malformed);
    assert_eq!(bench.refused(0, ask("a.lab")).code(), RefusalCode::Malformed);
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::PeerOffline, "connected, not registered");
    assert_eq!(bench.refused(2, ask("b.lab")).code(), RefusalCode::NotAllowed, "register first");
    let by_address = |fqdn| {
        let virtual_address = address::virtual_address(prefix(), NETWORK, fqdn).octets().to_vec();
        Message::DirectionRequest(DirectionRequest { virtual_address, ..DirectionRequest::default() })
    };
    assert_eq!(bench.refused(0, by_address("d.lab")).code(), RefusalCode::NoSuchPeer);
    bench.request(0, 1, by_address("b.lab"));
    assert_eq!(bench.sent().2.peer_fqdn, "a.lab");
}

#[test]
fn just_after_the_start_an_absent_device_is_worth_asking_for_again() {
    let mut bench = bench();
    bench.nms.started = bench.now;
    assert!(bench.refused(0, ask("c.lab")).retry_after().is_some());
    bench.now += NmsTiming::default().grace;
    assert!(bench.refused(0, ask("c.lab")).retry_after().is_none());
}

#[test]
fn one_node_cannot_ask_without_end() {
    let mut bench = Bench::new(NmsTiming { burst: 3, per_second: 1, ..NmsTiming::default() });
    for _ in 0..3 {
        assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::PeerOffline);
    }
    let refusal = bench.refused(0, ask("c.lab"));
    assert_eq!((refusal.code(), refusal.retry_after().is_some()), (RefusalCode::TooMany, true));
    assert_eq!(bench.refused(1, ask("c.lab")).code(), RefusalCode::PeerOffline, "others are not concerned");
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::PeerOffline);
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::TooMany);
}

#[test]
fn set_ups_in_progress_are_bounded() {
    let mut bench = Bench::new(NmsTiming { pending: 1, ..NmsTiming::default() });
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    bench.register(2, &[at("203.0.113.3:7000")], &[]);
    bench.request(0, 1, ask("b.lab"));
    bench.sent();
    assert_eq!(bench.refused(2, ask("b.lab")).code(), RefusalCode::TooMany);
    let mut bench = Bench::new(NmsTiming { pending_per_node: 1, ..NmsTiming::default() });
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    bench.register(2, &[at("203.0.113.3:7000")], &[]);
    bench.request(0, 1, ask("b.lab"));
    bench.sent();
    assert_eq!(bench.refused(2, ask("b.lab")).code(), RefusalCode::TooMany, "B has enough to do");
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::TooMany, "so has A");
}

#[test]
fn a_newer_connection_of_a_device_replaces_the_older_and_its_late_end_changes_nothing() {
    let mut bench = bench();
    bench.request(1, 1, ask("a.lab"));
    bench.sent();
    bench.connect(7, "a.lab", at("198.51.100.1:6000"));
    let actions = bench.actions();
    assert!(
        actions.iter().any(|action| matches!(action, Action::Close { channel: Channel(0), .. })),
        "{actions:?}"
    );
    assert!(actions.iter().any(|action| matches!(action, Action::Respond { exchange: ExchangeId(1), .. })));
    bench.nms.handle_disconnected(bench.now, Channel(0));
    assert_eq!(bench.nms.sizes(), (2, 0));
    assert_eq!(bench.refused(0, ask("b.lab")).code(), RefusalCode::NotAllowed);
}

#[test]
fn who_a_node_is_comes_from_its_certificate() {
    let mut bench = bench();
    let wrong = [
        Identity { role: Role::Trs, ..identity("c.lab") },
        Identity { network_id: NetworkId([8; 16]), ..identity("c.lab") },
        Identity { virtual_address: None, ..identity("c.lab") },
        identity("c.example"),
        identity("never-enrolled.lab"),
    ];
    for identity in wrong {
        let seen = (at("203.0.113.9:1"), at("192.0.2.1:443"));
        bench.nms.handle_connected(bench.now, Channel(9), identity, seen.0, seen.1);
        assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(9), .. }]));
        assert_eq!(bench.nms.sizes().0, 2);
    }
}

#[test]
fn a_revoked_device_is_closed_forgotten_and_kept_out() {
    let mut bench = bench();
    bench.nms.handle_revoked(bench.now, "b.lab");
    assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(1), .. }]));
    assert_eq!(bench.refused(0, ask("b.lab")).code(), RefusalCode::NoSuchPeer);
    bench.connect(5, "b.lab", at("203.0.113.2:7000"));
    assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(5), .. }]));
    bench.nms.handle_enrolled("b.lab");
    bench.connect(6, "b.lab", at("203.0.113.2:7000"));
    assert!(bench.actions().is_empty());
}

#[test]
fn a_registration_tells_the_node_all_it_needs_and_an_old_version_is_refused() {
    let mut bench = bench();
    let Message::RegistrationResponse(response) = bench.register(0, &[], &[]) else { panic!() };
    assert_eq!(response.virtual_address, identity("a.lab").virtual_address.unwrap().octets());
    assert_eq!((response.zone.as_str(), response.prefix_length, response.relays.len()), ("lab", 48, 1));
    assert_eq!(endpoint::from_wire(&response.observed.unwrap()), Some(at("198.51.100.1:5000")));
    let old = RegistrationRequest::default();
    assert_eq!(bench.refused(0, Message::RegistrationRequest(old)).code(), RefusalCode::Version);
    let odd = Message::RouteConfirmation(RouteConfirmation::default());
    assert_eq!(bench.refused(0, odd).code(), RefusalCode::Malformed);
}

#[test]
fn a_node_cannot_have_packets_sent_to_the_loopback_of_others() {
    let mut bench = bench();
    bench.register(
        1,
        &[at("203.0.113.2:7000"), at("127.0.0.1:22"), at("[fe80::1]:22"), at("[::ffff:127.0.0.1]:22")],
        &[],
    );
    bench.request(0, 1, ask("b.lab"));
    let (_, exchange, direction) = bench.sent();
    bench.confirm(exchange, &direction);
    let Some(Message::RouteDirection(initiator)) = bench.answers().remove(&1) else { panic!() };
    assert_eq!(initiator.peer_endpoints, [endpoint::to_wire(at("203.0.113.2:7000"))]);
}
