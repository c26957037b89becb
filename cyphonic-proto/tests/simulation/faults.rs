//! Bad networks, drawn at random.

use std::time::Duration;

use proptest::prelude::*;

use crate::net::Gate::{self, Firewall, Open, PortRestricted, Symmetric};
use crate::world::{Victim, World, virtual_address};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn with_thirty_percent_loss_devices_still_find_each_other() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        (world.loss, world.duplication) = (0.3, 0.1);
        world.jitter = Duration::from_millis(20);
        let (a, b) = [(Open, Open), (Symmetric, PortRestricted), (Open, Symmetric)]
            [usize::try_from(seed % 3).unwrap()];
        world.add("a", Some(a), None);
        world.add("b", Some(b), None);
        world.settle();
        // As a stub resolver would: some tries of up to 4 s.
        let resolved = (0..4).any(|_| world.resolves("a", "b").is_ok());
        assert!(resolved, "seed {seed}");
        assert!(world.talk("a", "b", 20 * SECOND), "seed {seed}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Resolve(usize, usize),
    Send(usize, usize),
    Kill(usize),
    Cut(usize),
    Mend,
    Reset(usize),
    Wait(u64),
}

const DEVICES: [&str; 3] = ["a", "b", "c"];
const VICTIMS: [Victim; 6] =
    [Victim::Device("a"), Victim::Device("b"), Victim::Device("c"), Victim::As, Victim::Nms, Victim::Trs];

fn gate() -> impl Strategy<Value = Gate> {
    prop_oneof![Just(Open), Just(Firewall), Just(PortRestricted), Just(Symmetric)]
}

fn gates() -> impl Strategy<Value = [Option<Gate>; 2]> {
    prop_oneof![
        gate().prop_map(|gate| [Some(gate), None]),
        prop_oneof![Just(Open), Just(Firewall)].prop_map(|gate| [None, Some(gate)]),
        (gate(), prop_oneof![Just(Open), Just(Firewall)]).prop_map(|(v4, v6)| [Some(v4), Some(v6)]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let pair = || (0..3usize, 0..3usize);
    prop_oneof![
        4 => pair().prop_map(|(a, b)| Step::Resolve(a, b)),
        4 => pair().prop_map(|(a, b)| Step::Send(a, b)),
        1 => (0..6usize).prop_map(Step::Kill),
        1 => (0..6usize).prop_map(Step::Cut),
        1 => Just(Step::Mend),
        1 => (0..3usize).prop_map(Step::Reset),
        4 => (1..3000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 500, ..ProptestConfig::default() })]

    /// The world itself checks keys and answers at every step. Here: every question is answered in time, tables stay
    /// small, and once the faults are over all devices reach each other.
    #[test]
    fn whatever_happens_keys_stay_unique_questions_get_answers_and_the_network_heals(
        seed: u64, networks in prop::collection::vec(gates(), 3), steps in prop::collection::vec(step(), 1..40),
        loss in 0.0..0.3f64, jitter in 0..50u64,
    ) {
        let mut world = World::new(seed);
        for (name, gates) in DEVICES.into_iter().zip(networks) {
            world.add(name, gates[0], gates[1]);
        }
        (world.loss, world.duplication, world.jitter) = (loss, loss / 2.0, Duration::from_millis(jitter));
        let mut asked = vec![];
        for step in steps {
            match step {
                Step::Resolve(a, b) if world.hosts[DEVICES[a]].node.is_some() => {
                    let life = world.hosts[DEVICES[a]].life;
                    asked.push((world.resolve(DEVICES[a], DEVICES[b]), a, life));
                }
                Step::Resolve(..) => {}
                Step::Send(a, b) if a != b => { world.send_inner(DEVICES[a], DEVICES[b]); }
                Step::Send(..) => {}
                Step::Kill(n) => {
                    let dead = match VICTIMS[n] {
                        Victim::Device(name) => world.hosts[name].node.is_none(),
                        Victim::As => !world.cloud.as_up,
                        Victim::Nms | Victim::Standby => world.cloud.nms.is_none(),
                        Victim::Trs | Victim::SecondTrs => world.cloud.relays[0].trs.is_none(),
                    };
                    if !dead {
                        world.kill(VICTIMS[n], SECOND);
                    }
                }
                Step::Cut(n) => world.cut(VICTIMS[n]),
                Step::Mend => world.cut_off.clear(),
                Step::Reset(n) => {
                    let life = world.hosts[DEVICES[n]].life;
                    world.with_node(DEVICES[n], life, |node, now| node.handle_reset(now, None));
                }
                Step::Wait(ms) => world.run(Duration::from_millis(ms)),
            }
        }
        world.run(5 * SECOND);
        for (query, a, life) in asked {
            let lived = world.hosts[DEVICES[a]].life == life;
            prop_assert!(!lived || world.answers.contains_key(&query), "a question of {} has no answer", DEVICES[a]);
        }
        (world.loss, world.duplication) = (0.0, 0.0);
        world.cut_off.clear();
        world.run(40 * SECOND);
        world.settle();
        for (a, b) in [("a", "b"), ("b", "c"), ("c", "a")] {
            world.resolves(a, b).map_err(|error| TestCaseError::fail(format!("{a} to {b}: {error}")))?;
            prop_assert!(world.talk(a, b, 20 * SECOND), "{} and {} do not talk", a, b);
        }
        check_tables(&world)?;
    }
}

fn check_tables(world: &World) -> Result<(), TestCaseError> {
    for host in world.hosts.values() {
        let status = host.node.as_ref().unwrap().status();
        prop_assert!(status.peers.len() <= 3, "{status:?}");
        let listed: usize = status.peers.iter().map(|peer| peer.tunnels.len()).sum();
        prop_assert_eq!(listed, host.tunnels.len(), "node and dataplane disagree");
        prop_assert!(host.tunnels.len() <= 12);
        prop_assert!(status.peers.iter().all(|peer| peer.address != virtual_address(host.name)));
    }
    let (nodes, pending) = world.cloud.nms.as_ref().unwrap().sizes();
    prop_assert!(nodes <= 3 && pending <= 3);
    prop_assert!(world.cloud.relays[0].trs.as_ref().unwrap().sizes().0 <= 3);
    Ok(())
}
