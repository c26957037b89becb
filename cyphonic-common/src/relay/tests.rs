//! The relay over byte slices.

mod frames;

use std::net::{IpAddr, SocketAddr};

use frames::{Spec, build, parse, payload};
use proptest::prelude::*;

use super::table::{Table, TableLeg};
use super::*;
use crate::cid::ConnectionId;
use crate::drop_reason::DropReason;

const PORT: u16 = 4433;
const HEADROOM: usize = 64;
const NOW: u64 = 5_000_000_000;
const HOP: Hop = Hop::new([0xd; 6], [0x5; 6], Some(7));
const VIRTUAL: ConnectionId = ConnectionId::from_random_data([0x91, 2, 3, 4, 5, 6, 7, 8]);
const REAL: ConnectionId = ConnectionId::from_random_data([0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 7, 8]);

/// The two ends and the relay's address towards each.
#[derive(Debug, Clone, Copy)]
struct Ends {
    from: SocketAddr,
    local: IpAddr,
    source: IpAddr,
    to: SocketAddr,
}

fn ends(from_v6: bool, to_v6: bool) -> Ends {
    let pick = |v6: bool, v4: &'static str, other: &'static str| if v6 { other } else { v4 };
    Ends {
        from: pick(from_v6, "192.0.2.10:1111", "[2001:db8::10]:1111").parse().unwrap(),
        local: pick(from_v6, "192.0.2.1", "2001:db8::1").parse().unwrap(),
        source: pick(to_v6, "198.51.100.1", "2001:db8:1::1").parse().unwrap(),
        to: pick(to_v6, "198.51.100.20:2222", "[2001:db8:1::20]:2222").parse().unwrap(),
    }
}

fn binding(ends: &Ends) -> Leg {
    let Ends { from, local, source, to } = *ends;
    Leg { from, local: Some(local), to, source: Some(source), real_cid: REAL, rate: RelayRate::UNLIMITED }
}

/// The relay's addresses.
fn own() -> OwnAddresses {
    let mut own = OwnAddresses::default();
    for (from_v6, to_v6) in [(false, false), (true, true)] {
        let ends = ends(from_v6, to_v6);
        let _ = (own.add(ends.local), own.add(ends.source));
    }
    own
}

fn leg(binding: &Leg) -> PackedLeg {
    PackedLeg::new(VIRTUAL, binding, &own()).unwrap()
}

fn arriving(ends: &Ends, rest: &[u8]) -> Spec {
    Spec {
        source: ends.from,
        destination: SocketAddr::new(ends.local, PORT),
        traffic_class: 0,
        hop_limit: 64,
        label: 0,
        payload: payload(VIRTUAL, rest),
        checksum: true,
        macs: ([1; 6], [2; 6]),
    }
}

/// What must leave for what came, from nothing.
fn leaving(ends: &Ends, came: &Spec) -> Spec {
    let mut payload = came.payload.clone();
    payload[1..9].copy_from_slice(REAL.as_bytes());
    let same = ends.from.is_ipv4() == ends.to.is_ipv4();
    Spec {
        source: SocketAddr::new(ends.source, PORT),
        destination: ends.to,
        traffic_class: came.traffic_class,
        hop_limit: came.hop_limit - 1,
        label: if same { came.label } else { 0 },
        payload,
        checksum: came.checksum,
        macs: HOP.links(),
    }
}

/// Runs the relay with one leg, and returns the verdict, the frame that is left, and the leg's state.
fn run_with(
    frame: &[u8],
    headroom: usize,
    entry: LegEntry,
    config: &RelayConfig,
    route: Result<Hop, PassReason>,
) -> (Verdict, Vec<u8>, RelayState) {
    let (legs, own) = ([TableLeg::new(entry)], own());
    let table = Table { legs: &legs, own: &own, route: |_: &Departure| route, now_ns: NOW };
    let mut buffer = vec![0xee; headroom];
    buffer.extend_from_slice(frame);
    let mut frame = SliceFrame::new(&mut buffer, headroom);
    let verdict = relay(&mut frame, config, &table);
    (verdict, frame.bytes().to_vec(), legs[0].state())
}

fn run(frame: &[u8], binding: &Leg) -> (Verdict, Vec<u8>, RelayState) {
    let entry = LegEntry::new(leg(binding));
    run_with(frame, HEADROOM, entry, &RelayConfig::new(PORT, false), Ok(HOP))
}

fn verdict(frame: &[u8]) -> Verdict {
    let (verdict, after, state) = run(frame, &binding(&ends(false, true)));
    if matches!(verdict, Verdict::Pass(_)) {
        assert_eq!(after, frame, "passed, but touched");
    }
    if !matches!(verdict, Verdict::Forward { .. }) {
        assert_eq!(state, RelayState::default());
    }
    verdict
}

proptest! {
    #[test]
    fn what_leaves_is_byte_for_byte_what_should(
        from_v6: bool, to_v6: bool, rest in proptest::collection::vec(any::<u8>(), 0..1400), traffic_class: u8,
        hop_limit in 2u8.., label: u16, padding in 0usize..30,
    ) {
        let ends = ends(from_v6, to_v6);
        let came = Spec { traffic_class, hop_limit, label, ..arriving(&ends, &rest) };
        let padding = vec![0x77; padding];
        let frame = [build(&came), padding.clone()].concat();
        let (verdict, left, state) = run(&frame, &binding(&ends));
        let family = |v6| if v6 { Family::V6 } else { Family::V4 };
        let expected = Verdict::Forward { from: family(from_v6), to: family(to_v6), redirect: Some(7) };
        // A right checksum that looks like a partial one is left to userspace.
        if verdict == Verdict::Pass(PassReason::PartialChecksum) {
            prop_assert_eq!(left, frame);
            return Ok(());
        }
        prop_assert_eq!(verdict, expected);
        prop_assert_eq!(left, [build(&leaving(&ends, &came)), padding].concat());
        let bytes = came.payload.len() as u64;
        prop_assert_eq!(state, RelayState { packets: 1, bytes, last_seen_ns: NOW, ..RelayState::default() });
    }

    /// The promise towards every other user of the host: frames that are not the relay's stay as they are; and towards
    /// the receivers: what leaves is well-formed and no longer than what came.
    #[test]
    fn damaged_frames_pass_untouched_or_leave_well_formed(
        from_v6: bool, to_v6: bool, rest in proptest::collection::vec(any::<u8>(), 0..60),
        damage in proptest::collection::vec((0usize..130, any::<u8>()), 0..3), cut in proptest::option::weighted(0.2, 0usize..160), padding in 0usize..4,
        merged: bool, checksum: bool, headroom in 0usize..40, source: bool,
    ) {
        let ends = ends(from_v6, to_v6);
        let mut frame = build(&Spec { checksum, ..arriving(&ends, &rest) });
        frame.extend(vec![0; padding]);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) { *byte = value; }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        let source = source.then_some(ends.source);
        let leg = leg(&Leg { source, ..binding(&ends) });
        let config = RelayConfig::new(PORT, merged);
        let (verdict, left, state) = run_with(&frame, headroom, LegEntry::new(leg), &config, Ok(HOP));
        let Verdict::Forward { .. } = verdict else {
            prop_assert_eq!(&left, &frame);
            prop_assert_eq!(state, RelayState::default());
            return Ok(());
        };
        let (came, went) = (parse(&frame), parse(&left));
        prop_assert_eq!(came.0, SocketAddr::new(ends.from.ip(), ends.from.port()));
        prop_assert_eq!(came.1, SocketAddr::new(ends.local, PORT));
        prop_assert_eq!(went.1, ends.to);
        prop_assert_eq!(&went.2[1..9], REAL.as_bytes());
        prop_assert_eq!((went.2.len(), &went.2[9..], went.2[0]), (came.2.len(), &came.2[9..], came.2[0]));
        prop_assert_eq!(came.3, went.3, "a wrong checksum must not be made right, nor a right one wrong");
        prop_assert_eq!(state.bytes, came.2.len() as u64);
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes: Vec<u8>, headroom in 0usize..40) {
        let leg = leg(&binding(&ends(true, true)));
        let config = RelayConfig::new(PORT, false);
        let (verdict, left, _) = run_with(&bytes, headroom, LegEntry::new(leg), &config, Ok(HOP));
        prop_assert!(matches!(verdict, Verdict::Pass(_)));
        prop_assert_eq!(left, bytes);
    }
}

#[test]
fn what_is_not_the_relays_passes() {
    let ends = ends(false, true);
    let good = build(&arriving(&ends, &[0; 30]));
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    // An IPv4 header whose checksum is right again.
    let with_ip = |change: &dyn Fn(&mut [u8])| {
        with(&|frame| {
            change(&mut frame[14..34]);
            frame[24..26].fill(0);
            let sum = frame[14..34]
                .chunks(2)
                .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
                .sum::<u32>();
            let sum = (sum >> 16) + (sum & 0xffff);
            frame[24..26].copy_from_slice(&(!((sum >> 16) + sum) as u16).to_be_bytes());
        })
    };
    let cases = [
        ("ARP", with(&|frame| frame[12..14].copy_from_slice(&[8, 6])), PassReason::NotIp),
        ("VLAN", with(&|frame| frame[12..14].copy_from_slice(&[0x81, 0])), PassReason::NotIp),
        ("IPv6 by type", with(&|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd])), PassReason::Malformed),
        ("no Ethernet header", good[..13].to_vec(), PassReason::Malformed),
        ("half an IP header", good[..33].to_vec(), PassReason::Malformed),
        ("half a UDP header", good[..41].to_vec(), PassReason::Malformed),
        ("cut", good[..good.len() - 1].to_vec(), PassReason::Malformed),
        ("options", with_ip(&|ip| ip[0] = 0x46), PassReason::Options),
        ("a short header", with_ip(&|ip| ip[0] = 0x44), PassReason::Malformed),
        ("a first fragment", with_ip(&|ip| ip[6] = 0x20), PassReason::Fragment),
        ("a later fragment", with_ip(&|ip| ip[7] = 1), PassReason::Fragment),
        ("TCP", with_ip(&|ip| ip[9] = 6), PassReason::NotUdp),
        ("a wrong header checksum", with(&|frame| frame[24] ^= 1), PassReason::Malformed),
        ("a shorter IP packet", with_ip(&|ip| ip[3] -= 1), PassReason::Malformed),
        ("another port", with(&|frame| frame[37] ^= 1), PassReason::OtherPort),
        ("a UDP length below the header's", with(&|frame| frame[38..40].fill(0)), PassReason::Malformed),
        ("a shorter UDP datagram", with(&|frame| frame[39] -= 1), PassReason::Malformed),
        ("a long header", with(&|frame| frame[42] |= 0x80), PassReason::Signalling),
        ("a signalling ID", with(&|frame| frame[43] &= 0x7f), PassReason::Signalling),
        ("no fixed bit", with(&|frame| frame[42] = 0), PassReason::NotQuic),
        ("an unknown ID", with(&|frame| frame[50] ^= 1), PassReason::UnknownConnectionId),
        ("no checksum from IPv4 to IPv6", with(&|frame| frame[40..42].fill(0)), PassReason::NoChecksum),
    ];
    for (name, frame, reason) in cases {
        assert_eq!(verdict(&frame), Verdict::Pass(reason), "{name}");
    }
    let prefix = build(&Spec { payload: payload(VIRTUAL, &[])[..8].to_vec(), ..arriving(&ends, &[]) });
    assert_eq!(
        verdict(&[prefix, vec![0; 10]].concat()),
        Verdict::Pass(PassReason::NotQuic),
        "a prefix of an ID"
    );
}

#[test]
fn ipv6_with_extension_headers_passes() {
    let frame = build(&arriving(&ends(true, false), &[0; 30]));
    for next_header in [0, 43, 44, 51, 60, 58, 6] {
        let mut frame = frame.clone();
        frame[20] = next_header;
        let (verdict, left, _) = run(&frame, &binding(&ends(true, false)));
        assert_eq!((verdict, left), (Verdict::Pass(PassReason::NotUdp), frame), "{next_header}");
    }
    let mut unsummed = frame;
    unsummed[60..62].fill(0);
    let (verdict, left, _) = run(&unsummed, &binding(&ends(true, true)));
    assert_eq!((verdict, left), (Verdict::Pass(PassReason::NoChecksum), unsummed));
}

#[test]
fn only_the_legs_sender_may_use_it_and_only_at_the_relays_address() {
    let good = ends(false, true);
    let spec = arriving(&good, &[0; 30]);
    let port = SocketAddr::new(good.from.ip(), good.from.port() + 1);
    let ip = SocketAddr::new("192.0.2.11".parse().unwrap(), good.from.port());
    let local = SocketAddr::new("192.0.2.2".parse().unwrap(), PORT);
    let wrong = [
        Spec { source: port, ..spec.clone() },
        Spec { source: ip, ..spec.clone() },
        Spec { destination: local, ..spec.clone() },
        // The sender's IPv4 address, mapped, in an IPv6 packet.
        Spec {
            source: "[::ffff:192.0.2.10]:1111".parse().unwrap(),
            destination: "[::ffff:192.0.2.1]:4433".parse().unwrap(),
            ..spec.clone()
        },
    ];
    for spec in wrong {
        assert_eq!(verdict(&build(&spec)), Verdict::Pass(PassReason::UnboundSource), "{spec:?}");
    }
    // A leg that names no address of the relay's takes every one.
    let any = Leg { local: None, ..binding(&good) };
    let (verdict, ..) = run(&build(&Spec { destination: local, ..spec }), &any);
    assert!(matches!(verdict, Verdict::Forward { .. }), "{verdict:?}");
}

#[test]
fn a_packet_at_its_last_hop_goes_no_further() {
    for hop_limit in [0, 1] {
        let frame = build(&Spec { hop_limit, ..arriving(&ends(false, true), &[0; 30]) });
        assert_eq!(verdict(&frame), Verdict::Drop(DropReason::HopLimit));
    }
}

#[test]
fn a_missing_checksum_stays_missing_between_ipv4_unless_frames_are_merged() {
    let ends = ends(false, false);
    let came = Spec { checksum: false, ..arriving(&ends, &[0; 30]) };
    let (verdict, left, _) = run(&build(&came), &binding(&ends));
    assert!(matches!(verdict, Verdict::Forward { .. }), "{verdict:?}");
    assert_eq!(left, build(&leaving(&ends, &came)));
    let entry = LegEntry::new(leg(&binding(&ends)));
    let (verdict, ..) = run_with(&build(&came), HEADROOM, entry, &RelayConfig::new(PORT, true), Ok(HOP));
    assert_eq!(verdict, Verdict::Pass(PassReason::NoChecksum));
}

/// The kernel leaves the sum of the pseudo header where the network card is to put the checksum, and in what
/// it merges.
#[test]
fn a_partial_checksum_passes() {
    for from_v6 in [false, true] {
        let ends = ends(from_v6, false);
        let mut frame = build(&arriving(&ends, &[0; 30]));
        let (addresses, udp) = if from_v6 { (22..54, 54) } else { (26..34, 34) };
        let words = frame[addresses].chunks(2).chain(std::iter::once(&frame[udp + 4..udp + 6]));
        let sum: u32 = 17 + words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
        let sum = (sum >> 16) + (sum & 0xffff);
        frame[udp + 6..udp + 8].copy_from_slice(&(((sum >> 16) + sum) as u16).to_be_bytes());
        let (verdict, left, _) = run(&frame, &binding(&ends));
        assert_eq!((verdict, left), (Verdict::Pass(PassReason::PartialChecksum), frame));
    }
}

#[test]
fn a_leg_without_a_source_answers_from_where_it_was_asked() {
    let same = ends(false, false);
    let came = arriving(&same, &[0; 30]);
    let (_, left, _) = run(&build(&came), &Leg { source: None, ..binding(&same) });
    assert_eq!(left, build(&leaving(&Ends { source: same.local, ..same }, &came)));
    let other = ends(false, true);
    let frame = build(&arriving(&other, &[0; 30]));
    let (verdict, ..) = run(&frame, &Leg { source: None, ..binding(&other) });
    assert_eq!(verdict, Verdict::Pass(PassReason::NoSource));
    // Not even a broadcast makes the relay send from an address that is nobody's.
    for destination in ["255.255.255.255:4433", "224.0.0.1:4433"] {
        let frame = build(&Spec { destination: destination.parse().unwrap(), ..arriving(&same, &[0; 30]) });
        let any = Leg { source: None, local: None, ..binding(&same) };
        assert_eq!(run(&frame, &any).0, Verdict::Pass(PassReason::NoSource), "{destination}");
    }
}

#[test]
fn where_the_way_is_userspaces_the_frame_stays_as_it_is() {
    let ends = ends(false, true);
    let frame = build(&arriving(&ends, &[0; 30]));
    let entry = LegEntry::new(leg(&binding(&ends)));
    let config = RelayConfig::new(PORT, false);
    for reason in
        [PassReason::NoRoute, PassReason::NoNeighbour, PassReason::TooBig, PassReason::OtherInterface]
    {
        let (verdict, left, state) = run_with(&frame, HEADROOM, entry, &config, Err(reason));
        assert_eq!((verdict, left, state), (Verdict::Pass(reason), frame.clone(), RelayState::default()));
    }
    let (verdict, left, state) = run_with(&frame, 19, entry, &config, Ok(HOP));
    assert_eq!(
        (verdict, left, state),
        (Verdict::Pass(PassReason::NoHeadroom), frame.clone(), RelayState::default())
    );
    let (verdict, ..) = run_with(&frame, 20, entry, &config, Ok(HOP));
    assert!(matches!(verdict, Verdict::Forward { .. }));
    let (verdict, left, _) = run_with(&frame, HEADROOM, entry, &RelayConfig::default(), Ok(HOP));
    assert_eq!((verdict, left), (Verdict::Pass(PassReason::NotConfigured), frame));
}

#[test]
fn a_leg_over_its_rate_loses_packets_and_counts_them() {
    let ends = ends(true, false);
    let rate = RelayRate::new(1_000_000, 0);
    let leg = leg(&Leg { rate, ..binding(&ends) });
    let state = RelayState { paid_until_ns: NOW + 1_000_000_000, ..RelayState::default() };
    let frame = build(&arriving(&ends, &[0; 30]));
    let config = RelayConfig::new(PORT, false);
    let (verdict, _, after) =
        run_with(&frame, HEADROOM, LegEntry { state, ..LegEntry::new(leg) }, &config, Ok(HOP));
    assert_eq!(verdict, Verdict::Drop(DropReason::RateLimited));
    assert_eq!(after, RelayState { over_rate: 1, ..state });
    let (verdict, _, after) = run_with(&frame, HEADROOM, LegEntry::new(leg), &config, Ok(HOP));
    assert!(matches!(verdict, Verdict::Forward { redirect: Some(7), .. }));
    assert_eq!((after.packets, after.over_rate), (1, 0));
    assert!(after.paid_until_ns > NOW);
}

/// RFC 768: a checksum that comes out as zero is sent as all ones.
#[test]
fn a_checksum_of_zero_is_written_as_all_ones() {
    let ends = ends(false, false);
    let found = (0..=u16::MAX).find(|word| {
        let came = arriving(&ends, &word.to_be_bytes());
        build(&leaving(&ends, &came))[40..42] == [0xff, 0xff]
    });
    let came = arriving(&ends, &found.expect("one word in 65,536 makes it so").to_be_bytes());
    assert_eq!(run(&build(&came), &binding(&ends)).1, build(&leaving(&ends, &came)));
}
