use proptest::prelude::*;

use super::*;

const INNER: u16 = 1_420;
const MOST: u16 = 8_942;

fn path(port: u16) -> Path {
    (SocketAddr::from(([192, 0, 2, 1], port)), ConnectionId::from_random_data([7; 8]))
}

/// A path under virtual time.
struct World {
    now: Instant,
    search: Search,
    /// The largest payload that arrives.
    carries: u16,
    /// The largest payload that this host's interface takes.
    interface: u16,
    round_trip: Duration,
    /// Nothing arrives.
    dead: bool,
    loss: u32,
    random: u64,
    next: u64,
    sent: Vec<(Instant, u16)>,
    responses: Vec<(Instant, [u8; 8])>,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn new(carries: u16) -> Self {
        let now = Instant::now();
        Self {
            now,
            search: Search::new(path(1), INNER, MOST, now),
            carries,
            interface: u16::MAX,
            round_trip: Duration::from_millis(20),
            dead: false,
            loss: 0,
            random: 1,
            next: 0,
            sent: Vec::new(),
            responses: Vec::new(),
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % 100 < u64::from(percent)
    }

    fn poll(&mut self) {
        loop {
            let next = &mut self.next;
            let probes = self.search.poll(self.now, || {
                *next += 1;
                next.to_be_bytes()
            });
            let mut refused = false;
            for probe in probes {
                self.sent.push((self.now, probe.size));
                if probe.size > self.interface {
                    self.search.too_big(Some(probe.data), self.now);
                    refused = true;
                } else if probe.size <= self.carries && !self.dead && !self.chance(self.loss) {
                    self.responses.push((self.now + self.round_trip, probe.data));
                }
            }
            if !refused {
                return;
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.poll();
        loop {
            let response = self.responses.iter().map(|(at, _)| *at).min();
            let Some(at) = [response, self.search.timeout()].into_iter().flatten().min() else { break };
            if at > end {
                break;
            }
            self.now = at;
            while let Some(index) = self.responses.iter().position(|(due, _)| *due <= at) {
                let (_, data) = self.responses.remove(index);
                self.search.answered(data, at);
            }
            self.poll();
        }
        self.now = end;
    }

    fn run_until_complete(&mut self) -> Duration {
        let start = self.now;
        while !self.search.is_complete() {
            assert!(self.now - start < Duration::from_secs(60), "{:?}", self.search);
            self.run(Duration::from_millis(10));
        }
        self.now - start
    }

    /// Large packets leave, and the statistics come twice a second.
    fn transfer(&mut self, time: Duration) {
        for _ in 0..time.as_millis() / 500 {
            self.run(Duration::from_millis(500));
            let answered = self.search.carried <= self.carries && !self.dead;
            self.search.used(true, answered, self.now);
            self.poll();
        }
    }

    fn found(&self) -> u16 {
        self.search.mtu().datagram
    }
}

#[test]
fn what_carries_the_most_is_not_looked_at_for_more() {
    for large in [false, true] {
        let mut world = World::new(9_100);
        world.run_until_complete();
        assert_eq!(world.found() + 1, limit(world.search.most_inner), "there is no more");
        world.now += RAISE;
        world.search.used(large, true, world.now);
        assert!(world.search.is_complete(), "{large}");
    }
}

proptest! {
    #[test]
    fn every_path_is_found_out_and_never_overestimated(
        carries in BASE..=9_100u16, interface in BASE..=9_100, loss in 0u32..10, seed in 1u64..,
    ) {
        let mut world = World::new(carries);
        (world.interface, world.random) = (interface, seed);
        world.loss = loss;
        world.run_until_complete();
        let (truth, found) = (carries.min(interface), world.found());
        prop_assert!(found <= truth);
        // Three losses in a row may happen, and cost size, never a black hole.
        if loss == 0 {
            prop_assert!(found == limit(MOST) - 1 || found + GRANULE >= truth, "{} of {}", found, truth);
        }
        let inner = world.search.mtu().inner;
        prop_assert_eq!(inner, (found - 30).clamp(1280, MOST));
    }
}

#[test]
fn the_usual_paths_are_found_in_a_round_trip_or_three() {
    for (outer, headers) in [(1500, 28), (1500, 48), (1492, 28), (1280, 48)] {
        let mut world = World::new(outer - headers);
        // The interface says at once what is too large for it, as that of a host on this network does.
        world.interface = outer - headers;
        let took = world.run_until_complete();
        assert_eq!(world.found(), outer - headers);
        assert!(took <= Duration::from_millis(60), "{outer} with {headers}: {took:?}");
    }
}

#[test]
fn a_path_slower_than_all_tries_is_found_out_all_the_same() {
    for round_trip in [90, 110, 690, 710, 2_000].map(Duration::from_millis) {
        let mut world = World::new(1_472);
        (world.round_trip, world.interface) = (round_trip, 1_472);
        let took = world.run_until_complete();
        assert_eq!(world.found(), 1_472, "{round_trip:?}");
        assert!(took <= Duration::from_secs(30), "{round_trip:?}: {took:?}");
    }
}

#[test]
fn a_jumbo_path_is_found_in_two_round_trips() {
    let mut world = World::new(9_000 - 28);
    assert!(world.run_until_complete() <= Duration::from_millis(40));
    assert_eq!(world.search.mtu(), PathMtu { datagram: 8_972, inner: 8_942 });
}

#[test]
fn a_narrow_path_leaves_applications_what_ipv6_promises() {
    let mut world = World::new(1_232);
    world.run_until_complete();
    assert_eq!(world.search.mtu(), PathMtu { datagram: 1_232, inner: 1_280 });
}

#[test]
fn applications_are_told_nothing_before_the_search_is_over() {
    let mut world = World::new(1_300);
    while !world.search.is_complete() {
        assert_eq!(world.search.mtu().inner, INNER);
        world.run(Duration::from_millis(1));
    }
    assert_eq!(world.search.mtu().inner, 1_280);
}

#[test]
fn a_path_that_becomes_narrower_under_a_transfer_is_noticed_within_two_seconds() {
    for narrower in [1_372, 1_272, 1_232, 1_200] {
        let mut world = World::new(1_472);
        world.run_until_complete();
        world.transfer(Duration::from_secs(20));
        assert_eq!(world.found(), 1_472);
        world.carries = narrower;
        world.transfer(Duration::from_secs(2));
        assert!(world.found() <= narrower, "{} of {narrower}", world.found());
        world.run_until_complete();
        assert!(world.found() <= narrower && world.found() + GRANULE >= narrower);
    }
}

#[test]
fn an_outage_is_not_taken_for_a_narrow_path() {
    let mut world = World::new(1_472);
    world.run_until_complete();
    world.dead = true;
    world.transfer(Duration::from_secs(30));
    let mtu = world.search.mtu();
    assert_eq!(
        mtu,
        PathMtu { datagram: BASE, inner: 1_442 },
        "small packets go, applications are told nothing"
    );
    let probes = world.sent.iter().filter(|(at, _)| world.now - *at < Duration::from_secs(10)).count();
    assert!(probes <= 20, "{probes} probes into the void");
    world.dead = false;
    world.run_until_complete();
    assert_eq!(world.found(), 1_472);
}

#[test]
fn an_outage_during_the_search_is_not_taken_for_a_narrow_path() {
    for outage in [50, 500, 1_000, 10_000, 60_000].map(Duration::from_millis) {
        let mut world = World::new(1_472);
        // The least size is answered; a round of larger ones is on its way.
        world.run(world.round_trip);
        assert_eq!(world.search.phase, Phase::Searching);
        world.responses.clear();
        world.dead = true;
        world.sent.clear();
        world.run(outage);
        assert!(!world.search.is_complete());
        let probes = world.sent.iter().filter(|(at, _)| world.now - *at < Duration::from_secs(10)).count();
        assert!(probes <= 30, "{probes} probes into the void");
        world.dead = false;
        world.run_until_complete();
        assert_eq!(world.found(), 1_472, "after {outage:?}");
    }
}

#[test]
fn a_wider_path_is_noticed_after_ten_minutes_of_use_and_never_without() {
    let mut world = World::new(1_372);
    world.run_until_complete();
    world.carries = 1_472;
    world.sent.clear();
    world.run(Duration::from_secs(3_600));
    assert!(world.sent.is_empty(), "an unused path is left alone");
    world.search.raise_at = world.now + RAISE;
    world.transfer(RAISE - Duration::from_secs(1));
    assert_eq!(world.found(), 1_372);
    world.transfer(Duration::from_secs(4));
    assert_eq!(world.found(), 1_472);
}

#[test]
fn an_interface_that_shrinks_is_believed_at_once() {
    let mut world = World::new(1_472);
    world.run_until_complete();
    world.interface = 1_372;
    world.search.too_big(None, world.now);
    assert_eq!(world.found(), BASE);
    world.run_until_complete();
    assert_eq!(world.search.mtu(), PathMtu { datagram: 1_372, inner: 1_342 });
}

#[test]
fn another_path_is_searched_anew() {
    let mut world = World::new(8_972);
    world.run_until_complete();
    world.search.moved(path(2), world.now);
    assert_eq!(world.search.mtu(), PathMtu { datagram: BASE, inner: 8_942 });
    world.carries = 1_452;
    world.run_until_complete();
    assert_eq!(world.search.mtu(), PathMtu { datagram: 1_452, inner: 1_422 });
}

#[test]
fn probes_are_bounded_and_strange_responses_change_nothing() {
    let mut world = World::new(1_333);
    let before = world.search.clone();
    assert!(!world.search.answered([0xee; 8], world.now));
    assert_eq!(world.search.mtu(), before.mtu());
    world.run_until_complete();
    let start = world.sent[0].0;
    for second in 0..10 {
        let from = start + Duration::from_secs(second);
        let count =
            world.sent.iter().filter(|(at, _)| *at >= from && *at < from + Duration::from_secs(1)).count();
        assert!(count <= 30, "{count} probes in a second");
    }
}
