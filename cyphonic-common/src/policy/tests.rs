use std::cell::RefCell;
use std::collections::HashSet;

use etherparse::{IpNumber, Ipv6Header, PacketBuilder};
use proptest::prelude::*;

use super::Direction::{In, Out};
use super::conversation::upper_layer;
use super::*;
use crate::packet::protocol::{DESTINATION_OPTIONS, HOP_BY_HOP, ICMPV6, ROUTING, TCP, UDP};

const CAMERAS: u32 = 7;

impl PolicyTable for HashSet<PolicyKey> {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.contains(key)
    }
}

/// A policy, and the conversations that are under way.
#[derive(Default)]
struct Tables {
    policy: HashSet<PolicyKey>,
    flows: RefCell<HashSet<Flow>>,
}

impl PolicyTable for Tables {
    fn holds(&self, key: &PolicyKey) -> bool {
        self.policy.holds(key)
    }
}

impl FlowTable for Tables {
    fn note(&self, flow: &Flow) {
        self.flows.borrow_mut().insert(*flow);
    }

    fn knows(&self, flow: &Flow) -> bool {
        self.flows.borrow().contains(flow)
    }
}

impl Tables {
    fn of(policy: &HashSet<PolicyKey>) -> Self {
        Self { policy: policy.clone(), flows: RefCell::default() }
    }

    fn judge(&self, packet: &[u8], class: u32, direction: Direction) -> Result<(), DropReason> {
        judge(packet, &Peer { address: PEER, class: Some(class) }, direction, self)
    }

    fn passes(&self, packet: &[u8], class: u32, direction: Direction) -> bool {
        match self.judge(packet, class, direction) {
            Ok(()) => true,
            Err(reason) => {
                assert_eq!(reason, DropReason::Denied);
                false
            }
        }
    }
}

const OWN: [u8; 16] = [1; 16];
const PEER: [u8; 16] = [2; 16];

fn allow(direction: Direction, class: u32, protocol: u8, port: u16) -> HashSet<PolicyKey> {
    HashSet::from([PolicyKey::new(direction, class, protocol, port)])
}

fn ip() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ipv6([1; 16], [2; 16], 64)
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    ip().udp(source, destination).write(&mut packet, b"payload").unwrap();
    packet
}

/// With none of the flags.
fn bare_tcp(source: u16, destination: u16) -> Vec<u8> {
    tcp(source, destination, false, false)
}

fn tcp(source: u16, destination: u16, syn: bool, ack: bool) -> Vec<u8> {
    let mut builder = ip().tcp(source, destination, 1, 1000);
    if syn {
        builder = builder.syn();
    }
    if ack {
        builder = builder.ack(2);
    }
    let mut packet = Vec::new();
    builder.write(&mut packet, b"").unwrap();
    packet
}

fn icmp(kind: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    ip().icmpv6_raw(kind, 0, [0; 4]).write(&mut packet, b"").unwrap();
    packet
}

/// What the peer says of a packet from `from` to `to`, of which it quotes that many bytes.
fn error(kind: u8, from: [u8; 16], to: [u8; 16], quoted: usize) -> Vec<u8> {
    let mut about = Vec::new();
    PacketBuilder::ipv6(from, to, 64).udp(4000, 53).write(&mut about, b"").unwrap();
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(PEER, OWN, 64).icmpv6_raw(kind, 0, [0; 4]);
    builder.write(&mut packet, &about[..quoted]).unwrap();
    packet
}

/// A packet whose chain of headers is `extensions`, each of eight bytes, and then `rest`.
fn with_extensions(extensions: &[u8], last: u8, rest: &[u8]) -> Vec<u8> {
    let first = extensions.first().copied().unwrap_or(last);
    let header = Ipv6Header {
        payload_length: (8 * extensions.len() + rest.len()) as u16,
        next_header: IpNumber(first),
        ..Ipv6Header::default()
    };
    let mut packet = header.to_bytes().to_vec();
    for next in extensions.iter().skip(1).chain([&last]).take(extensions.len()) {
        packet.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend(rest);
    packet
}

fn fragment(offset: u16, rest: &[u8]) -> Vec<u8> {
    fragment_of(99, offset, true, rest)
}

fn fragment_of(number: u8, offset: u16, more: bool, rest: &[u8]) -> Vec<u8> {
    // RFC 8200 §4.5: thirteen bits of offset, two reserved, "more fragments". (etherparse 0.19 writes it
    // elsewhere.)
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    let fragment = [UDP, 0, high, low, 0, 0, 0, number];
    let header = Ipv6Header {
        payload_length: (fragment.len() + rest.len()) as u16,
        next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], &fragment, rest].concat()
}

/// Of a packet before which there was none.
fn verdict(packet: &[u8], class: u32, direction: Direction, policy: &HashSet<PolicyKey>) -> bool {
    Tables::of(policy).passes(packet, class, direction)
}

#[test]
fn an_empty_policy_allows_nothing_but_errors_and_what_is_sent_in_fragments() {
    let none = HashSet::new();
    for direction in [Out, In] {
        for packet in [udp(1, 2), tcp(1, 2, true, false), tcp(1, 2, false, true), icmp(128), icmp(129)] {
            assert!(!verdict(&packet, CAMERAS, direction, &none));
        }
        for kind in [1, 2, 3, 4, 127] {
            assert!(verdict(&error(kind, OWN, PEER, 48), CAMERAS, direction, &none));
        }
        assert_eq!(verdict(&fragment(185, b"the rest"), CAMERAS, direction, &none), direction == Out);
        let first = fragment(0, &udp(1, 2)[40..]);
        assert!(!verdict(&first, CAMERAS, direction, &none), "{first:02x?}");
    }
}

#[test]
fn a_peer_tells_of_errors_of_what_went_to_it_and_of_nothing_else() {
    let tables = Tables::of(&HashSet::from([PolicyKey::everything(Out), PolicyKey::everything(In)]));
    for kind in [1, 2, 3, 4, 127] {
        assert!(tables.passes(&error(kind, OWN, PEER, 40), CAMERAS, In), "the header is enough");
        for (from, to) in [(OWN, [3; 16]), (PEER, OWN)] {
            assert!(!tables.passes(&error(kind, from, to, 48), CAMERAS, In), "{kind}: {from:?} to {to:?}");
        }
        for quoted in [0, 1, 39] {
            let judged = tables.judge(&error(kind, OWN, PEER, quoted), CAMERAS, In);
            assert_eq!(judged, Err(DropReason::Truncated), "{kind}, {quoted} bytes quoted");
        }
        assert!(
            tables.passes(&error(kind, OWN, [3; 16], 48), CAMERAS, Out),
            "this device may say what it will"
        );
    }
}

#[test]
fn a_later_fragment_comes_from_whose_first_has_passed() {
    let tables = Tables::of(&HashSet::from([PolicyKey::everything(Out), PolicyKey::new(In, 0, UDP, 53)]));
    let later = |number| fragment_of(number, 185, false, b"the rest");
    let first = |number, port| fragment_of(number, 0, true, &udp(4000, port)[40..]);
    assert!(!tables.passes(&later(1), CAMERAS, In));
    assert!(tables.passes(&first(1, 53), CAMERAS, In) && tables.passes(&later(1), CAMERAS, In));
    assert!(!tables.passes(&later(2), CAMERAS, In), "of another datagram");
    let elsewhere = Peer { address: [3; 16], class: Some(CAMERAS) };
    assert_eq!(judge(later(1).as_slice(), &elsewhere, In, &tables), Err(DropReason::Denied));
    assert!(!tables.passes(&first(3, 54), CAMERAS, In) && !tables.passes(&later(3), CAMERAS, In), "denied");
    assert!(tables.passes(&fragment_of(4, 0, false, &udp(4000, 53)[40..]), CAMERAS, In), "all of it");
    assert!(!tables.passes(&later(4), CAMERAS, In), "so no more comes");
    let flows = tables.flows.borrow();
    assert!(flows.iter().all(Flow::is_fragmented), "{flows:?}");
    assert_eq!(flows.len(), 1, "conversations have none of their places taken");
}

#[test]
fn a_first_fragment_is_no_answer_by_itself() {
    let tables = Tables::of(&HashSet::from([PolicyKey::everything(Out)]));
    let first = |number, protocol, whole: Vec<u8>| {
        let mut packet = fragment_of(number, 0, true, &whole[40..]);
        packet[40] = protocol;
        packet
    };
    let later = |number| fragment_of(number, 185, false, b"the rest");
    for (number, protocol, whole) in
        [(1, TCP, tcp(80, 4000, false, true)), (2, ICMPV6, icmp(129)), (3, ICMPV6, error(1, OWN, PEER, 48))]
    {
        assert!(tables.passes(&whole, CAMERAS, In), "whole it would be one");
        assert!(!tables.passes(&first(number, protocol, whole), CAMERAS, In), "{number}");
        assert!(!tables.passes(&later(number), CAMERAS, In), "{number}");
    }
    assert!(
        tables.passes(&first(4, ICMPV6, icmp(128)), CAMERAS, Out),
        "this device pings with large packets"
    );
    assert!(
        tables.passes(&first(5, ICMPV6, icmp(129)), CAMERAS, In) && tables.passes(&later(5), CAMERAS, In)
    );
    assert!(!tables.passes(&first(6, TCP, tcp(80, 4000, false, true)), CAMERAS, In));
}

#[test]
fn everything_is_allowed_in_one_direction_with_its_answers() {
    let out = HashSet::from([PolicyKey::everything(Out)]);
    assert!(verdict(&tcp(4000, 80, true, false), 0, Out, &out));
    assert!(verdict(&tcp(80, 4000, true, true), 0, In, &out), "an answer");
    assert!(!verdict(&tcp(4000, 80, true, false), 0, In, &out), "nobody may connect to us");
    for flags in [0, 0x01, 0x08, 0x29, 0x02, 0x06] {
        let mut probe = bare_tcp(80, 4000);
        probe[40 + 13] = flags;
        assert!(!verdict(&probe, 0, In, &out), "a probe is no answer: {flags:02x}");
    }
    for flags in [0x10, 0x11, 0x12, 0x14, 0x04, 0x18] {
        let mut answer = bare_tcp(80, 4000);
        answer[40 + 13] = flags;
        assert!(verdict(&answer, 0, In, &out), "{flags:02x}");
    }
    assert!(verdict(&icmp(129), 0, In, &out) && !verdict(&icmp(128), 0, In, &out));
}

#[test]
fn a_service_is_open_to_its_class_only_and_answers_go_back() {
    let policy = allow(Out, CAMERAS, TCP, 554);
    assert!(verdict(&tcp(4000, 554, true, false), CAMERAS, Out, &policy));
    assert!(verdict(&tcp(554, 4000, true, true), CAMERAS, In, &policy));
    for (packet, class, direction) in [
        (tcp(4000, 555, true, false), CAMERAS, Out),
        (tcp(4000, 554, true, false), CAMERAS + 1, Out),
        (tcp(4000, 554, true, false), EVERY_CLASS, Out),
        (udp(4000, 554), CAMERAS, Out),
        (tcp(4000, 554, true, false), CAMERAS, In),
        // A camera that connects from the service's port gets nowhere.
        (tcp(554, 22, true, false), CAMERAS, In),
    ] {
        assert!(!verdict(&packet, class, direction, &policy), "{packet:02x?} {class} {direction:?}");
    }
}

#[test]
fn an_answer_of_udp_comes_from_where_somebody_asked() {
    let tables = Tables::of(&HashSet::from([PolicyKey::everything(Out)]));
    assert!(!tables.passes(&udp(53, 4000), CAMERAS, In), "nobody has asked");
    assert!(tables.passes(&udp(4000, 53), CAMERAS, Out));
    assert!(tables.passes(&udp(53, 4000), CAMERAS, In));
    for unasked in [udp(53, 4001), udp(54, 4000)] {
        assert!(!tables.passes(&unasked, CAMERAS, In));
    }
    let elsewhere = Peer { address: [3; 16], class: Some(CAMERAS) };
    assert_eq!(judge(udp(53, 4000).as_slice(), &elsewhere, In, &tables), Err(DropReason::Denied));
    let other_protocol = with_extensions(&[], 132, &udp(53, 4000)[40..]);
    assert!(!tables.passes(&other_protocol, CAMERAS, In));
    // What has no ports is remembered by its protocol.
    let gre = with_extensions(&[], 47, b"GRE");
    assert!(!tables.passes(&gre, CAMERAS, In));
    assert!(tables.passes(&gre, CAMERAS, Out) && tables.passes(&gre, CAMERAS, In));
}

#[test]
fn a_permission_that_is_taken_back_ends_what_it_allowed() {
    let mut tables = Tables::of(&allow(Out, CAMERAS, UDP, 53));
    assert!(tables.passes(&udp(4000, 53), CAMERAS, Out) && tables.passes(&udp(53, 4000), CAMERAS, In));
    tables.policy = allow(Out, CAMERAS, UDP, 54);
    assert!(!tables.passes(&udp(53, 4000), CAMERAS, In));
}

#[test]
fn a_conversation_is_its_openers() {
    let mut tables = Tables::of(&allow(In, CAMERAS, UDP, 53));
    assert!(tables.passes(&udp(4000, 53), CAMERAS, In));
    assert!(tables.passes(&udp(53, 4000), CAMERAS, Out), "the answer");
    assert!(!tables.passes(&udp(53, 4001), CAMERAS, Out), "no answer");
    tables.policy = allow(Out, CAMERAS, UDP, 4000);
    assert!(!tables.passes(&udp(4000, 53), CAMERAS, In), "its own question is nobody's answer");
}

#[test]
fn what_nobody_will_ask_about_is_not_remembered() {
    let tables = Tables::of(&HashSet::from([PolicyKey::everything(Out), PolicyKey::new(In, 0, UDP, 53)]));
    for port in 4000..4100 {
        assert!(tables.passes(&udp(port, 53), CAMERAS, In));
        assert!(tables.passes(&udp(53, port), CAMERAS, Out), "the answer");
    }
    assert!(tables.passes(&tcp(4000, 80, true, false), CAMERAS, Out));
    assert!(tables.flows.borrow().is_empty(), "peers cannot fill the table");
    assert!(tables.passes(&udp(4000, 53), CAMERAS, Out));
    assert_eq!(tables.flows.borrow().len(), 1);
}

#[test]
fn answers_of_who_is_not_known_yet_will_pass() {
    let tables = Tables::of(&HashSet::from([PolicyKey::new(Out, CAMERAS, UDP, 53)]));
    let unknown = Peer { address: PEER, class: None };
    assert_eq!(judge(udp(4000, 53).as_slice(), &unknown, Out, &tables), Ok(()));
    assert_eq!(judge(icmp(129).as_slice(), &unknown, Out, &tables), Ok(()));
    assert!(tables.passes(&udp(53, 4000), CAMERAS, In));
    assert!(!tables.passes(&udp(53, 4000), CAMERAS + 1, In), "its class may not be asked");
}

#[test]
fn ports_of_zero_and_protocols_without_ports_need_wildcards() {
    let packet = with_extensions(&[], 47, b"GRE");
    assert!(!verdict(&packet, 0, Out, &allow(Out, 0, UDP, 0)));
    assert!(verdict(&packet, 0, Out, &allow(Out, 0, 47, 0)));
    assert!(verdict(&udp(9, 0), 0, Out, &allow(Out, 0, UDP, EVERY_PORT)));
    assert!(!verdict(&udp(9, 0), 0, Out, &allow(Out, 0, UDP, 1)));
}

#[test]
fn extension_headers_hide_nothing() {
    let policy = allow(In, 0, UDP, 53);
    let datagram = &udp(4000, 53)[40..];
    for chain in [&[][..], &[HOP_BY_HOP], &[HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, DESTINATION_OPTIONS]] {
        assert!(verdict(&with_extensions(chain, UDP, datagram), 0, In, &policy), "{chain:?}");
        assert!(!verdict(&with_extensions(chain, UDP, &udp(4000, 54)[40..]), 0, In, &policy), "{chain:?}");
    }
    let long = with_extensions(&[DESTINATION_OPTIONS; 5], UDP, datagram);
    assert!(!verdict(&long, 0, In, &policy), "longer than any sensible chain");
    assert!(!verdict(&long, 0, In, &allow(In, 0, DESTINATION_OPTIONS, 0)));
    assert!(verdict(&fragment(0, datagram), 0, In, &policy), "a first fragment is judged by its ports");
}

#[test]
fn what_ends_before_its_ports_is_truncated() {
    let policy = allow(In, 0, UDP, 53);
    let tables = Tables::of(&policy);
    let cut = |packet: Vec<u8>, len: usize| tables.judge(&packet[..len], 0, In);
    assert_eq!(cut(udp(4000, 53), 43), Err(DropReason::Truncated));
    assert_eq!(cut(tcp(4000, 53, true, false), 53), Err(DropReason::Truncated));
    assert_eq!(cut(icmp(128), 40), Err(DropReason::Truncated));
    assert_eq!(cut(with_extensions(&[ROUTING], UDP, b""), 41), Err(DropReason::Truncated));
    assert_eq!(tables.judge(&[0; 6], 0, In), Err(DropReason::Truncated));
}

fn entry() -> impl Strategy<Value = PolicyKey> {
    let direction = prop_oneof![Just(Out), Just(In)];
    let protocol = prop_oneof![Just(0), Just(TCP), Just(UDP), Just(ICMPV6)];
    (direction, 0u32..3, protocol, 0u16..4)
        .prop_map(|(d, class, protocol, port)| PolicyKey::new(d, class, protocol, port))
}

/// The rules written down a second time, over what etherparse read.
fn oracle(
    policy: &HashSet<PolicyKey>,
    (class, protocol, direction): (u32, u8, Direction),
    (source, destination, answering): (u16, u16, bool),
    under_way: bool,
) -> bool {
    let listed = |direction: Direction, port: u16| {
        policy.iter().any(|key| {
            key.direction == direction as u8
                && [0, class].contains(&key.class)
                && [0, protocol].contains(&key.protocol)
                && [0, port].contains(&u16::from_be_bytes(key.port))
                // A port is a port of some protocol, never of all.
                && (key.protocol != 0 || key.port == [0, 0])
        })
    };
    let answer = if protocol == TCP { answering } else { under_way };
    listed(direction, destination) || (answer && listed(direction.opposite(), source))
}

proptest! {
    #[test]
    fn agrees_with_the_rules_written_down_again(
        policy in proptest::collection::hash_set(entry(), 0..6),
        class in 0u32..3, is_tcp: bool, out: bool, source in 0u16..4, destination in 0u16..4, syn: bool, ack: bool,
    ) {
        let direction = if out { Out } else { In };
        let (packet, protocol, answering) = if is_tcp {
            (tcp(source, destination, syn, ack), TCP, ack)
        } else {
            (udp(source, destination), UDP, false)
        };
        prop_assert_eq!(
            verdict(&packet, class, direction, &policy),
            oracle(&policy, (class, protocol, direction), (source, destination, answering), false)
        );
        // As an answer, to what passed before it or did not.
        let tables = Tables::of(&policy);
        let question = if is_tcp { tcp(destination, source, true, false) } else { udp(destination, source) };
        let asked = oracle(&policy, (class, protocol, direction.opposite()), (destination, source, false), false);
        prop_assert_eq!(tables.passes(&question, class, direction.opposite()), asked);
        prop_assert_eq!(
            tables.passes(&packet, class, direction),
            oracle(&policy, (class, protocol, direction), (source, destination, answering), asked)
        );
    }

    #[test]
    fn random_bytes_are_judged_without_panic(packet: Vec<u8>, policy in proptest::collection::hash_set(entry(), 0..6), class: u32) {
        // An entry more never allows less.
        let passes = |policy: &HashSet<PolicyKey>| Tables::of(policy).judge(&packet, class, In);
        let before = passes(&policy);
        let mut more = policy;
        more.insert(PolicyKey::new(In, class, UDP, 53));
        prop_assert!(before.is_err() || passes(&more).is_ok());
        more.insert(PolicyKey::everything(In));
        let always_judged = match upper_layer(packet.as_slice(), 0) {
            Err(reason) => reason == DropReason::Denied,
            Ok(upper) => {
                let is_error = upper.protocol == ICMPV6 && packet.get(upper.at).is_some_and(|kind| *kind < 128);
                is_error || matches!(upper.part, Part::Later(_))
            }
        };
        prop_assert!(always_judged || passes(&more) != Err(DropReason::Denied), "{:?}", passes(&more));
        more.insert(PolicyKey::EVERYTHING);
        prop_assert!(passes(&more).is_ok());
    }
}
