//! The relay's XDP program, run by the kernel with `BPF_PROG_TEST_RUN`: every verdict, every rewrite byte for
//! byte against frames that etherparse builds from nothing, and agreement with the same code in userspace on
//! damaged frames.
//!
//! Needs root and the eBPF objects, and fails where one is missing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../cyphonic-common/src/relay/tests/frames.rs"]
mod frames;
#[path = "relay_program/lab.rs"]
mod lab;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aya::maps::HashMap;
use cyphonic_common::relay::table::{Table, TableLeg};
use cyphonic_common::relay::{
    Departure, Family, Hop, Leg, LegEntry, OwnAddresses, PackedLeg, PassReason, RelayCounterIndex, RelayRate,
    RelayState, SliceFrame, Verdict, map, relay,
};
use cyphonic_common::{ConnectionId, Counter, DropReason};
use cyphonic_dataplane::relay::xdp::legs::{Barrier, Legs};
use frames::{Spec, build, parse, payload};
use lab::{Lab, PORT, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, load};
use proptest::prelude::*;

const REAL: ConnectionId = ConnectionId::from_random_data([0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 7, 8]);

fn cid(number: u8) -> ConnectionId {
    ConnectionId::from_random_data([0x91, 2, 3, 4, 5, 6, 7, number])
}

/// A leg from a node at the first interface (see [`lab`]) to `to`, from the relay's address `source`.
fn leg(from_v6: bool, to: &str, source: &str) -> Leg {
    let (from, local) = match from_v6 {
        false => ("192.0.2.10:1111", "192.0.2.1"),
        true => ("[2001:db8::10]:1111", "2001:db8::1"),
    };
    Leg {
        from: from.parse().unwrap(),
        local: Some(local.parse().unwrap()),
        to: to.parse().unwrap(),
        source: Some(source.parse().unwrap()),
        real_cid: REAL,
        rate: RelayRate::UNLIMITED,
    }
}

/// To a node at the other interface.
fn across(from_v6: bool, to_v6: bool) -> Leg {
    match to_v6 {
        false => leg(from_v6, "198.51.100.20:2222", "198.51.100.1"),
        true => leg(from_v6, "[2001:db8:1::20]:2222", "2001:db8:1::1"),
    }
}

/// To another node at the interface that the packet came by.
fn back(from_v6: bool, to_v6: bool) -> Leg {
    match to_v6 {
        false => leg(from_v6, "192.0.2.11:2222", "192.0.2.1"),
        true => leg(from_v6, "[2001:db8::11]:2222", "2001:db8::1"),
    }
}

fn arriving(leg: &Leg, virtual_cid: ConnectionId, rest: &[u8]) -> Spec {
    Spec {
        source: leg.from,
        destination: SocketAddr::new(leg.local.unwrap(), PORT),
        traffic_class: 0,
        hop_limit: 64,
        label: 0,
        payload: payload(virtual_cid, rest),
        checksum: true,
        macs: ([1; 6], [2; 6]),
    }
}

/// What must leave for what came, from nothing.
fn leaving(leg: &Leg, came: &Spec, hop: &Hop) -> Spec {
    let mut payload = came.payload.clone();
    payload[1..9].copy_from_slice(REAL.as_bytes());
    Spec {
        source: SocketAddr::new(leg.source.unwrap(), PORT),
        destination: leg.to,
        hop_limit: came.hop_limit - 1,
        label: if leg.from.is_ipv4() == leg.to.is_ipv4() { came.label } else { 0 },
        payload,
        macs: hop.links(),
        ..came.clone()
    }
}

fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

/// Every way through the relay, every ECN codepoint, from the shortest packet to the longest.
#[test]
fn what_leaves_is_byte_for_byte_what_should() {
    Lab::run_in(|lab| {
        let mut expected_bytes = 0;
        for (from_v6, to_v6) in [(false, false), (false, true), (true, false), (true, true)] {
            for (binding, hop) in [(across(from_v6, to_v6), lab.across()), (back(from_v6, to_v6), lab.back())]
            {
                lab.bind(cid(1), &binding);
                for (ecn, size) in (0..4).flat_map(|ecn| [0, 1, 20, 511, 1280, 1400].map(|size| (ecn, size)))
                {
                    let rest: Vec<u8> = (0..size).map(|at| (at as u8).wrapping_mul(31) ^ ecn).collect();
                    let came = Spec {
                        traffic_class: 0xb8 | ecn,
                        label: 0x1234,
                        ..arriving(&binding, cid(1), &rest)
                    };
                    let (action, left) = lab.run(&build(&came));
                    let case = format!("{binding:?} ecn {ecn} size {size}");
                    assert_eq!(action, if hop.redirect.is_some() { XDP_REDIRECT } else { XDP_TX }, "{case}");
                    assert_eq!(left, build(&leaving(&binding, &came, &hop)), "{case}");
                    expected_bytes += came.payload.len() as u64;
                }
                let redirected = hop.redirect.is_some();
                let (from, to) = (family(from_v6), family(to_v6));
                let counted = lab.counter(RelayCounterIndex::Forwarded { from, to, redirected });
                assert_eq!(counted.packets, 24);
                let state = lab.unbind(cid(1)).unwrap().state;
                assert_eq!((state.packets, state.bytes, state.over_rate), (24, expected_bytes, 0));
                assert!(lab::monotonic_ns().abs_diff(state.last_seen_ns) < 10_000_000_000, "{state:?}");
                expected_bytes = 0;
            }
        }
    });
}

/// The program reads the clock seldom, and never for long from memory.
#[test]
fn a_legs_last_packet_has_its_time() {
    const PAUSE: Duration = Duration::from_millis(100);
    Lab::run_in(|lab| {
        let binding = across(false, false);
        let last_seen = || {
            lab.bind(cid(1), &binding);
            let before = lab::monotonic_ns();
            lab.run(&build(&arriving(&binding, cid(1), &[0; 20])));
            let seen = lab.unbind(cid(1)).unwrap().state.last_seen_ns;
            // It may be two steps late, on a machine that is busy or rests.
            assert!(
                (before - 1_000_000_000..=lab::monotonic_ns()).contains(&seen),
                "{seen} was not at {before}"
            );
            seen
        };
        let first = last_seen();
        std::thread::sleep(PAUSE);
        let second = last_seen();
        assert!(second - first > PAUSE.as_nanos() as u64 / 2, "{first} {second}");
    });
}

#[test]
fn through_a_gateway_the_frame_goes_to_it() {
    Lab::run_in(|lab| {
        for binding in [
            leg(true, "203.0.113.5:2222", "198.51.100.1"),
            leg(false, "[2001:db8:ffff::5]:2222", "2001:db8:1::1"),
        ] {
            lab.bind(cid(1), &binding);
            let came = arriving(&binding, cid(1), &[5; 100]);
            let (action, left) = lab.run(&build(&came));
            let (_, source) = lab.across().links();
            let hop = Hop::new(lab::GATEWAY, source, lab.across().redirect);
            assert_eq!((action, left), (XDP_REDIRECT, build(&leaving(&binding, &came, &hop))));
            lab.unbind(cid(1));
        }
    });
}

#[test]
fn a_route_is_asked_for_again_when_it_is_old_or_too_narrow() {
    Lab::run_in(|lab| {
        let binding = leg(false, "198.51.100.30:2222", "198.51.100.1");
        lab.bind(cid(1), &binding);
        let short = arriving(&binding, cid(1), &[9; 100]);
        assert_eq!(lab.run(&build(&short)), (XDP_REDIRECT, build(&leaving(&binding, &short, &lab.across()))));
        let long = build(&arriving(&binding, cid(1), &[9; 1300]));
        assert_eq!(lab.run(&long), (XDP_PASS, long));

        lab::ip("neigh replace 198.51.100.30 lladdr 02:00:00:00:00:fe dev rel1 nud permanent");
        // Longer than an answer is used, by a clock that moves in steps of up to 10 ms.
        std::thread::sleep(Duration::from_millis(150));
        let (_, source) = lab.across().links();
        let hop = Hop::new(lab::GATEWAY, source, lab.across().redirect);
        assert_eq!(lab.run(&build(&short)), (XDP_REDIRECT, build(&leaving(&binding, &short, &hop))));
    });
}

#[test]
fn while_somebody_watches_an_answer_is_used_until_something_changes() {
    Lab::run_in(|lab| {
        let binding = across(false, false);
        lab.bind(cid(1), &binding);
        let came = arriving(&binding, cid(1), &[9; 100]);
        let (_, source) = lab.across().links();
        let by = |link| build(&leaving(&binding, &came, &Hop::new(link, source, lab.across().redirect)));
        let (node, _) = lab.across().links();
        let pause = || std::thread::sleep(Duration::from_millis(150));
        lab.watch(0);
        assert_eq!(lab.run(&build(&came)), (XDP_REDIRECT, by(node)));
        lab::ip("neigh replace 198.51.100.20 lladdr 02:00:00:00:00:fe dev rel1 nud permanent");
        pause();
        lab.watch(0);
        assert_eq!(lab.run(&build(&came)), (XDP_REDIRECT, by(node)), "nobody said so");
        // Another DSCP may have another route.
        let urgent = Spec { traffic_class: 0xb8, ..came.clone() };
        let hop = Hop::new(lab::GATEWAY, source, lab.across().redirect);
        assert_eq!(lab.run(&build(&urgent)), (XDP_REDIRECT, build(&leaving(&binding, &urgent, &hop))));
        lab::ip("neigh replace 198.51.100.20 lladdr 02:00:00:00:00:0a dev rel1 nud permanent");
        let urgent_ecn = Spec { traffic_class: 0xbb, ..came.clone() };
        assert_eq!(
            lab.run(&build(&urgent_ecn)),
            (XDP_REDIRECT, build(&leaving(&binding, &urgent_ecn, &hop)))
        );
        pause();
        lab.watch(lab::monotonic_ns());
        assert_eq!(lab.run(&build(&urgent_ecn)).1, build(&leaving(&binding, &urgent_ecn, &lab.across())));
    });
}

/// IDs that differ in a single byte, in a table in which few have a place of their own.
#[test]
fn legs_that_get_into_one_anothers_way_are_all_found_and_none_that_is_gone() {
    Lab::run_in(|lab| {
        let binding = across(false, false);
        let forwards = |at: u8| lab.run(&build(&arriving(&binding, cid(at), &[at; 30]))).0 == XDP_REDIRECT;
        let mut bound = [false; 256];
        let mut random = 1u32;
        for round in 0..1_000u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (random >> 24) as u8;
            let now_bound = &mut bound[usize::from(at)];
            match (*now_bound, round % 3) {
                (true, 0) => {
                    let other = Leg { to: "198.51.100.20:3333".parse().unwrap(), ..binding };
                    lab.replace(cid(at), &other);
                    let (_, left) = lab.run(&build(&arriving(&binding, cid(at), &[at; 30])));
                    assert_eq!(parse(&left).1, other.to, "{at}");
                    lab.replace(cid(at), &binding);
                }
                (true, _) => {
                    assert_eq!(lab.unbind(cid(at)).unwrap().leg.cid().to_ne_bytes(), *cid(at).as_bytes());
                    *now_bound = false;
                }
                (false, _) => {
                    lab.bind(cid(at), &binding);
                    *now_bound = true;
                }
            }
            assert_eq!(forwards(at), *now_bound, "{at}");
        }
        assert!((0..=255).all(|at| forwards(at) == bound[usize::from(at)]));
        let mut found: Vec<_> = lab.legs.borrow().iter().map(|(cid, leg)| (cid, leg.to)).collect();
        found.sort();
        let expected = (0..=255).filter(|at| bound[usize::from(*at)]).map(|at| (cid(at), binding.to));
        assert_eq!(found, expected.collect::<Vec<_>>());
        assert!(found.len() > 32, "the table overflowed");
    });
}

/// Without membarrier(2), as on hosts with `nohz_full`.
#[test]
fn without_a_barrier_legs_are_taken_over_and_no_emptied_entry_is_used_again() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    const REFUSE: Barrier = || {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::InvalidInput.into())
    };
    const PAIRS: u32 = 2048;
    let mut ebpf = load(PAIRS);
    let mut left: HashMap<_, [u8; 8], [u8; size_of::<LegEntry>()]> =
        ebpf.map_mut(map::name::OVERFLOW).unwrap().try_into().unwrap();
    left.insert(cid(1).as_bytes(), [0; size_of::<LegEntry>()], 0).unwrap();
    let legs = Legs::take_with(&mut ebpf, REFUSE).unwrap();
    assert_eq!((legs.iter().count(), ASKED.load(Ordering::Relaxed)), (1, 1), "what was left stays");

    let mut legs = Legs::take_with(&mut load(PAIRS), REFUSE).unwrap();
    assert_eq!(ASKED.load(Ordering::Relaxed), 1, "nothing was left: nobody can be reading");
    let binding = across(false, false);
    for number in 0..3_000u64 {
        // Spread over the table, as IDs drawn at random are.
        let id = ConnectionId::from_random_data(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        legs.insert(id, &binding, RelayState::default()).unwrap();
        assert!(legs.remove(id).is_some());
    }
    assert_eq!(ASKED.load(Ordering::Relaxed), 2, "once refused, it is not asked for again");
    assert_eq!(legs.iter().count(), 0);
}

/// The kernel's hash map uses an entry again at once that it has given up, and a program may have found it
/// before.
#[test]
fn what_the_hash_map_gave_up_is_not_used_again_before_programs_have_ended() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    const COUNT: Barrier = || {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let asked = || ASKED.load(Ordering::Relaxed);
    let mut legs = Legs::take_with(&mut load(1), COUNT).unwrap();
    let binding = across(false, false);
    let other = Leg { to: "198.51.100.20:3333".parse().unwrap(), ..binding };
    // The first two stand in the table, which has no room for more.
    for number in 0..5 {
        legs.insert(cid(number), &binding, RelayState::default()).unwrap();
    }
    assert_eq!(asked(), 0, "nothing was given up");
    legs.remove(cid(3)).unwrap();
    legs.remove(cid(4)).unwrap();
    assert_eq!(asked(), 0, "nothing is used again");
    legs.insert(cid(10), &binding, RelayState::default()).unwrap();
    legs.insert(cid(11), &binding, RelayState::default()).unwrap();
    assert_eq!((asked(), legs.are_waiting()), (0, true), "it takes nothing");
    legs.settle();
    assert_eq!((asked(), legs.are_waiting()), (1, false), "once for all that was given up before");
    legs.replace(cid(10), &other).unwrap();
    assert_eq!((asked(), legs.are_waiting()), (1, false));
    legs.replace(cid(11), &other).unwrap();
    assert_eq!((asked(), legs.are_waiting()), (1, true), "the replaced one was given up");
    legs.settle();
    legs.replace(cid(11), &other).unwrap();
    legs.settle();
    assert_eq!((asked(), legs.are_waiting()), (2, false), "nothing changes");
}

/// As when a network of many nodes moves, at a relay that is full.
#[test]
fn many_legs_of_the_hash_map_that_are_replaced_wait_for_programs_together() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    const COUNT: Barrier = || {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    const LEGS: u16 = 1_000;
    let asked = || ASKED.load(Ordering::Relaxed);
    let id = |number: u16| {
        let [high, low] = number.to_be_bytes();
        ConnectionId::from_random_data([0x91, 2, 3, 4, 5, 6, high, low])
    };
    let mut legs = Legs::take_with(&mut load(1), COUNT).unwrap();
    let binding = across(false, false);
    let others = [3333, 4444].map(|port| Leg { to: ([198, 51, 100, 20], port).into(), ..binding });
    let state = |number: u16| RelayState { packets: number.into(), ..RelayState::default() };
    for number in 0..LEGS {
        legs.insert(id(number), &binding, state(number)).unwrap();
    }
    let all_are = |legs: &Legs, leg: &Leg| {
        assert_eq!(legs.iter().filter(|(_, found)| found == leg).count(), usize::from(LEGS));
        let counted = |number: u16| legs.get(id(number)).unwrap().state.packets == u64::from(number);
        assert!((0..LEGS).all(counted));
    };
    for other in &others {
        for number in 0..LEGS {
            legs.replace(id(number), other).unwrap();
        }
        all_are(&legs, other);
        legs.settle();
        assert!(!legs.are_waiting());
        all_are(&legs, other);
    }
    assert!(asked() <= 10, "{} for {LEGS} legs that moved twice", asked());

    // What waits can be replaced and removed.
    let before = asked();
    for leg in [&binding, &others[0]] {
        (0..4).for_each(|number| legs.replace(id(number), leg).unwrap());
    }
    assert!(legs.are_waiting());
    for number in 0..LEGS {
        assert_eq!(legs.remove(id(number)).unwrap().state.packets, u64::from(number));
    }
    assert!(!legs.are_waiting() && legs.iter().next().is_none());
    assert_eq!(asked(), before);
    // Where there is room in the table they go there.
    legs.insert(id(1), &binding, RelayState::default()).unwrap();
    legs.settle();
    legs.replace(id(1), &others[0]).unwrap();
    assert_eq!((asked(), legs.are_waiting()), (before + 1, false));
}

/// Stops who writes when reading ends, by a failed assertion too.
struct Reading<'a>(&'a AtomicBool);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A packet is forwarded by one leg or by the other, or left to userspace, but never by a mixture.
#[test]
fn no_packet_is_forwarded_by_half_a_leg() {
    Lab::run_in(|lab| {
        let number = |at: u8| ConnectionId::from_random_data([0x80 | at; 8]);
        let legs = [0u8, 1].map(|at| Leg { real_cid: number(at), ..across(false, at == 1) });
        let came = arriving(&legs[0], cid(1), &[7; 30]);
        let frame = build(&came);
        let (stop, packets) = (AtomicBool::new(false), AtomicU32::new(0));
        // Both may be on one processor: what is written is to be seen, too, before it changes again.
        let seen_by_reader = || {
            let some = packets.load(Ordering::Relaxed).wrapping_add(10);
            while packets.load(Ordering::Relaxed) < some && !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        };
        let mut legs_of_lab = lab.legs.borrow_mut();
        let writer: &mut Legs = &mut legs_of_lab;
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| {
                let mut changes = 0usize;
                writer.insert(cid(1), &legs[0], RelayState::default()).unwrap();
                while !stop.load(Ordering::Relaxed) || changes <= 300 {
                    changes += 1;
                    writer.replace(cid(1), &legs[changes % 2]).unwrap();
                    // An odd number, so that it is either leg's turn.
                    if changes.is_multiple_of(7) {
                        writer.settle();
                        seen_by_reader();
                    }
                    if changes.is_multiple_of(16) {
                        writer.remove(cid(1)).unwrap();
                        writer.insert(cid(1), &legs[changes % 2], RelayState::default()).unwrap();
                    }
                }
            });
            let reading = Reading(&stop);
            let mut seen = [0u32; 3];
            // More only where the writer is late to get a processor.
            while seen.iter().sum::<u32>() < 50_000
                || (seen[0] == 0 || seen[1] == 0) && seen.iter().sum::<u32>() < 5_000_000
            {
                let (action, left) = lab.run(&frame);
                packets.fetch_add(1, Ordering::Relaxed);
                if action == XDP_PASS {
                    assert_eq!(left, frame);
                    seen[2] += 1;
                    continue;
                }
                assert_eq!(action, XDP_REDIRECT);
                let (_, to, payload, _) = parse(&left);
                let which = usize::from(to.is_ipv6());
                assert_eq!(
                    (to, &payload[1..9]),
                    (legs[which].to, legs[which].real_cid.as_bytes().as_slice())
                );
                seen[which] += 1;
            }
            drop(reading);
            assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
            changing.join().unwrap();
        });
    });
}

#[test]
fn what_the_kernel_must_send_itself_passes_untouched() {
    let cases = [
        (leg(false, "198.51.100.99:2222", "198.51.100.1"), PassReason::NoNeighbour),
        (leg(false, "[2001:db8:1::99]:2222", "2001:db8:1::1"), PassReason::NoNeighbour),
        (leg(false, "10.99.0.1:2222", "198.51.100.1"), PassReason::NoRoute),
        (leg(true, "[2001:db9::1]:2222", "2001:db8:1::1"), PassReason::NoRoute),
        (leg(false, "198.51.100.1:2222", "198.51.100.1"), PassReason::NoRoute),
        (leg(false, "198.18.0.1:2222", "198.51.100.1"), PassReason::NoRoute),
        (leg(false, "192.168.77.7:2222", "192.168.77.1"), PassReason::OtherInterface),
        (leg(false, "198.51.100.30:2222", "198.51.100.1"), PassReason::TooBig),
        (leg(false, "[2001:db8:1::30]:2222", "2001:db8:1::1"), PassReason::TooBig),
    ];
    Lab::run_in(|lab| {
        for (binding, reason) in cases {
            lab.bind(cid(1), &binding);
            // One byte longer than 1,300 bytes of IPv4 or 1,320 of IPv6, which those two routes carry: the
            // same payload.
            let rest = vec![9; 1300 - 28 - 9 + 1];
            let before = lab.counter(RelayCounterIndex::Passed(reason));
            let frame = build(&arriving(&binding, cid(1), &rest));
            assert_eq!(lab.run(&frame), (XDP_PASS, frame.clone()), "{binding:?}");
            let counted = lab.counter(RelayCounterIndex::Passed(reason));
            assert_eq!(
                counted,
                before.plus(Counter { packets: 1, bytes: frame.len() as u64 }),
                "{binding:?}"
            );
            if reason == PassReason::TooBig {
                let (action, _) = lab.run(&build(&arriving(&binding, cid(1), &rest[1..])));
                assert_eq!(action, XDP_REDIRECT, "{binding:?}");
            }
            let state = lab.unbind(cid(1)).unwrap().state;
            assert_eq!(state.packets, u64::from(reason == PassReason::TooBig));
        }
    });
}

#[test]
fn without_forwarding_on_loopback_the_kernel_gives_no_routes() {
    Lab::run_in(|lab| {
        let binding = across(false, false);
        lab.bind(cid(1), &binding);
        lab::set_loopback_forwarding(false);
        let frame = build(&arriving(&binding, cid(1), &[0; 30]));
        assert_eq!(lab.run(&frame), (XDP_PASS, frame));
        assert_eq!(lab.counter(RelayCounterIndex::Passed(PassReason::RoutingOff)).packets, 1);
    });
}

/// Figure 7 of the project's list: what must never be forwarded.
#[test]
fn nothing_is_forwarded_that_should_not_be() {
    Lab::run_in(|lab| {
        let binding = across(false, true);
        lab.bind(cid(1), &binding);
        let spec = arriving(&binding, cid(1), &[0; 40]);
        let good = build(&spec);
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = good.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let passes = |reason| RelayCounterIndex::Passed(reason);
        let drops = |reason| RelayCounterIndex::Dropped(reason);
        let of = |spec: Spec| build(&spec);
        let prefix = of(Spec { payload: spec.payload[..8].to_vec(), ..spec.clone() });
        let stranger = "192.0.2.11:1111".parse().unwrap();
        let port = "192.0.2.10:1112".parse().unwrap();
        let elsewhere = "192.0.2.2:4433".parse().unwrap();
        let cases = [
            (
                "an unknown ID",
                of(arriving(&binding, cid(2), &[0; 40])),
                passes(PassReason::UnknownConnectionId),
            ),
            ("a prefix of an ID", prefix, passes(PassReason::NotQuic)),
            ("a long header", with(42, &[0xc3]), passes(PassReason::Signalling)),
            ("a signalling ID", with(43, &[0x11]), passes(PassReason::Signalling)),
            ("no fixed bit", with(42, &[0x03]), passes(PassReason::NotQuic)),
            ("IP options", with(14, &[0x46]), passes(PassReason::Options)),
            ("a first fragment", with(20, &[0x20]), passes(PassReason::Fragment)),
            ("a later fragment", with(21, &[0x05]), passes(PassReason::Fragment)),
            ("a wrong header checksum", with(24, &[!good[24]]), passes(PassReason::Malformed)),
            ("cut", good[..good.len() - 1].to_vec(), passes(PassReason::Malformed)),
            ("half an IP header", good[..20].to_vec(), passes(PassReason::Malformed)),
            ("a UDP length that differs", with(39, &[good[39] - 1]), passes(PassReason::Malformed)),
            ("another port", with(36, &[0, 53]), passes(PassReason::OtherPort)),
            ("ARP", with(12, &[8, 6]), passes(PassReason::NotIp)),
            ("VLAN", with(12, &[0x81, 0]), passes(PassReason::NotIp)),
            ("no checksum from IPv4 to IPv6", with(40, &[0, 0]), passes(PassReason::NoChecksum)),
            (
                "another host",
                of(Spec { source: stranger, ..spec.clone() }),
                passes(PassReason::UnboundSource),
            ),
            (
                "another port of the host",
                of(Spec { source: port, ..spec.clone() }),
                passes(PassReason::UnboundSource),
            ),
            (
                "to another address",
                of(Spec { destination: elsewhere, ..spec.clone() }),
                passes(PassReason::UnboundSource),
            ),
            ("the last hop", of(Spec { hop_limit: 1, ..spec.clone() }), drops(DropReason::HopLimit)),
        ];
        for (name, frame, index) in cases {
            let before = lab.counter(index);
            let dropped = matches!(index, RelayCounterIndex::Dropped(_));
            let (action, left) = lab.run(&frame);
            assert_eq!(action, if dropped { XDP_DROP } else { XDP_PASS }, "{name}");
            assert_eq!(left, frame, "{name}");
            let one = Counter { packets: 1, bytes: frame.len() as u64 };
            assert_eq!(lab.counter(index), before.plus(one), "{name}");
        }
        assert_eq!(lab.unbind(cid(1)).unwrap().state, RelayState::default());
        let (action, left) = lab.run(&good);
        assert_eq!((action, left), (XDP_PASS, good), "an unbound ID");
    });
}

#[test]
fn a_leg_over_its_rate_loses_packets_and_counts_them() {
    Lab::run_in(|lab| {
        let binding = Leg { rate: RelayRate::new(100_000, 0), ..across(true, true) };
        // It has spent more than a century's worth already.
        let state = RelayState { paid_until_ns: u64::MAX / 4, ..RelayState::default() };
        lab.bind_with(cid(1), &binding, state);
        let frame = build(&arriving(&binding, cid(1), &[0; 40]));
        assert_eq!(lab.run(&frame).0, XDP_DROP);
        assert_eq!(lab.counter(RelayCounterIndex::Dropped(DropReason::RateLimited)).packets, 1);
        assert_eq!(lab.unbind(cid(1)).unwrap().state, RelayState { over_rate: 1, ..state });

        lab.bind(cid(1), &binding);
        assert_eq!(lab.run(&frame).0, XDP_REDIRECT);
        let state = lab.unbind(cid(1)).unwrap().state;
        assert_eq!((state.packets, state.over_rate), (1, 0));
        assert!(state.paid_until_ns > 0);
    });
}

#[test]
fn without_a_configuration_everything_passes() {
    Lab::run_in(|lab| {
        let binding = across(false, false);
        lab.bind(cid(1), &binding);
        lab.configure(Default::default());
        let frame = build(&arriving(&binding, cid(1), &[0; 40]));
        assert_eq!(lab.run(&frame), (XDP_PASS, frame));
        // What the kernel itself says on the cable comes by here as well.
        assert!(lab.counter(RelayCounterIndex::Passed(PassReason::NotConfigured)).packets >= 1);
    });
}

/// One leg for each way through, and those that userspace must serve.
fn legs() -> Vec<(Leg, RelayState)> {
    let combinations = [(false, false), (false, true), (true, false), (true, true)];
    let mut bindings: Vec<Leg> = combinations.iter().map(|(from, to)| across(*from, *to)).collect();
    bindings.extend(combinations.iter().map(|(from, to)| back(*from, *to)));
    bindings.extend(combinations.iter().map(|(from, to)| Leg { source: None, ..across(*from, *to) }));
    bindings.push(Leg { local: None, ..across(false, true) });
    bindings.push(leg(false, "198.51.100.99:2222", "198.51.100.1"));
    bindings.push(leg(false, "10.99.0.1:2222", "198.51.100.1"));
    let mut legs: Vec<_> = bindings.into_iter().map(|binding| (binding, RelayState::default())).collect();
    let limited = Leg { rate: RelayRate::new(100_000, 0), ..across(false, false) };
    legs.push((limited, RelayState { paid_until_ns: u64::MAX / 4, ..RelayState::default() }));
    legs
}

/// The kernel and the same code in userspace come to the same verdict and the same bytes.
#[test]
fn the_kernel_and_userspace_agree_on_damaged_frames() {
    let damage = proptest::collection::vec((0usize..130, any::<u8>()), 0..3);
    let cut = proptest::option::weighted(0.2, 14usize..160);
    let frame = (0u8..17, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..80), damage, cut);
    let options = (any::<bool>(), any::<bool>(), any::<u8>(), 0usize..4);
    // `cargo xtask fuzz` asks for millions.
    let cases = std::env::var("CYPHONIC_FUZZ_CASES").map_or(10_000, |cases| cases.parse().unwrap());
    Lab::run_in(|lab| {
        let forwarded = std::cell::Cell::new(0u32);
        let mut own = OwnAddresses::default();
        for address in ["192.0.2.1", "2001:db8::1", "198.51.100.1", "2001:db8:1::1"] {
            own.add(address.parse().unwrap()).unwrap();
        }
        let bound = legs().into_iter().zip(0u8..).map(|((binding, state), at)| {
            lab.bind_with(cid(at), &binding, state);
            let leg = PackedLeg::new(cid(at), &binding, &own).unwrap();
            TableLeg::new(LegEntry { state, ..LegEntry::new(leg) })
        });
        let table: Vec<TableLeg> = bound.collect();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
        let result = runner.run(&(frame.clone(), options), |((at, from_v6, rest, damage, cut), options)| {
            let (merged, checksum, hop_limit, padding) = options;
            let spec = arriving(&across(from_v6, false), cid(at), &rest);
            let mut frame = build(&Spec { hop_limit, checksum, traffic_class: hop_limit, ..spec });
            frame.extend(vec![0; padding]);
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(cut.unwrap_or(usize::MAX));
            lab.configure(lab::config(merged));
            let (verdict, expected) = in_userspace(&frame, (&table, &own), merged, lab);
            let before = lab.counter(verdict.counter());
            let (action, left) = lab.run(&frame);
            prop_assert_eq!(action, lab::action(&verdict), "{:?}", verdict);
            // What the kernel itself says on the cable comes by here as well.
            prop_assert!(lab.counter(verdict.counter()).packets > before.packets, "{:?}", verdict);
            if let Verdict::Forward { .. } = verdict {
                forwarded.set(forwarded.get() + 1);
                prop_assert_eq!(parse(&left).3, parse(&frame).3);
            }
            prop_assert_eq!(left, expected);
            Ok(())
        });
        result.unwrap();
        // Time apart, every leg has carried the same.
        for (leg, at) in table.iter().zip(0u8..) {
            let (here, there) = (leg.state(), lab.unbind(cid(at)).unwrap().state);
            let untimed = |state| RelayState { last_seen_ns: 0, ..state };
            assert_eq!(untimed(here), untimed(there), "{at}");
        }
        assert!(forwarded.get() > 1_000, "only {} frames were forwarded: too few", forwarded.get());
    });
}

fn in_userspace(
    frame: &[u8],
    (legs, own): (&[TableLeg], &OwnAddresses),
    merged: bool,
    lab: &Lab,
) -> (Verdict, Vec<u8>) {
    let route = |departure: &Departure| lab.model_route(departure);
    let surroundings = Table { legs, own, route, now_ns: 1 };
    let mut buffer = [vec![0; 256], frame.to_vec()].concat();
    let mut frame = SliceFrame::new(&mut buffer, 256);
    let verdict = relay(&mut frame, &lab::config(merged), &surroundings);
    (verdict, frame.bytes().to_vec())
}
