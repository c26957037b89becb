//! The kernel and the same code in userspace come to one verdict.

use cyphonic_common::relay::table::{Table, TableLeg};
use cyphonic_common::relay::{
    Departure, Leg, LegEntry, OwnAddresses, PackedLeg, RelayRate, RelayState, SliceFrame, Verdict, relay,
};
use proptest::prelude::*;

use crate::expected::{across, arriving, back, cid, leg};
use crate::frames::{Spec, build, parse};
use crate::lab::{self, Lab};

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
