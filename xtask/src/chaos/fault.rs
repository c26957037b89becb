//! What goes wrong.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use cyphonic_lab::Lab;
use cyphonic_lab::command::Cancel;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::overlay::{Cloud, Device, Overlay, Pair, Part, RELAYED, Service};

/// How long a fault lasts, in milliseconds. Longer ones are told apart from a peer that has gone for good,
/// and tunnels end.
const LENGTHS_MS: std::ops::Range<u64> = 100..3_000;

/// Whose process something happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// AS and NMS, or the TRS.
    Cloud(Part),
    /// The agent at the beginning of the relayed pair.
    Agent,
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A process is killed, and started again after its length.
    Kill(Victim),
    /// A process does nothing.
    Freeze(Victim),
    /// A host's cable is pulled out.
    Unplug(&'static str),
}

/// All of them.
pub(super) const ALL: [Fault; 11] = [
    Fault::Kill(Victim::Cloud(Part::Services)),
    Fault::Kill(Victim::Cloud(Part::Relay)),
    Fault::Kill(Victim::Agent),
    Fault::Freeze(Victim::Cloud(Part::Services)),
    Fault::Freeze(Victim::Cloud(Part::Relay)),
    Fault::Freeze(Victim::Agent),
    Fault::Unplug("cloud"),
    Fault::Unplug("trs"),
    Fault::Unplug("a"),
    Fault::Unplug("b"),
    Fault::Unplug("c"),
];

/// The faults that a seed stands for, one after the other, without an end.
pub(super) struct Plan(StdRng);

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }
}

impl Iterator for Plan {
    type Item = (Fault, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        let fault = *ALL.choose(&mut self.0)?;
        Some((fault, Duration::from_millis(self.0.random_range(LENGTHS_MS))))
    }
}

/// Where it happens.
pub(super) struct Scene<'a> {
    pub(super) lab: &'a Lab,
    pub(super) overlay: &'a mut Overlay,
    pub(super) cancel: &'a Cancel,
}

impl Scene<'_> {
    fn cloud(&mut self) -> Result<&mut Cloud> {
        self.overlay.cloud_mut().context("there is no cloud")
    }

    fn agent(&mut self) -> Result<&mut Device> {
        let mut devices = self.overlay.devices_mut().iter_mut();
        devices.find(|device| device.node() == RELAYED.0).context("the topology lacks a device")
    }

    fn signal(&mut self, victim: Victim, signal: &str) -> Result<()> {
        let cancel = self.cancel;
        match victim {
            Victim::Cloud(part) => {
                let cloud = self.cloud()?;
                cloud.part(part).signal(cloud.machine(part), signal, cancel)
            }
            Victim::Agent => {
                let agent = self.agent()?;
                let service: &Service = agent.service().context("the agent does not run")?;
                service.signal(agent.machine(), signal, cancel)
            }
        }
    }
}

impl Fault {
    /// It happens.
    pub(super) fn begin(self, scene: &mut Scene<'_>) -> Result<()> {
        match self {
            Self::Kill(Victim::Cloud(part)) => scene.cloud()?.kill(part),
            Self::Kill(Victim::Agent) => scene.agent()?.kill(),
            Self::Freeze(victim) => scene.signal(victim, "STOP"),
            Self::Unplug(node) => Ok(scene.lab.plug(node, false, scene.cancel)?),
        }
    }

    /// It is over: returns when what was killed is there again.
    pub(super) fn end(self, scene: &mut Scene<'_>) -> Result<()> {
        let (lab, cancel) = (scene.lab, scene.cancel);
        match self {
            Self::Kill(Victim::Cloud(part)) => scene.cloud()?.start_again(part, lab, cancel),
            Self::Kill(Victim::Agent) => scene.agent()?.restart(lab, cancel).map(drop),
            Self::Freeze(victim) => scene.signal(victim, "CONT"),
            Self::Unplug(node) => Ok(lab.plug(node, true, cancel)?),
        }
    }

    /// Whether a pair may have another tunnel after it: keys are nowhere but in an agent's memory, and who
    /// hears nothing of a peer for half a second asks for another tunnel, since the peer may be
    /// elsewhere.
    pub(super) fn may_replace_tunnels_of(self, (from, to): Pair) -> bool {
        match self {
            Self::Kill(Victim::Agent) => [from, to].contains(&RELAYED.0),
            Self::Unplug(node) => [from, to].contains(&node),
            Self::Kill(Victim::Cloud(_)) | Self::Freeze(_) => false,
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud(Part::Services) => "AS and NMS",
            Self::Cloud(Part::Relay) => "TRS",
            Self::Agent => "an agent",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Kill(victim) => format!("{victim} killed"),
            Self::Freeze(victim) => format!("{victim} frozen"),
            Self::Unplug(node) => format!("{node} unplugged"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_each_time_and_another_gives_others() {
        let first = |seed| Plan::new(seed).take(200).collect::<Vec<_>>();
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
        let drawn = first(7);
        assert!(ALL.iter().all(|fault| drawn.iter().any(|(other, _)| other == fault)), "each has its turn");
    }
}
