use super::*;
use crate::{
    identity::NetworkId,
    message::{BindingRequest, BindingResponse},
};
use proptest::prelude::*;
use std::{net::SocketAddr, time::Duration};

mod restore;

const NETWORK: NetworkId = NetworkId([7; 16]);

fn identity(fqdn: &str, role: Role) -> Identity {
    Identity {
        network_id: NETWORK,
        role,
        fqdn: fqdn.into(),
        virtual_address: None,
        spki_sha256: crate::identity::sha256(fqdn.as_bytes()),
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

fn request(setup: u8, peer: &str, data: u8, bind_to: Option<ConnectionId>) -> Message {
    Message::BindingRequest(BindingRequest {
        setup_id: vec![setup; 16],
        peer_fqdn: peer.into(),
        data_connection_id: cid(data).as_bytes().to_vec(),
        peer_connection_id: bind_to.map(|c| c.as_bytes().to_vec()).unwrap_or_default(),
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

    fn leg(&mut self, channel: u64, message: Message) -> (ConnectionId, u64, Vec<Action>) {
        let (answer, actions) = self.ask(channel, message);
        let Message::BindingResponse(BindingResponse { connection_id, context, .. }) = answer else {
            panic!("{answer:?}")
        };
        (ConnectionId::from_bytes(connection_id.try_into().unwrap()), context, actions)
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
        let (b, b_context, _) = self.leg(1, request(1, "a.lab", 11, None));
        let (a, a_context, _) = self.leg(0, request(1, "b.lab", 10, Some(b)));
        [(a, a_context), (b, b_context)]
    }
}

#[test]
fn binding_inserts_both_directions_with_the_bound_addresses() {
    let mut bench = Bench::new();
    let (b, _, actions) = bench.leg(1, request(1, "a.lab", 11, None));
    assert_eq!(actions, [], "an unbound leg forwards nothing");
    let (a, _, actions) = bench.leg(0, request(1, "b.lab", 10, Some(b)));
    assert!(a.is_data() && b.is_data() && a != b);
    let expected = [
        Action::Insert { cid: a, from: path(1), to: path(0), real_cid: cid(10) },
        Action::Insert { cid: b, from: path(0), to: path(1), real_cid: cid(11) },
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a_leg_can_be_bound_only_by_the_device_and_set_up_it_names_and_only_once() {
    let mut bench = Bench::new();
    let (b, _, _) = bench.leg(1, request(1, "a.lab", 11, None));
    assert_eq!(bench.refused(2, request(1, "b.lab", 12, Some(b))), RefusalCode::NotAllowed, "another device");
    assert_eq!(bench.refused(0, request(2, "b.lab", 10, Some(b))), RefusalCode::NotAllowed, "another set-up");
    assert_eq!(bench.refused(0, request(1, "c.lab", 10, Some(b))), RefusalCode::NotAllowed, "another owner");
    assert_eq!(
        bench.refused(0, request(1, "b.lab", 10, Some(cid(99)))),
        RefusalCode::NotAllowed,
        "unknown leg"
    );
    assert_eq!(bench.refused(1, request(1, "b.lab", 10, None)), RefusalCode::Malformed, "itself");
    let (_, _, actions) = bench.leg(0, request(1, "b.lab", 10, Some(b)));
    assert_eq!(actions.len(), 2);
    assert_eq!(bench.refused(0, request(1, "b.lab", 13, Some(b))), RefusalCode::NotAllowed, "bound already");
}

#[test]
fn a_repeated_request_gets_the_same_leg() {
    let mut bench = Bench::new();
    let [(a, _), (b, _)] = bench.pair();
    let (again, _, actions) = bench.leg(1, request(1, "a.lab", 11, None));
    assert_eq!((again, actions.len()), (b, 0));
    let (again, _, actions) = bench.leg(0, request(1, "b.lab", 10, Some(b)));
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
    bench.trs.handle_datagram(bench.now, Channel(0), &[]);
    assert_eq!(bench.actions(), []);
    assert_eq!((bench.trs.counters().forwarded, bench.trs.counters().dropped), (1, 3));
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
    assert_eq!(bench.refused(0, request(3, "b.lab", 3, None)), RefusalCode::NotAllowed);
    bench.leg(9, request(3, "b.lab", 3, None));
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
fn legs_end_when_nothing_comes_and_live_while_packets_flow() {
    let mut bench = Bench::new();
    let (lonely, _, _) = bench.leg(2, request(9, "a.lab", 12, None));
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
fn legs_are_bounded_per_node() {
    let mut bench = Bench::new();
    for n in 0..4 {
        bench.leg(0, request(n, "b.lab", n, None));
    }
    assert_eq!(bench.refused(0, request(9, "b.lab", 9, None)), RefusalCode::TooMany);
    bench.leg(1, request(9, "a.lab", 9, None));
}

#[test]
fn a_node_learns_from_where_it_is_seen() {
    let mut bench = Bench::new();
    let (answer, _) = bench.ask(0, Message::ObservationRequest(crate::message::ObservationRequest {}));
    let Message::ObservationResponse(response) = answer else { panic!("{answer:?}") };
    assert_eq!(endpoint::from_wire(&response.observed.unwrap()), Some(address(0)));
}

proptest! {
    #[test]
    fn odd_fields_are_refused_without_a_trace(
        setup_id: Vec<u8>, peer_fqdn in "\\PC{0,20}", data_connection_id: Vec<u8>, peer_connection_id: Vec<u8>,
    ) {
        prop_assume!(setup_id.len() != 16 || data_connection_id.len() != 8);
        let mut bench = Bench::new();
        let odd = BindingRequest { setup_id, peer_fqdn, data_connection_id, peer_connection_id };
        prop_assert_eq!(bench.refused(0, Message::BindingRequest(odd)), RefusalCode::Malformed);
    }
}
