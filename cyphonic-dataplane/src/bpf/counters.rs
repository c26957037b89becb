//! What the classifier has counted, with names.

use cyphonic_common::DropReason;
use cyphonic_common::map::{Counter, CounterIndex};

use super::error::BpfError;
use super::object::Object;

/// A classifier's counters, summed over all CPUs at one moment (more or less: CPUs go on counting while they
/// are read).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassifierCounters {
    /// Packets from applications that went on to a tunnel.
    pub tunnel: Counter,
    /// The super-packets among them.
    pub tunnel_super: Counter,
    /// Those among them whose destination had no tunnel yet.
    pub unknown: Counter,
    /// Those among them to whose destination no tunnel could be had.
    pub dead: Counter,
    /// Packets that came out of tunnels.
    pub ingress: Counter,
    /// The super-packets among them.
    pub ingress_super: Counter,
    dropped: [Counter; DropReason::COUNT],
}

impl ClassifierCounters {
    /// Packets that were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> Counter {
        usize::try_from(reason.index())
            .ok()
            .and_then(|index| self.dropped.get(index))
            .copied()
            .unwrap_or_default()
    }

    /// Every reason for which something was dropped.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, Counter)> + '_ {
        let all = DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason)));
        all.filter(|(_, counter)| counter.packets != 0)
    }

    /// Packets dropped for any reason but noise.
    #[cfg(test)]
    pub(super) fn dropped_total(&self) -> Counter {
        self.drops()
            .filter(|(reason, _)| !reason.is_noise())
            .fold(Counter::default(), |sum, (_, counter)| sum.plus(counter))
    }

    pub(super) fn read(object: &Object) -> Result<Self, BpfError> {
        let map = object.counters()?;
        let read = |index: CounterIndex| -> Result<Counter, BpfError> {
            let per_cpu = map
                .get(&index.index(), 0)
                .map_err(|source| BpfError::Map { map: cyphonic_common::map::name::COUNTERS, source })?;
            Ok(per_cpu.iter().fold(Counter::default(), |sum, counter| sum.plus(counter.0)))
        };
        let mut dropped = [Counter::default(); DropReason::COUNT];
        for (slot, reason) in dropped.iter_mut().zip(DropReason::ALL) {
            *slot = read(CounterIndex::Dropped(*reason))?;
        }
        Ok(Self {
            tunnel: read(CounterIndex::Tunnel)?,
            tunnel_super: read(CounterIndex::TunnelSuper)?,
            unknown: read(CounterIndex::TunnelUnknown)?,
            dead: read(CounterIndex::TunnelDead)?,
            ingress: read(CounterIndex::Ingress)?,
            ingress_super: read(CounterIndex::IngressSuper)?,
            dropped,
        })
    }
}
