use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::identity::NetworkId;
use crate::message::{BindingRequest, BindingResponse};

mod restore;

const NETWORK: NetworkId = NetworkId([7; 16]);

fn identity(fqdn: &str, role: Role) -> Identity {
    Identity {
        network_id: NETWORK,
        role,
        fqdn: fqdn.into(),
        virtual_address: None,
        spki_sha256: KeyHash::of(fqdn.as_bytes()),
        serial: vec![],
        not_before: 0,
        not_after: 0,
    }
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 7000))
}

/// Of a node, to an address of ours of its own.
fn path(n: u8) -> NodePath {
    NodePath { remote: address(n), local: Some([198, 51, 100, n].into()) }
}

fn cid(n: u8) -> ConnectionId {
    ConnectionId::from_random_data([n; 8])
}

/// The context of a device's leg follows from how it wants to be reached.
fn context(data: u8) -> u64 {
    relayed::MIN_CONTEXT + u64::from(data)
}

fn request(setup: u8, peer: &str, data: u8) -> Message {
    Message::BindingRequest(BindingRequest {
        setup_id: vec![setup; 16],
        peer_fqdn: peer.into(),
        data_connection_id: cid(data).as_bytes().to_vec(),
        context: context(data),
    })
}

fn trs(now: Instant, life: u8) -> Trs {
    let limits = TrsLimits { legs_per_node: 4, ..TrsLimits::default() };
    let (keys, clock) = (TrsKeys::derive(b"private key"), WallClock::new(now, 1_800_000_000));
    Trs::new(TrsConfig { network_id: NETWORK, keys, clock, limits }, [life; 32])
}

struct Bench {
    trs: Trs,
    now: Instant,
}

impl Bench {
    /// Three devices, connected.
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn new() -> Self {
        let mut bench = Self { trs: trs(Instant::now(), 1), now: Instant::now() };
        for n in 0..3 {
            bench.connect(n.into(), n);
        }
        bench
    }

    fn connect(&mut self, channel: u64, device: u8) {
        let name = ["a.lab", "b.lab", "c.lab"][usize::from(device)];
        let identity = identity(name, Role::Device);
        self.trs.handle_connected(self.now, Channel(channel), identity, path(device));
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.trs.poll_action()).collect()
    }

    fn ask(&mut self, channel: u64, message: Message) -> (Message, Vec<Action>) {
        self.trs.handle_request(self.now, Channel(channel), ExchangeId(1), message);
        let mut actions = self.actions();
        let Some(Action::Respond { message, .. }) = actions.pop() else { panic!("no answer") };
        (message, actions)
    }

    /// The leg's connection ID, that of the other end's, and what happened besides.
    fn leg(&mut self, channel: u64, message: Message) -> (ConnectionId, ConnectionId, Vec<Action>) {
        let (answer, actions) = self.ask(channel, message);
        let Message::BindingResponse(BindingResponse { connection_id, peer_connection_id, .. }) = answer
        else {
            panic!("{answer:?}")
        };
        let [own, other] =
            [connection_id, peer_connection_id].map(|cid| ConnectionId::from_bytes(cid.try_into().unwrap()));
        (own, other, actions)
    }

    fn refused(&mut self, channel: u64, message: Message) -> RefusalCode {
        let before = self.trs.sizes();
        let (answer, actions) = self.ask(channel, message);
        assert_eq!(actions, []);
        assert_eq!(self.trs.sizes(), before, "refused input changed state");
        let Message::Refusal(refusal) = answer else { panic!("{answer:?}") };
        refusal.code()
    }

    /// B's leg and A's, bound.
    fn pair(&mut self) -> [(ConnectionId, u64); 2] {
        let (b, _, _) = self.leg(1, request(1, "a.lab", 11));
        let (a, _, _) = self.leg(0, request(1, "b.lab", 10));
        [(a, context(10)), (b, context(11))]
    }

    /// What is passed on, as (channel, context, packet).
    fn forwarded(&mut self) -> Vec<(u64, u64, Vec<u8>)> {
        forwarded(self.actions())
    }
}

fn forwarded(actions: Vec<Action>) -> Vec<(u64, u64, Vec<u8>)> {
    let forwarded = |action| match action {
        Action::Forward { channel, datagram } => {
            let (context, packet) = relayed::decode(&datagram).unwrap();
            Some((channel.0, context, packet.to_vec()))
        }
        _ => None,
    };
    actions.into_iter().filter_map(forwarded).collect()
}

#[test]
fn legs_of_one_set_up_are_bound_whichever_comes_first_and_each_end_knows_both() {
    for first in [0, 1] {
        let mut bench = Bench::new();
        let asks = [(0, request(1, "b.lab", 10)), (1, request(1, "A.lab.", 11))];
        let mut asks = asks.into_iter().cycle().skip(first);
        let (channel, ask) = asks.next().unwrap();
        let (x, of_x, actions) = bench.leg(channel, ask);
        assert_eq!(actions, [], "an unbound leg forwards nothing");
        let (channel, ask) = asks.next().unwrap();
        let (y, of_y, actions) = bench.leg(channel, ask);
        assert!(x.is_data() && y.is_data() && x != y);
        assert_eq!((of_x, of_y), (y, x));
        let (a, b) = if first == 0 { (x, y) } else { (y, x) };
        let inserts = |cid| {
            actions.iter().find(|action| matches!(action, Action::Insert { cid: of, .. } if *of == cid))
        };
        let of_a = Action::Insert { cid: a, from: path(1), to: path(0), real_cid: cid(10) };
        let of_b = Action::Insert { cid: b, from: path(0), to: path(1), real_cid: cid(11) };
        assert_eq!((inserts(a), inserts(b), actions.len()), (Some(&of_a), Some(&of_b), 2));
    }
}

#[test]
fn a_leg_is_bound_only_to_that_of_the_device_and_set_up_it_names_and_only_once() {
    let mut bench = Bench::new();
    bench.leg(1, request(1, "a.lab", 11));
    let alone = |(_, _, actions): (ConnectionId, ConnectionId, Vec<Action>)| actions.is_empty();
    assert!(alone(bench.leg(2, request(1, "b.lab", 12))), "another device");
    assert!(alone(bench.leg(0, request(2, "b.lab", 13))), "another set-up");
    assert!(alone(bench.leg(0, request(1, "c.lab", 14))), "another peer");
    assert_eq!(bench.refused(1, request(1, "b.lab", 10)), RefusalCode::Malformed, "itself");
    assert!(!alone(bench.leg(0, request(1, "b.lab", 10))));
    assert!(alone(bench.leg(0, request(1, "b.lab", 15))), "bound already");
}

#[test]
fn contexts_are_their_owners_choice_within_bounds_and_once_for_each_connection() {
    let mut bench = Bench::new();
    let ask = |context, data: u8| {
        let Message::BindingRequest(request) = request(data, "b.lab", data) else { panic!() };
        Message::BindingRequest(BindingRequest { context, ..request })
    };
    for bad in [0, relayed::MIN_CONTEXT - 1, relayed::MAX_CONTEXT + 1, u64::MAX] {
        assert_eq!(bench.refused(0, ask(bad, 1)), RefusalCode::Malformed, "{bad}");
    }
    bench.leg(0, ask(relayed::MAX_CONTEXT, 1));
    assert_eq!(bench.refused(0, ask(relayed::MAX_CONTEXT, 2)), RefusalCode::Malformed, "in use");
    bench.leg(1, request(9, "a.lab", 3));
}

#[test]
fn what_comes_before_the_pair_is_bound_is_passed_on_in_order_when_it_is() {
    let mut bench = Bench::new();
    let send = |bench: &mut Bench, channel, data, packet: &[u8]| {
        bench.trs.handle_datagram(
            bench.now,
            Channel(channel),
            &relayed::encode(context(data), packet).unwrap(),
        );
    };
    send(&mut bench, 0, 10, b"before the request");
    bench.leg(0, request(1, "b.lab", 10));
    send(&mut bench, 0, 10, b"before the other end");
    send(&mut bench, 1, 11, b"of the other end");
    assert_eq!(bench.actions(), []);
    let (_, _, actions) = bench.leg(1, request(1, "a.lab", 11));
    let expected: [(u64, u64, &[u8]); 3] = [
        (0, context(10), b"of the other end"),
        (1, context(11), b"before the request"),
        (1, context(11), b"before the other end"),
    ];
    assert_eq!(
        forwarded(actions),
        expected.map(|(channel, context, packet)| (channel, context, packet.to_vec()))
    );
    send(&mut bench, 0, 10, b"bound");
    assert_eq!(bench.forwarded(), [(1, context(11), b"bound".to_vec())]);
    assert_eq!(
        (bench.trs.counters().held, bench.trs.counters().dropped, bench.trs.held.next()),
        (3, 0, None)
    );
}

#[test]
fn what_is_held_is_bounded_in_number_bytes_and_time() {
    let mut bench = Bench::new();
    let limits = bench.trs.config.limits.clone();
    let send = |bench: &mut Bench, channel, context, len: usize| {
        let before = bench.trs.counters().held;
        bench.trs.handle_datagram(
            bench.now,
            Channel(channel),
            &relayed::encode(context, &vec![1; len]).unwrap(),
        );
        bench.trs.counters().held - before
    };
    let held: u64 = (0..100).map(|_| send(&mut bench, 0, context(1), 1)).sum();
    assert_eq!(held, limits.held_packets as u64);
    let held: u64 = (0..100).map(|_| send(&mut bench, 0, context(2), limits.held_bytes / 4)).sum();
    assert_eq!(held, 4);
    let held: u64 = (3..100).map(|n| send(&mut bench, 0, context(n), limits.held_bytes)).sum();
    assert_eq!(held as usize, limits.held_bytes_per_node / limits.held_bytes - 2);
    assert_eq!(send(&mut bench, 1, context(1), 1), 1, "another node has room of its own");
    assert_eq!(send(&mut bench, 9, context(1), 1), 0, "nobody is not held for");
    assert_eq!(bench.trs.poll_timeout(), Some(bench.now + limits.held));
    bench.now += limits.held;
    bench.trs.handle_timeout(bench.now);
    assert_eq!((bench.trs.poll_timeout(), send(&mut bench, 0, context(1), limits.held_bytes)), (None, 1));
    bench.trs.handle_disconnected(bench.now, Channel(0));
    assert_eq!(bench.trs.held.next(), None, "it goes with its connection");
}

#[test]
fn what_is_held_for_a_node_is_for_few_legs_however_small_it_is() {
    let mut bench = Bench::new();
    let most = bench.trs.config.limits.held_contexts_per_node as u64;
    let flood = |bench: &mut Bench, channel| {
        let before = bench.trs.counters().held;
        for context in relayed::CONTEXTS.take(70_000) {
            let datagram = relayed::encode(context, b"1").unwrap();
            bench.trs.handle_datagram(bench.now, Channel(channel), &datagram);
        }
        bench.trs.counters().held - before
    };
    assert_eq!(flood(&mut bench, 0), most);
    assert_eq!(flood(&mut bench, 0), most, "further ones of the same few legs");
    assert_eq!(flood(&mut bench, 1), most, "another node has room of its own");
    bench.now += bench.trs.config.limits.held;
    bench.trs.handle_timeout(bench.now);
    assert_eq!(flood(&mut bench, 0), most, "whose time is up leaves room");
}

#[test]
fn a_repeated_request_gets_the_same_leg() {
    let mut bench = Bench::new();
    let [(a, _), (b, _)] = bench.pair();
    let (again, _, actions) = bench.leg(1, request(1, "a.lab", 11));
    assert_eq!((again, actions.len()), (b, 0));
    let (again, _, actions) = bench.leg(0, request(1, "b.lab", 10));
    assert_eq!((again, actions.len()), (a, 0));
    assert_eq!(bench.trs.sizes(), (3, 2));
}

#[test]
fn handshakes_pass_between_bound_legs_alone_and_do_not_grow() {
    let mut bench = Bench::new();
    let [(_, a_context), (_, b_context)] = bench.pair();
    let sent = relayed::encode(a_context, b"initial").unwrap();
    bench.trs.handle_datagram(bench.now, Channel(0), &sent);
    let forwarded = relayed::encode(b_context, b"initial").unwrap();
    assert_eq!(forwarded.len(), sent.len());
    assert_eq!(bench.actions(), [Action::Forward { channel: Channel(1), datagram: forwarded }]);
    bench.trs.handle_datagram(bench.now, Channel(2), &sent);
    bench.trs.handle_datagram(bench.now, Channel(0), &relayed::encode(a_context + 9, b"x").unwrap());
    bench.trs.handle_datagram(bench.now, Channel(0), &relayed::encode(5, b"x").unwrap());
    bench.trs.handle_datagram(bench.now, Channel(0), &[]);
    assert_eq!(bench.actions(), []);
    let counters = bench.trs.counters();
    assert_eq!((counters.forwarded, counters.held, counters.dropped), (1, 2, 2));
}

#[test]
fn a_moved_node_takes_its_bindings_along() {
    let mut bench = Bench::new();
    let [(a, _), (b, _)] = bench.pair();
    bench.trs.handle_moved(bench.now, Channel(0), path(0));
    assert_eq!(bench.actions(), [], "not moved at all");
    bench.trs.handle_seen(Channel(0), path(77).remote);
    assert_eq!(bench.actions(), [], "whoever repeats its packets from elsewhere moves nothing");
    bench.trs.handle_moved(bench.now, Channel(0), path(77));
    let expected = [
        Action::Insert { cid: a, from: path(1), to: path(77), real_cid: cid(10) },
        Action::Insert { cid: b, from: path(77), to: path(1), real_cid: cid(11) },
    ];
    assert_eq!(bench.actions(), expected);
}

#[test]
fn a_lost_connection_takes_both_entries_along() {
    let mut bench = Bench::new();
    let [(a, _), (b, _)] = bench.pair();
    bench.trs.handle_disconnected(bench.now, Channel(0));
    assert_eq!(bench.actions(), [Action::Remove { cid: a }, Action::Remove { cid: b }]);
    assert_eq!(bench.trs.sizes(), (2, 0));
    assert_eq!(bench.trs.poll_timeout(), None);
}

#[test]
fn a_newer_connection_of_a_device_replaces_the_older() {
    let mut bench = Bench::new();
    bench.pair();
    bench.connect(9, 0);
    assert!(matches!(bench.actions().as_slice(), [Action::Close { channel: Channel(0), .. }]));
    bench.trs.handle_disconnected(bench.now, Channel(0));
    assert_eq!(bench.trs.sizes(), (3, 2), "the late end of the old connection does not touch the new one");
    assert_eq!(bench.refused(0, request(3, "b.lab", 3)), RefusalCode::NotAllowed);
    bench.leg(9, request(3, "b.lab", 3));
}

#[test]
fn only_devices_of_the_network_are_served() {
    let mut bench = Bench::new();
    let stranger = Identity { network_id: NetworkId([8; 16]), ..identity("x.lab", Role::Device) };
    bench.trs.handle_connected(bench.now, Channel(8), stranger, path(8));
    bench.trs.handle_connected(bench.now, Channel(9), identity("nms.lab", Role::Nms), path(9));
    assert!(bench.actions().iter().all(|action| matches!(action, Action::Close { .. })));
    assert_eq!(bench.trs.sizes().0, 3);
}

#[test]
fn a_full_relay_says_nothing_about_who_comes() {
    let mut bench = Bench::new();
    bench.trs.config.limits.nodes = 3;
    bench.trs.handle_connected(bench.now, Channel(8), identity("d.lab", Role::Device), path(8));
    let full = bench.actions();
    assert!(matches!(&full[..], [Action::Close { code: close::UNAVAILABLE, .. }]), "{full:?}");
    bench.trs.handle_connected(bench.now, Channel(9), identity("nms.lab", Role::Nms), path(9));
    let other = bench.actions();
    assert!(matches!(&other[..], [Action::Close { code: close::NOT_ALLOWED, .. }]), "{other:?}");
}

#[test]
fn legs_end_when_nothing_comes_and_live_while_packets_flow() {
    let mut bench = Bench::new();
    let (lonely, _, _) = bench.leg(2, request(9, "a.lab", 12));
    let [(a, _), (b, _)] = bench.pair();
    bench.now += bench.trs.config.limits.unbound;
    bench.trs.handle_timeout(bench.now);
    assert_eq!(bench.trs.sizes().1, 2, "the lonely leg {lonely} is gone");
    bench.now += Duration::from_secs(500);
    bench.trs.handle_leg_activity(bench.now, a, bench.now);
    bench.now += Duration::from_secs(500);
    bench.trs.handle_timeout(bench.now);
    assert_eq!(bench.trs.sizes().1, 2, "one direction is in use");
    bench.actions();
    bench.now += Duration::from_secs(101);
    bench.trs.handle_timeout(bench.now);
    let mut removed = bench.actions();
    removed.sort_by_key(|action| matches!(action, Action::Remove { cid } if *cid == b));
    assert_eq!(removed, [Action::Remove { cid: a }, Action::Remove { cid: b }]);
}

#[test]
fn only_legs_whose_time_is_up_are_asked_about() {
    let mut bench = Bench::new();
    let [(a, _), (b, _)] = bench.pair();
    bench.now += Duration::from_secs(10);
    let (c, _, _) = bench.leg(2, request(2, "a.lab", 12));
    let (d, _, _) = bench.leg(0, request(2, "c.lab", 13));
    bench.leg(2, request(9, "b.lab", 14));
    let held = relayed::encode(context(99), b"early").unwrap();
    bench.trs.handle_datagram(bench.now, Channel(0), &held);
    let idle = |bench: &Bench| bench.trs.idle(bench.now).into_iter().collect::<BTreeSet<_>>();

    // Of what is held, and of legs that bound nobody, whoever forwards knows nothing.
    bench.now += bench.trs.config.limits.unbound;
    assert!(bench.trs.poll_timeout().unwrap() <= bench.now);
    assert_eq!(idle(&bench), [].into());
    bench.trs.handle_timeout(bench.now);
    bench.now = bench.trs.poll_timeout().unwrap();
    assert_eq!(idle(&bench), [a, b].into());
    // One direction in use keeps both, which are not asked about again before their time.
    bench.trs.handle_leg_activity(bench.now, b, bench.now);
    bench.trs.handle_timeout(bench.now);
    assert_eq!((bench.trs.sizes().1, idle(&bench)), (4, [].into()));
    bench.now = bench.trs.poll_timeout().unwrap();
    assert_eq!(idle(&bench), [c, d].into());
}

#[test]
fn legs_are_bounded_per_node() {
    let mut bench = Bench::new();
    for n in 0..4 {
        bench.leg(0, request(n, "b.lab", n));
    }
    assert_eq!(bench.refused(0, request(9, "b.lab", 9)), RefusalCode::TooMany);
    bench.leg(1, request(9, "a.lab", 9));
}

/// A set-up of A, in which B takes part as it must.
fn set_up(bench: &mut Bench, setup: u8) -> ConnectionId {
    let (b, _, _) = bench.leg(1, request(setup, "a.lab", 100 + setup));
    bench.leg(0, request(setup, "b.lab", setup));
    b
}

#[test]
fn one_device_does_not_take_the_places_of_another() {
    let mut bench = Bench::new();
    bench.trs.config.limits = TrsLimits { legs_per_node: 12, ..TrsLimits::default() };
    let in_use = set_up(&mut bench, 1);
    for setup in 2..60 {
        bench.now += Duration::from_secs(1);
        bench.trs.handle_leg_activity(bench.now, in_use, bench.now);
        set_up(&mut bench, setup);
    }
    assert_eq!(bench.trs.sizes().1, 2 * 8, "as many as a pair may have");
    assert_eq!(bench.trs.counters().displaced, 51);
    let (answer, _) = bench.ask(1, request(1, "a.lab", 101));
    let Message::BindingResponse(standing) = answer else { panic!("{answer:?}") };
    assert!(standing.bound && standing.connection_id == in_use.as_bytes(), "the tunnel that is used stays");
    let sizes = (bench.trs.sizes(), bench.trs.counters().displaced);
    assert_eq!(bench.refused(1, request(60, "a.lab", 101)), RefusalCode::Malformed, "it has this context");
    assert_eq!((bench.trs.sizes(), bench.trs.counters().displaced), sizes);
    let (c, _, _) = bench.leg(2, request(200, "b.lab", 200));
    let (b, other, _) = bench.leg(1, request(200, "c.lab", 201));
    assert_eq!((other, bench.trs.legs[&b].bound_to()), (c, Some(c)), "B has room for C");
}

#[test]
fn a_node_learns_from_where_it_is_seen() {
    let mut bench = Bench::new();
    let (answer, _) =
        bench.ask(0, Message::ObservationRequest(crate::message::ObservationRequest::default()));
    let Message::ObservationResponse(response) = answer else { panic!("{answer:?}") };
    assert_eq!(endpoint::from_wire(&response.observed.unwrap()), Some(address(0)));
}

proptest! {
    #[test]
    fn odd_fields_are_refused_without_a_trace(
        setup_id: Vec<u8>, peer_fqdn in "\\PC{0,20}", data_connection_id: Vec<u8>, context: u64,
    ) {
        prop_assume!(setup_id.len() != 16 || data_connection_id.len() != 8);
        let mut bench = Bench::new();
        let odd = BindingRequest { setup_id, peer_fqdn, data_connection_id, context };
        prop_assert_eq!(bench.refused(0, Message::BindingRequest(odd)), RefusalCode::Malformed);
    }
}
