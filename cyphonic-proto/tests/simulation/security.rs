//! Input that lies.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_proto::identity::{NetworkId, Role};
use cyphonic_proto::message::{
    Refusal, RefusalCode, RevocationNotice, RouteDirection, RouteKind, RouteWithdrawal, TunnelOffer,
    TunnelRequest, TunnelResponse, decode, encode, endpoint,
};
use cyphonic_proto::node::{Action, Node, PeerVia, ProvedPeer, ResolveError, Service, Target, TunnelControl};
use cyphonic_proto::tunnel::Suite;
use cyphonic_proto::{ExchangeId, Message, PeerConnectionId, SetupId};
use proptest::prelude::*;

use crate::dials::Shared;
use crate::net::Gate::{Open, PortRestricted, Symmetric};
use crate::world::{World, identity, virtual_address};

const SECOND: Duration = Duration::from_secs(1);

/// Device "a", registered, with nothing else going on.
pub(crate) fn calm() -> World {
    let mut world = World::new(1);
    world.add("a", Some(Open), None);
    world.add("b", Some(Open), None);
    world.settle();
    world
}

pub(crate) fn node(world: &mut World) -> &mut Node {
    world.hosts.get_mut("a").unwrap().node.as_mut().unwrap()
}

pub(crate) fn actions(world: &mut World) -> Vec<Action> {
    let node = node(world);
    std::iter::from_fn(|| node.poll_action())
        .filter(|action| !matches!(action, Action::StatusChanged))
        .collect()
}

/// B asked for A: what the NMS tells A.
pub(crate) fn direction() -> RouteDirection {
    RouteDirection {
        setup_id: vec![0xee; 16],
        kind: RouteKind::Direct.into(),
        dial: false,
        peer_fqdn: "b.lab".into(),
        peer_virtual_address: virtual_address("b").octets().to_vec(),
        peer_endpoints: vec![endpoint::to_wire("203.0.113.2:7000".parse().unwrap())],
        tunnel_key: vec![1; 32],
        reason: "because".into(),
        ..RouteDirection::default()
    }
}

pub(crate) fn request() -> TunnelRequest {
    TunnelRequest {
        setup_id: vec![0xee; 16],
        protocol_version: 1,
        data_connection_id: vec![0x99; 8],
        inner_mtu: 1400,
        suite: 2,
    }
}

fn offer() -> TunnelOffer {
    TunnelOffer {
        protocol_version: 1,
        data_connection_id: vec![0x99; 8],
        inner_mtu: 1400,
        suites: vec![7, 2, 1],
    }
}

pub(crate) fn from_b() -> PeerVia {
    PeerVia::Direct(vec!["203.0.113.2:7000".parse().unwrap()])
}

pub(crate) fn direct(world: &mut World, direction: RouteDirection) -> Vec<Action> {
    let now = world.now;
    node(world).handle_request(now, Service::Nms, ExchangeId(77), Message::RouteDirection(direction));
    actions(world)
}

/// Somebody dials A: what A offers, whoever that is.
fn arrive(world: &mut World, via: &PeerVia) -> (PeerConnectionId, TunnelOffer) {
    let (now, connection) = (world.now, PeerConnectionId(world.fresh()));
    node(world).handle_peer_arrived(now, connection, via.clone());
    let done = actions(world);
    let [Action::ExpectTunnel { local_cid }, Action::OfferPeer { connection: to, offer }] = done.as_slice()
    else {
        panic!("{done:?}")
    };
    let Message::TunnelOffer(offer) = offer else { panic!("{offer:?}") };
    assert_eq!((*to, offer.data_connection_id.as_slice()), (connection, local_cid.as_bytes().as_slice()));
    (connection, offer.clone())
}

/// It takes the offer.
fn take(
    world: &mut World,
    connection: PeerConnectionId,
    who: &cyphonic_proto::Identity,
    via: PeerVia,
    request: TunnelRequest,
) -> Vec<Action> {
    let now = world.now;
    let message = Message::TunnelRequest(request);
    let peer = ProvedPeer { via, identity: who, exporter: &Shared(1) };
    node(world).handle_peer_request(now, connection, peer, message);
    actions(world)
}

pub(crate) fn knock(
    world: &mut World,
    who: &cyphonic_proto::Identity,
    via: PeerVia,
    request: TunnelRequest,
) -> Vec<Action> {
    let (connection, _) = arrive(world, &from_b());
    take(world, connection, who, via, request)
}

/// The one answer, after which nothing of the offer is left.
pub(crate) fn refusal(actions: &[Action]) -> &Refusal {
    let [Action::ForgetTunnel { .. }, Action::RespondPeer { message: Message::Refusal(refusal), .. }] =
        actions
    else {
        panic!("{actions:?}")
    };
    refusal
}

#[test]
fn a_tunnel_request_with_the_right_certificate_and_set_up_installs_a_tunnel_before_its_answer() {
    let mut world = calm();
    let accepted = direct(&mut world, direction());
    assert!(matches!(accepted.as_slice(), [Action::Punch { .. }, Action::Respond { .. }]), "{accepted:?}");
    let (connection, offer) = arrive(&mut world, &from_b());
    assert_eq!((offer.inner_mtu, offer.suites), (1420, vec![1, 2]));
    let done = take(&mut world, connection, &identity("b"), from_b(), request());
    let [Action::InstallTunnel(tunnel), Action::RespondPeer { message, .. }] = done.as_slice() else {
        panic!("{done:?}")
    };
    assert!(!tunnel.confirmed);
    assert_eq!(
        (tunnel.peer, tunnel.inner_mtu, tunnel.suite),
        (virtual_address("b"), 1400, Suite::ChaCha20Poly1305)
    );
    assert_eq!(tunnel.local_cid.as_bytes().as_slice(), offer.data_connection_id, "as it was offered");
    let Message::TunnelResponse(response) = message else { panic!("{message:?}") };
    assert_eq!(response.setup_id, [0xee; 16]);
}

/// A device may say that it is where it is not.
#[test]
fn a_host_that_a_peer_names_is_sent_few_packets_however_many_ports_it_names() {
    let mut world = calm();
    let ports = (1..=12).map(|port| endpoint::to_wire(SocketAddr::from(([198, 51, 100, 9], port))));
    let kind = RouteKind::ResponderInitiated.into();
    let mut order = RouteDirection { kind, dial: true, ..direction() };
    order.peer_endpoints =
        ports.chain([endpoint::to_wire(SocketAddr::from(([198, 51, 100, 10], 1)))]).collect();
    let done = direct(&mut world, order);
    let punched = done.iter().find_map(|action| match action {
        Action::Punch { remotes } => Some(remotes.clone()),
        _ => None,
    });
    let dialled = done.iter().find_map(|action| match action {
        Action::DialPeer { via: PeerVia::Direct(remotes), .. } => Some(remotes.clone()),
        _ => None,
    });
    assert_eq!((dialled.as_ref().map(Vec::len), &dialled), (Some(3), &punched), "{done:?}");
}

/// A device that takes part in set-ups and refuses every tunnel that comes of them, or is never heard in one.
#[test]
fn a_peer_that_takes_no_tunnel_is_set_up_to_a_few_times_and_then_left_in_peace() {
    fn refuse(message: &mut Message) {
        if let Message::TunnelRequest(request) = message {
            request.suite = 99;
        }
    }
    fn mute(message: &mut Message) {
        if let Message::TunnelRequest(request) = message {
            request.data_connection_id = vec![0xff; 8];
        }
    }
    for (tamper, gate, most) in [(refuse as fn(&mut Message), Open, 5), (mute, Open, 4), (mute, Symmetric, 4)]
    {
        let mut world = World::new(7);
        world.add("a", Some(gate), None);
        world.add("b", Some(gate), None);
        world.settle();
        world.tamper = Some(tamper);
        world.resolves("a", "b").unwrap();
        world.run(120 * SECOND);
        let after = world.hosts["a"].installs;
        assert!((1..=most).contains(&after), "{after} in two minutes");
        world.run(240 * SECOND);
        assert_eq!(world.hosts["a"].installs, after);
        // It is no reason not to try when somebody asks.
        world.tamper = None;
        world.resolves("a", "b").unwrap();
        assert!(world.talk("a", "b", 5 * SECOND));
    }
}

#[test]
fn a_direction_with_the_number_of_a_set_up_with_another_is_an_error_and_not_waited_for() {
    let mut world = World::new(7);
    for name in ["a", "b", "c"] {
        world.add(name, Some(Open), None);
    }
    world.settle();
    world.tamper = Some(|message| {
        if let Message::RouteDirection(direction) = message {
            direction.setup_id = vec![7; 16];
        }
    });
    let (first, second) = (world.resolve("a", "b"), world.resolve("a", "c"));
    assert!(world.answer(first).is_ok());
    assert!(matches!(world.answer(second), Err(ResolveError::Protocol { .. })));
    world.tamper = None;
    world.resolves("a", "c").unwrap();
    assert!(world.talk("a", "c", SECOND));
}

#[test]
fn a_request_that_is_faster_than_the_nms_waits_for_its_word() {
    let mut world = calm();
    let (connection, _) = arrive(&mut world, &from_b());
    assert!(take(&mut world, connection, &identity("b"), from_b(), request()).is_empty());
    let done = direct(&mut world, direction());
    let kinds: Vec<_> = done.iter().map(std::mem::discriminant).collect();
    assert!(matches!(&done[2], Action::InstallTunnel(_)) && kinds.len() == 4, "{done:?}");
    assert!(matches!(&done[3], Action::RespondPeer { connection: to, .. } if *to == connection), "{done:?}");
    // The wrong device is refused just as late.
    let (connection, _) = arrive(&mut world, &from_b());
    let second = TunnelRequest { setup_id: vec![0xef; 16], ..request() };
    assert!(take(&mut world, connection, &identity("c"), from_b(), second).is_empty());
    let done = direct(&mut world, RouteDirection { setup_id: vec![0xef; 16], ..direction() });
    assert_eq!(refusal(&done[2..]).code(), RefusalCode::NotAllowed);
}

#[test]
fn a_request_without_the_nms_s_word_is_refused_in_the_end_and_an_offer_that_nobody_takes_ends() {
    let mut world = calm();
    let (taken, _) = arrive(&mut world, &from_b());
    assert!(take(&mut world, taken, &identity("b"), from_b(), request()).is_empty());
    let (ignored, _) = arrive(&mut world, &from_b());
    let (left, _) = arrive(&mut world, &from_b());
    let now = world.now;
    node(&mut world).handle_peer_left(now, left);
    assert!(matches!(actions(&mut world).as_slice(), [Action::ForgetTunnel { .. }]));
    node(&mut world).handle_timeout(now + 5 * SECOND);
    let done = actions(&mut world);
    let answer = |action: &Action| match action {
        Action::RespondPeer { connection, message: Message::Refusal(_) } => Some((*connection, true)),
        Action::ClosePeer { connection } => Some((*connection, false)),
        _ => None,
    };
    assert_eq!(done.iter().filter_map(answer).collect::<Vec<_>>(), [(taken, true), (ignored, false)]);
    let forgotten = done.iter().filter(|action| matches!(action, Action::ForgetTunnel { .. })).count();
    assert_eq!(forgotten, 2);
    assert!(matches!(
        direct(&mut world, direction()).as_slice(),
        [Action::Punch { .. }, Action::Respond { .. }]
    ));
}

#[test]
fn what_is_offered_to_strangers_is_bounded() {
    let mut world = calm();
    let now = world.now;
    let mut offered = 0;
    for n in 0..5_000 {
        node(&mut world).handle_peer_arrived(now, PeerConnectionId(n), from_b());
        let done = actions(&mut world);
        offered += usize::from(done.iter().any(|action| matches!(action, Action::OfferPeer { .. })));
        assert!(offered > n as usize || matches!(done.as_slice(), [Action::ClosePeer { .. }]), "{done:?}");
    }
    assert_eq!(offered, 1_024);
}

#[test]
fn a_wrong_certificate_identity_is_refused_and_changes_nothing() {
    let mut world = calm();
    direct(&mut world, direction());
    let before = node(&mut world).status();
    let wrong = [
        identity("c"),
        cyphonic_proto::Identity { virtual_address: Some(virtual_address("c")), ..identity("b") },
        cyphonic_proto::Identity { fqdn: "c.lab".into(), ..identity("b") },
        cyphonic_proto::Identity { role: Role::Nms, ..identity("b") },
        cyphonic_proto::Identity { network_id: NetworkId([8; 16]), ..identity("b") },
        cyphonic_proto::Identity { virtual_address: None, ..identity("b") },
    ];
    for who in wrong {
        let answer = knock(&mut world, &who, from_b(), request());
        assert_eq!(refusal(&answer).code(), RefusalCode::NotAllowed, "{who:?}");
        assert_eq!(node(&mut world).status(), before);
    }
    let answer = knock(&mut world, &identity("b"), from_b(), request());
    assert!(matches!(answer[0], Action::InstallTunnel(_)), "the right one still gets in: {answer:?}");
}

#[test]
fn a_forged_set_up_is_refused_and_changes_nothing() {
    let mut world = calm();
    direct(&mut world, direction());
    let before = node(&mut world).status();
    let forged = [
        TunnelRequest { setup_id: vec![0xee; 15], ..request() },
        TunnelRequest { setup_id: vec![], ..request() },
        TunnelRequest { data_connection_id: vec![0x19; 8], ..request() },
        TunnelRequest { data_connection_id: vec![], ..request() },
        TunnelRequest { inner_mtu: 1279, ..request() },
        TunnelRequest { suite: 9, ..request() },
        TunnelRequest { suite: 0, ..request() },
        TunnelRequest { protocol_version: 0, ..request() },
    ];
    for forged in forged {
        let answer = knock(&mut world, &identity("b"), from_b(), forged.clone());
        refusal(&answer);
        assert_eq!(node(&mut world).status(), before, "{forged:?}");
    }
    let relay = PeerVia::Relay { trs: "trs.lab".into(), context: 0x4000 };
    refusal(&knock(&mut world, &identity("b"), relay, request()));
    assert!(matches!(knock(&mut world, &identity("b"), from_b(), request())[0], Action::InstallTunnel(_)));
    refusal(&knock(&mut world, &identity("b"), from_b(), request()));
    assert_eq!(node(&mut world).status().peers[0].tunnels.len(), 1, "a set-up yields one tunnel");
}

#[test]
fn an_nms_cannot_give_a_name_another_address_or_send_packets_to_this_host() {
    let mut world = calm();
    let before = node(&mut world).status();
    let bad = [
        RouteDirection { peer_virtual_address: virtual_address("c").octets().to_vec(), ..direction() },
        RouteDirection { peer_fqdn: "c.lab".into(), ..direction() },
        RouteDirection { peer_fqdn: "b.example".into(), ..direction() },
        RouteDirection {
            peer_fqdn: "a.lab".into(),
            peer_virtual_address: virtual_address("a").octets().to_vec(),
            ..direction()
        },
        RouteDirection { tunnel_key: vec![1; 31], ..direction() },
        RouteDirection { setup_id: vec![], ..direction() },
        RouteDirection { kind: 0, ..direction() },
        RouteDirection { kind: 99, ..direction() },
        RouteDirection { kind: RouteKind::Relay.into(), ..direction() },
        RouteDirection { dial: true, ..direction() },
        RouteDirection { initiator: true, ..direction() },
    ];
    for bad in bad {
        let shown = format!("{bad:?}");
        let answer = direct(&mut world, bad);
        assert!(
            matches!(answer.as_slice(), [Action::Respond { message: Message::Refusal(_), .. }]),
            "{answer:?}"
        );
        assert_eq!(node(&mut world).status(), before, "{shown}");
    }
    let local = ["127.0.0.1:53", "[::ffff:127.0.0.1]:53", "[fe80::1]:53", "0.0.0.0:53", "255.255.255.255:53"];
    let peer_endpoints = local.iter().map(|a| endpoint_bytes(a)).collect();
    let answer = direct(&mut world, RouteDirection { peer_endpoints, ..direction() });
    assert!(matches!(&answer[0], Action::Punch { remotes } if remotes.is_empty()), "{answer:?}");
}

fn endpoint_bytes(text: &str) -> cyphonic_proto::message::Endpoint {
    let address: SocketAddr = text.parse().unwrap();
    let bytes = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    cyphonic_proto::message::Endpoint { address: bytes, port: address.port().into() }
}

#[test]
fn where_this_end_may_be_reached_is_told_again_when_it_changes_before_the_peers_first_answer() {
    let mut world = calm();
    let kind = RouteKind::ResponderInitiated.into();
    direct(&mut world, RouteDirection { kind, dial: true, ..direction() });
    let now = world.now;
    let (setup, message) = (SetupId([0xee; 16]), Message::TunnelOffer(offer()));
    let peer = ProvedPeer { via: from_b(), identity: &identity("b"), exporter: &Shared(1) };
    node(&mut world).handle_peer_offer(now, setup, peer, message);
    let lists = |world: &mut World| {
        let sets = actions(world).into_iter().filter_map(|action| match action {
            Action::SendControl { control: TunnelControl::Candidates(set), .. } => Some(set),
            _ => None,
        });
        sets.collect::<Vec<_>>()
    };
    let mapped: SocketAddr = "198.51.100.9:7000".parse().unwrap();
    let first = lists(&mut world);
    assert!(first.len() == 1 && first[0].sequence == 1 && !first[0].endpoints.contains(&mapped), "{first:?}");
    node(&mut world).handle_port_mappings(now, &[mapped]);
    node(&mut world).handle_timeout(now + SECOND / 10);
    let next = lists(&mut world);
    assert!(next[0].sequence == 2 && next[0].endpoints.contains(&mapped), "{next:?}");
}

#[test]
fn a_wrong_identity_at_the_end_of_a_dial_gives_no_tunnel_and_its_own_error() {
    let mut world = World::new(1);
    world.add("a", Some(Symmetric), None);
    world.add("b", Some(PortRestricted), None);
    world.settle();
    let query = world.resolve("a", "b");
    let dialling = |world: &World| !world.dials.is_empty();
    assert!(world.run_while_not(SECOND, dialling));
    let setup = world.hosts["a"].node.as_ref().map(|_| ()).and_then(|()| world_setup(&world));
    let via = world.dials.values().next().unwrap().via();
    world.with_node("a", 0, |node, now| {
        let message = Message::TunnelOffer(offer());
        let peer = ProvedPeer { via, identity: &identity("c"), exporter: &Shared(1) };
        node.handle_peer_offer(now, setup.unwrap(), peer, message);
    });
    let error = world.answer(query).unwrap_err();
    assert!(
        matches!(&error, ResolveError::CertificateMismatch { what } if what.contains("c.lab")),
        "{error}"
    );
    assert_eq!(world.hosts["a"].installs, 0);
}

fn world_setup(world: &World) -> Option<SetupId> {
    world.dials.values().next().map(crate::dials::Dial::setup)
}

#[test]
fn a_request_that_is_not_the_nms_s_to_make_is_refused() {
    let mut world = calm();
    let now = world.now;
    let from_trs = Service::Trs("trs.lab".into());
    node(&mut world).handle_request(now, from_trs, ExchangeId(1), Message::RouteDirection(direction()));
    let answer = actions(&mut world);
    assert!(
        matches!(answer.as_slice(), [Action::Respond { message: Message::Refusal(_), .. }]),
        "{answer:?}"
    );
}

#[test]
fn a_service_that_never_answers_is_not_waited_for() {
    let mut world = calm();
    let (start, query) = (world.now, cyphonic_proto::QueryId(1 << 40));
    node(&mut world).handle_resolve(start, query, Target::Name("b.lab".into()));
    let asked = actions(&mut world);
    let [Action::Request { exchange, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    node(&mut world).handle_timeout(start + 3 * SECOND);
    let given_up = actions(&mut world);
    assert!(matches!(given_up.first(), Some(Action::CancelRequest { exchange: other }) if other == exchange));
    // And whether it is there at all is asked.
    assert!(
        matches!(given_up.get(1..), Some([Action::Request { service: Service::Nms, .. }])),
        "{given_up:?}"
    );
    node(&mut world).handle_timeout(start + 4 * SECOND);
    let answered = actions(&mut world).into_iter().find_map(|action| match action {
        Action::Answer { result: Err(error), .. } => Some(error),
        _ => None,
    });
    let error = answered.unwrap();
    assert!(matches!(&error, ResolveError::TimedOut { .. } | ResolveError::NotConnected { .. }), "{error}");
}

#[test]
fn floods_meet_limits_and_every_request_an_answer() {
    let mut world = calm();
    let mut refused = 0;
    for n in 0..2000u16 {
        let setup_id = [[0; 14].as_slice(), &n.to_be_bytes()].concat();
        let (peer_fqdn, peer) = (format!("p{n}.lab"), virtual_address(&format!("p{n}")));
        let peer_virtual_address = peer.octets().to_vec();
        let direction = RouteDirection { setup_id, peer_fqdn, peer_virtual_address, ..direction() };
        let answers = direct(&mut world, direction);
        let responses: Vec<_> =
            answers.iter().filter(|action| matches!(action, Action::Respond { .. })).collect();
        assert_eq!(responses.len(), 1);
        refused += u32::from(matches!(responses[0], Action::Respond { message: Message::Refusal(_), .. }));
    }
    assert!(refused >= 1400, "{refused}");
    let now: Instant = world.now;
    for n in 0..10_000 {
        let target = Target::Name(format!("flood-{n}.lab"));
        node(&mut world).handle_resolve(now, cyphonic_proto::QueryId(1_000_000 + n), target);
    }
    let waiting =
        actions(&mut world).iter().filter(|action| matches!(action, Action::Request { .. })).count();
    assert!(waiting <= 4096, "{waiting}");
    assert!(node(&mut world).status().peers.len() <= 4096);
}

#[test]
fn a_full_table_forgets_neither_a_peer_that_is_kept_nor_one_whose_set_up_is_under_way() {
    let mut world = calm();
    world.with_node("a", 0, |node, now| node.handle_keep_open(now, &["nobody".into()]));
    world.run(SECOND);
    direct(&mut world, direction());
    let now = world.now;
    for n in 0..5000 {
        let target = Target::Name(format!("flood-{n}.lab"));
        node(&mut world).handle_resolve(now, cyphonic_proto::QueryId(1_000_000 + n), target);
    }
    actions(&mut world);
    let peers = node(&mut world).status().peers;
    assert_eq!(peers.len(), 4096);
    for name in ["nobody", "b"] {
        assert!(peers.iter().any(|peer| peer.address == virtual_address(name)), "{name}");
    }
    knock(&mut world, &identity("b"), from_b(), request());
    let notice = RevocationNotice { fqdn: vec!["b.lab".into()] };
    node(&mut world).handle_request(now, Service::Nms, ExchangeId(78), Message::RevocationNotice(notice));
    let done = actions(&mut world);
    assert!(done.iter().any(|action| matches!(action, Action::RemoveTunnel { .. })), "{done:?}");
}

/// Any message that the codec lets through.
fn any_message() -> impl Strategy<Value = Message> {
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    let field = prop_oneof![
        Just(vec![0xee; 16]),
        Just(virtual_address("b").octets().to_vec()),
        Just(vec![0x99; 8]),
        bytes
    ];
    (0..9u8, field.clone(), field.clone(), field, any::<u32>(), any::<bool>(), "[a-c]\\.lab|\\PC{0,10}")
        .prop_map(|(kind, x, y, z, n, flag, text)| match kind {
            0 => Message::RouteDirection(RouteDirection {
                setup_id: x,
                kind: i32::try_from(n % 6).unwrap(),
                dial: flag,
                peer_fqdn: text,
                peer_virtual_address: y,
                tunnel_key: z,
                initiator: !flag,
                ..direction()
            }),
            1 => Message::TunnelRequest(TunnelRequest {
                setup_id: x,
                data_connection_id: y,
                inner_mtu: n,
                ..request()
            }),
            2 => Message::TunnelOffer(TunnelOffer { data_connection_id: y, inner_mtu: n, ..offer() }),
            3 => Message::BindingResponse(cyphonic_proto::message::BindingResponse {
                connection_id: x.clone(),
                peer_connection_id: x,
                ticket: y,
                ticket_lifetime_s: n,
                reset_token: z,
                bound: flag,
            }),
            4 => Message::RegistrationResponse(cyphonic_proto::message::RegistrationResponse {
                virtual_address: x,
                zone: text,
                ..Default::default()
            }),
            5 => Message::TunnelResponse(TunnelResponse { setup_id: x, protocol_version: n }),
            6 => Message::RouteWithdrawal(RouteWithdrawal {
                setup_id: x,
                refusal: flag.then(|| Refusal { code: i32::try_from(n % 20).unwrap(), ..Refusal::default() }),
            }),
            7 => Message::RevocationNotice(RevocationNotice { fqdn: vec![text, "b.lab".into()] }),
            _ => Message::Refusal(Refusal {
                code: i32::try_from(n % 20).unwrap(),
                reason: text,
                retry_after_ms: n,
            }),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the services and peers send, and whenever: no panic, and no tunnel without the right certificate.
    #[test]
    fn no_message_makes_a_machine_panic(
        messages in prop::collection::vec((any_message(), 0..4u8, 0..40u64), 1..60), wait in 0..2000u64,
    ) {
        let mut world = calm();
        for (message, from, exchange) in messages {
            let message = decode(&encode(&message)).unwrap();
            let (now, exchange) = (world.now, ExchangeId(exchange));
            let node = node(&mut world);
            let c = identity("c");
            let peer = ProvedPeer { via: from_b(), identity: &c, exporter: &Shared(1) };
            match from {
                0 => node.handle_request(now, Service::Nms, exchange, message),
                1 => node.handle_response(now, exchange, message),
                2 => {
                    let connection = PeerConnectionId(exchange.0);
                    node.handle_peer_arrived(now, connection, from_b());
                    node.handle_peer_request(now, connection, peer, message);
                }
                _ => {
                    let setup = SetupId([0xee; 16]);
                    node.handle_peer_offer(now, setup, peer, message.clone());
                    node.handle_peer_response(now, setup, message);
                }
            }
            let done = actions(&mut world);
            let installed = done.iter().any(|action| matches!(action, Action::InstallTunnel(_)));
            prop_assert!(!installed, "a tunnel with the wrong device: {done:?}");
        }
        let later = world.now + Duration::from_millis(wait);
        node(&mut world).handle_timeout(later);
        if let Some(nms) = &mut world.cloud.nms {
            while nms.poll_action().is_some() {}
        }
    }
}
