//! The tables of legs, while they change.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use aya::maps::HashMap;
use cyphonic_common::ConnectionId;
use cyphonic_common::relay::{Leg, LegEntry, RelayState, map};
use cyphonic_dataplane::relay::xdp::legs::{Barrier, Legs};

use crate::expected::{across, arriving, cid};
use crate::frames::{build, parse};
use crate::lab::{Lab, XDP_PASS, XDP_REDIRECT, load};

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

/// Whoever waits for programs without holding the legs has waited for nothing that was emptied meanwhile.
#[test]
fn what_is_emptied_during_a_wait_is_not_used_again_at_its_end() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    const COUNT: Barrier = || {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let mut legs = Legs::take_with(&mut load(1), COUNT).unwrap();
    let insert = |legs: &mut Legs, number| {
        legs.insert(cid(number), &across(false, false), RelayState::default()).unwrap();
    };
    assert!(legs.begin_settling().is_none(), "nothing waits");
    // The first two stand in the table.
    (0..6).for_each(|number| insert(&mut legs, number));
    legs.remove(cid(5)).unwrap();
    insert(&mut legs, 6);
    let wait = legs.begin_settling().expect("the hash map gave up a leg");
    assert!(legs.begin_settling().is_none(), "one wait at a time");
    for gone in [0, 4] {
        legs.remove(cid(gone)).unwrap();
    }
    // Neither the table's entry nor the hash map's is free.
    assert!(legs.end_settling(wait.wait()) && legs.are_waiting());
    let wait = legs.begin_settling().expect("it waits still");
    assert!(!legs.end_settling(wait.wait()) && !legs.are_waiting());
    assert_eq!((legs.iter().count(), ASKED.load(Ordering::Relaxed)), (4, 2));
}

/// Others may have to wait at once, for everything.
#[test]
fn a_wait_that_another_one_overtakes_frees_nothing() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    const COUNT: Barrier = || {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let mut legs = Legs::take_with(&mut load(1), COUNT).unwrap();
    let insert = |legs: &mut Legs, number| {
        legs.insert(cid(number), &across(false, false), RelayState::default()).unwrap();
    };
    (0..6).for_each(|number| insert(&mut legs, number));
    legs.remove(cid(5)).unwrap();
    insert(&mut legs, 6);
    let wait = legs.begin_settling().expect("the hash map gave up a leg");
    legs.settle();
    assert!(!legs.are_waiting());
    legs.remove(cid(6)).unwrap();
    insert(&mut legs, 7);
    assert!(legs.end_settling(wait.wait()) && legs.are_waiting());
    legs.settle();
    assert_eq!((legs.are_waiting(), ASKED.load(Ordering::Relaxed)), (false, 3));
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
