//! Every verdict, and every rewrite byte for byte.

use std::time::Duration;

use cyphonic_common::relay::{Hop, Leg, PassReason, RelayCounterIndex, RelayRate, RelayState};
use cyphonic_common::{Counter, DropReason};

use crate::expected::{across, arriving, back, cid, family, leaving, leg};
use crate::frames::{Spec, build};
use crate::lab::{self, Lab, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};

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
