use std::time::Duration;

use super::*;
use crate::access::{AccessRule, OverlayRule};
use crate::identity::{KeyHash, NetworkId, Role};
use crate::message::{
    DirectionRequest, Observation, RegistrationRequest, RouteConfirmation, RouteDirection, RouteKind,
    RouteWithdrawal,
};
use crate::node::Relay;
use crate::version;

mod hostile;
mod nodes;
mod revocations;

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
        spki_sha256: KeyHash([0; 32]),
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

/// A, B and C are enrolled.
fn config(timing: NmsTiming) -> NmsConfig {
    NmsConfig {
        network_id: NETWORK,
        prefix: prefix(),
        zone: "lab".into(),
        relays: vec![Relay { name: "trs.lab".into(), addresses: vec![at("192.0.2.9:443")] }],
        devices: Some(["a.lab", "b.lab", "c.lab"].map(String::from).to_vec()),
        revoked: Vec::new(),
        standbys: Vec::new(),
        access: None,
        first_setup: 1000,
        timing,
    }
}

impl Bench {
    /// A (channel 0) behind a symmetric NAT, B (channel 1) public, C (channel 2) enrolled but not connected.
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn new(timing: NmsTiming) -> Self {
        let now = Instant::now();
        let nms = Nms::new(config(timing), [1; 32], now);
        let mut bench = Self { nms, now: now + Duration::from_secs(60) };
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

    /// Has one end ask for another: the order it gets at once, and the responder's, with the exchange that
    /// awaits its confirmation.
    fn ask(&mut self, channel: u64, message: Message) -> (RouteDirection, Asked) {
        self.request(channel, 700, message);
        let actions = self.actions();
        let order = actions.iter().find_map(|action| match action {
            Action::Respond { exchange: ExchangeId(700), message: Message::RouteDirection(order) } => {
                Some(order)
            }
            _ => None,
        });
        let asked = actions.iter().find_map(|action| match action {
            Action::Request { channel, exchange, message: Message::RouteDirection(order) } => {
                Some(Asked { channel: channel.0, exchange: *exchange, order: order.clone() })
            }
            _ => None,
        });
        let (Some(order), Some(asked)) = (order, asked) else { panic!("{actions:?}") };
        (order.clone(), asked)
    }

    /// What the initiator is told of its set-up afterwards.
    fn withdrawn(&mut self) -> Option<(u64, RouteWithdrawal)> {
        self.actions().into_iter().find_map(|action| match action {
            Action::Request { channel, message: Message::RouteWithdrawal(withdrawal), .. } => {
                Some((channel.0, withdrawal))
            }
            _ => None,
        })
    }

    /// Time passes, and what is due then is done.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.nms.handle_timeout(self.now);
    }

    /// Who was told of which revocations.
    fn notices(&mut self) -> Vec<(u64, Vec<String>)> {
        let notice = |action| match action {
            Action::Request { channel, message: Message::RevocationNotice(notice), .. } => {
                Some((channel.0, notice.fqdn))
            }
            _ => None,
        };
        self.actions().into_iter().filter_map(notice).collect()
    }

    fn confirm(&mut self, asked: &Asked) {
        let Asked { exchange, order: direction, .. } = asked;
        let confirmation = RouteConfirmation { setup_id: direction.setup_id.clone() };
        self.nms.handle_response(self.now, *exchange, Message::RouteConfirmation(confirmation));
    }

    /// The answers to requests, by their exchange.
    fn answers(&mut self) -> BTreeMap<u64, Message> {
        let answer = |action| match action {
            Action::Respond { exchange, message } => Some((exchange.0, message)),
            Action::Request { .. }
            | Action::CancelRequest { .. }
            | Action::Close { .. }
            | Action::Doubled { .. } => None,
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

/// What the responder was asked.
struct Asked {
    channel: u64,
    exchange: ExchangeId,
    order: RouteDirection,
}

fn bench() -> Bench {
    Bench::new(NmsTiming::default())
}

#[test]
fn both_ends_are_directed_at_once_and_get_one_set_up_and_key() {
    let mut bench = bench();
    let (initiator, responder) = bench.ask(0, ask("B.lab."));
    assert_eq!((responder.channel, responder.order.dial, responder.order.initiator), (1, false, false));
    assert_eq!((responder.order.peer_fqdn.as_str(), responder.order.kind()), ("a.lab", RouteKind::Direct));
    assert_eq!((initiator.dial, initiator.initiator), (true, true));
    assert_eq!(initiator.setup_id, responder.order.setup_id);
    assert_eq!(initiator.tunnel_key, responder.order.tunnel_key);
    assert_eq!(initiator.peer_endpoints, [endpoint::to_wire(at("203.0.113.2:7000"))]);
    assert_eq!(bench.nms.sizes(), (2, 1));
    bench.confirm(&responder);
    assert!(bench.actions().is_empty());
    assert_eq!((bench.nms.sizes(), bench.nms.poll_timeout()), ((2, 0), None));
}

#[test]
fn a_relayed_set_up_names_the_relay_and_what_to_try_next() {
    let mut bench = bench();
    let failed = vec![RouteKind::Direct.into()];
    let request = DirectionRequest { fqdn: "b.lab".into(), failed, ..DirectionRequest::default() };
    let (initiator, responder) = bench.ask(0, Message::DirectionRequest(request));
    assert_eq!(initiator.relay.as_ref().unwrap().name, "trs.lab");
    assert_eq!(initiator.relay, responder.order.relay);
    assert_eq!(initiator.peer_endpoints, [endpoint::to_wire(at("203.0.113.2:7000"))]);
    let of_a = ["198.51.100.1:5000", "198.51.100.1:5001", "10.0.0.2:7000"].map(|a| endpoint::to_wire(at(a)));
    assert_eq!(responder.order.peer_endpoints, of_a);
    assert!(initiator.reason.starts_with("relayed because direct failed"), "{}", initiator.reason);
}

/// Two that move at once cannot tell each other.
#[test]
fn who_has_moved_learns_where_a_peer_is_that_has_asked_for_it_and_where_nobody_else_is() {
    let mut bench = bench();
    let own = |fqdn: &str| identity(fqdn).virtual_address.unwrap();
    let asks = |bench: &mut Bench, channel, address, peers: &[Ipv6Addr]| {
        let request = RegistrationRequest {
            protocol_version: version::CURRENT,
            addresses: endpoint::list_to_wire(&[at(address)]),
            peers: peers.iter().map(|peer| peer.octets().to_vec()).collect(),
            ..Default::default()
        };
        bench.request(channel, 900, Message::RegistrationRequest(request));
        let actions = bench.actions();
        let answer = actions.into_iter().find_map(|action| match action {
            Action::Respond { message: Message::RegistrationResponse(response), .. } => Some(response.peers),
            _ => None,
        });
        answer.expect("it is answered")
    };
    let (a, b) = (own("a.lab"), own("b.lab"));
    assert_eq!(asks(&mut bench, 0, "10.0.0.9:7000", &[b]), [], "b has asked for nobody");
    let found = asks(&mut bench, 1, "10.0.0.8:7000", &[own("nobody.lab"), a, b]);
    let [place] = &found[..] else { panic!("{found:?}") };
    assert_eq!(place.virtual_address, a.octets());
    assert!(place.endpoints.contains(&endpoint::to_wire(at("10.0.0.9:7000"))), "{place:?}");
    assert_eq!(asks(&mut bench, 0, "10.0.0.9:7000", &[]), [], "it asks for nobody any more");
    assert_eq!(asks(&mut bench, 1, "10.0.0.8:7000", &[a]), []);
    asks(&mut bench, 0, "10.0.0.9:7000", &[b]);
    bench.now += Duration::from_secs(10);
    assert_eq!(asks(&mut bench, 1, "10.0.0.8:7000", &[a]), [], "a has looked for it long ago");
    let many = vec![a; 1_000];
    asks(&mut bench, 0, "10.0.0.9:7000", &[b]);
    assert!(asks(&mut bench, 1, "10.0.0.8:7000", &many).len() <= crate::message::MAX_ASKED_FOR);
}

#[test]
fn who_was_sent_to_where_the_responder_is_no_more_is_told_so_at_once() {
    let mut bench = bench();
    let (first, asked) = bench.ask(0, ask("b.lab"));
    let registration = |address| {
        Message::RegistrationRequest(RegistrationRequest {
            protocol_version: version::CURRENT,
            addresses: endpoint::list_to_wire(&[address]),
            ..Default::default()
        })
    };
    bench.request(1, 900, registration(at("203.0.113.2:7000")));
    assert_eq!(bench.actions().len(), 1, "it is where it was");
    bench.nms.handle_moved(bench.now, Channel(1), at("203.0.113.77:7000"));
    assert!(bench.actions().is_empty(), "perhaps it is in both places");
    bench.request(1, 901, registration(at("203.0.113.77:7000")));
    let actions = bench.actions();
    let cancels =
        |action: &Action| matches!(action, Action::CancelRequest { exchange } if *exchange == asked.exchange);
    assert!(actions.iter().any(cancels), "{actions:?}");
    let withdrawn = actions.iter().find_map(|action| match action {
        Action::Request { channel: Channel(0), message: Message::RouteWithdrawal(withdrawal), .. } => {
            Some(withdrawal)
        }
        _ => None,
    });
    let withdrawn = withdrawn.unwrap_or_else(|| panic!("{actions:?}"));
    assert_eq!(withdrawn.setup_id, first.setup_id);
    let wait = withdrawn.refusal.as_ref().unwrap().retry_after().unwrap();
    assert!(wait <= Duration::from_millis(10), "{wait:?}");
    let (again, _) = bench.ask(0, ask("b.lab"));
    assert_eq!(again.peer_endpoints, [endpoint::to_wire(at("203.0.113.77:7000"))]);
}

#[test]
fn a_confirmation_of_something_else_withdraws_the_set_up() {
    for setup_id in [vec![0; 16], vec![], vec![9; 3]] {
        let mut bench = bench();
        let (order, responder) = bench.ask(0, ask("b.lab"));
        let wrong = Message::RouteConfirmation(RouteConfirmation { setup_id });
        bench.nms.handle_response(bench.now, responder.exchange, wrong);
        let (channel, withdrawal) = bench.withdrawn().unwrap();
        assert_eq!((channel, &withdrawal.setup_id), (0, &order.setup_id));
        assert_eq!(withdrawal.refusal.unwrap().code(), RefusalCode::PeerRefused);
        assert_eq!(bench.nms.sizes().1, 0);
    }
}

#[test]
fn a_request_of_the_other_end_joins_the_set_up_in_progress() {
    let mut bench = bench();
    let (_, responder) = bench.ask(0, ask("b.lab"));
    bench.request(1, 2, ask("a.lab"));
    let answers = bench.answers();
    let Message::RouteDirection(joined) = &answers[&2] else { panic!("{answers:?}") };
    assert_eq!(*joined, responder.order, "its own view of the same set-up, at once");
    bench.confirm(&responder);
    assert!(bench.actions().is_empty());
    assert_eq!((bench.nms.counters().joined, bench.nms.counters().routed), (1, 1));
}

#[test]
fn the_same_end_asking_again_gets_another_set_up() {
    let mut bench = bench();
    let (first, old) = bench.ask(0, ask("b.lab"));
    let (second, new) = bench.ask(0, ask("b.lab"));
    assert!(first.setup_id < second.setup_id);
    assert_eq!(bench.nms.sizes().1, 1);
    bench.confirm(&old);
    assert!(bench.actions().is_empty(), "the late confirmation of the first is nobody's");
    assert_eq!(bench.nms.sizes().1, 1);
    bench.confirm(&new);
    assert_eq!(bench.nms.sizes().1, 0);
}

#[test]
fn set_ups_are_numbered_upwards_and_not_to_be_guessed() {
    let mut bench = bench();
    let mut fresh = || {
        let (order, responder) = bench.ask(0, ask("b.lab"));
        bench.confirm(&responder);
        order.setup_id
    };
    let ids: Vec<_> = (0..20).map(|_| fresh()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(ids.windows(2).all(|pair| pair[0][8..] != pair[1][8..]));
}

#[test]
fn a_responder_that_is_silent_refuses_or_leaves_has_the_set_up_withdrawn_with_a_reason() {
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
        let (order, responder) = bench.ask(0, ask("b.lab"));
        end(&mut bench, responder.exchange);
        let (channel, withdrawal) = bench.withdrawn().unwrap();
        assert_eq!((channel, withdrawal.setup_id), (0, order.setup_id));
        let reason = withdrawal.refusal.unwrap().reason;
        assert!(reason.contains("b.lab"), "{reason}");
        assert_eq!((bench.nms.sizes().1, bench.nms.poll_timeout()), (0, None));
        assert_eq!(bench.nms.counters().withdrawn, 1);
    }
}

#[test]
fn an_initiator_that_leaves_is_told_nothing() {
    let mut bench = bench();
    bench.ask(0, ask("b.lab"));
    bench.nms.handle_disconnected(bench.now, Channel(0));
    assert_eq!((bench.withdrawn(), bench.nms.sizes()), (None, (1, 0)));
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
    assert_eq!(bench.ask(0, by_address("b.lab")).0.peer_fqdn, "b.lab");
}

#[test]
fn just_after_the_start_an_absent_device_is_worth_asking_for_again() {
    let mut bench = bench();
    bench.nms.handle_stands_in(bench.now);
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
fn one_node_cannot_register_without_end_nor_does_that_cost_it_its_questions() {
    // Each has registered once.
    let mut bench = Bench::new(NmsTiming { burst: 3, per_second: 1, ..NmsTiming::default() });
    let address = [at("198.51.100.1:7000")];
    for _ in 0..2 {
        assert_eq!(bench.register(0, &address, &[]).name(), "RegistrationResponse");
    }
    let Message::Refusal(refusal) = bench.register(0, &address, &[]) else { panic!("without end") };
    assert_eq!((refusal.code(), refusal.retry_after().is_some()), (RefusalCode::TooMany, true));
    assert_eq!(bench.register(1, &address, &[]).name(), "RegistrationResponse", "others are not concerned");
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::PeerOffline);
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.register(0, &address, &[]).name(), "RegistrationResponse");
}

#[test]
fn who_connects_anew_has_asked_for_no_less() {
    let mut bench = Bench::new(NmsTiming { burst: 3, per_second: 1, ..NmsTiming::default() });
    // Over a connection that ended, and over one that another supersedes.
    for (channel, ends) in [(0, true), (10, false), (11, true)] {
        assert_eq!(bench.refused(channel, ask("c.lab")).code(), RefusalCode::PeerOffline);
        if ends {
            bench.nms.handle_disconnected(bench.now, Channel(channel));
        }
        let next = if channel == 0 { 10 } else { channel + 1 };
        bench.connect(next, "a.lab", at("198.51.100.1:5000"));
        bench.actions();
        let registered = bench.register(next, &[], &[]);
        assert_eq!(registered.name() == "Refusal", channel == 11, "it registers for the fourth time");
    }
    assert_eq!(bench.refused(12, ask("c.lab")).code(), RefusalCode::TooMany, "it has asked three times");
    bench.now += Duration::from_secs(1);
    bench.register(12, &[], &[]);
    assert_eq!(bench.refused(12, ask("c.lab")).code(), RefusalCode::PeerOffline);
    assert_eq!(bench.refused(12, ask("c.lab")).code(), RefusalCode::TooMany);
    bench.nms.handle_disconnected(bench.now, Channel(12));
    bench.now += Duration::from_secs(3);
    bench.connect(13, "c.lab", at("203.0.113.3:7000"));
    bench.nms.handle_disconnected(bench.now, Channel(13));
    assert_eq!(bench.nms.left.len(), 1, "what has come back is forgotten");
}

#[test]
fn set_ups_in_progress_are_bounded() {
    let mut bench = Bench::new(NmsTiming { pending: 1, ..NmsTiming::default() });
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    bench.register(2, &[at("203.0.113.3:7000")], &[]);
    bench.ask(0, ask("b.lab"));
    assert_eq!(bench.refused(2, ask("b.lab")).code(), RefusalCode::TooMany);
    let mut bench = Bench::new(NmsTiming { pending_per_node: 1, ..NmsTiming::default() });
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    bench.register(2, &[at("203.0.113.3:7000")], &[]);
    bench.ask(0, ask("b.lab"));
    assert_eq!(bench.refused(2, ask("b.lab")).code(), RefusalCode::TooMany, "B has enough to do");
    assert_eq!(bench.refused(0, ask("c.lab")).code(), RefusalCode::TooMany, "so has A");
}

/// `from` may ping this device.
fn overlay_rule(at: &str, from: &str) -> OverlayRule {
    let to = vec!["ping".parse().unwrap()];
    let from = vec![from.parse().unwrap()];
    OverlayRule { at: vec![at.parse().unwrap()], rule: AccessRule { from, to } }
}

#[test]
fn a_node_is_told_what_holds_there_when_it_registers_and_when_that_becomes_something_else() {
    let mut bench = bench();
    let registered = |bench: &mut Bench, channel| match bench.register(channel, &[], &[]) {
        Message::RegistrationResponse(response) => response.access.unwrap(),
        other => panic!("{other:?}"),
    };
    let before = registered(&mut bench, 0);
    assert!(before.unrestricted && before.rules.is_empty(), "{before:?}");
    bench.connect(2, "c.lab", at("203.0.113.3:7000"));
    let noticed = |bench: &mut Bench| {
        let actions = bench.actions();
        let notices = actions.into_iter().map(|action| match action {
            Action::Request { channel, message: Message::AccessNotice(notice), .. } => {
                (channel.0, notice.access.unwrap())
            }
            other => panic!("{other:?}"),
        });
        notices.collect::<Vec<_>>()
    };
    bench.nms.handle_access(bench.now, Some(vec![overlay_rule("a", "b"), overlay_rule("c", "b")]));
    let told = noticed(&mut bench);
    assert_eq!(
        told.iter().map(|(channel, _)| *channel).collect::<Vec<_>>(),
        [0, 1],
        "C is not registered yet"
    );
    assert_eq!((told[0].1.rules.len(), told[1].1.rules.len()), (1, 0), "at B nobody may open anything");
    assert!(told.iter().all(|(_, told)| told.revision > before.revision && !told.unrestricted));
    assert_eq!(registered(&mut bench, 2).rules.len(), 1);

    bench.nms.handle_access(bench.now, Some(vec![overlay_rule("c", "b"), overlay_rule("a", "b")]));
    assert!(noticed(&mut bench).is_empty(), "another order is no news to any");
    bench.nms.handle_access(bench.now, Some(vec![overlay_rule("c", "a"), overlay_rule("a", "b")]));
    let last = noticed(&mut bench);
    let again = registered(&mut bench, 0).revision;
    assert!(matches!(&last[..], [(2, told)] if told.revision == again), "{last:?}");
    bench.nms.handle_access(bench.now, None);
    let lifted = noticed(&mut bench);
    assert_eq!(lifted.len(), 3);
    assert!(lifted.iter().all(|(_, told)| told.unrestricted && told.revision > last[0].1.revision));
}
