//! Checks and counters of a leg.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use cyphonic_common::ConnectionId;
use cyphonic_common::relay::Origin;

use super::{Leg, LegStats, RelayMapError};

/// The leg with canonical addresses, or why it could not work under this virtual connection ID.
pub(super) fn checked(cid: ConnectionId, leg: &Leg) -> Result<Leg, RelayMapError> {
    for id in [cid, leg.real_cid] {
        if !id.is_data() {
            return Err(RelayMapError::NotDataId(id));
        }
    }
    leg.check()?;
    let leg = leg.canonical();
    check_address(leg.from)?;
    check_address(leg.to)?;
    Ok(leg)
}

/// Refuses a canonical address that no packet comes from or goes to.
fn check_address(address: SocketAddr) -> Result<(), RelayMapError> {
    let ip = address.ip();
    let broadcast = match ip {
        std::net::IpAddr::V4(v4) => v4.is_broadcast(),
        std::net::IpAddr::V6(_) => false,
    };
    if ip.is_unspecified() || ip.is_multicast() || broadcast || address.port() == 0 {
        return Err(RelayMapError::BadAddress(address));
    }
    Ok(())
}

/// A leg as control plane and worker share it: one of these in memory, and a pointer to it in each one's
/// table.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) leg: Leg,
    /// What the leg demands of its packets' origin.
    pub(super) bound: Origin,
    /// Another leg in this one's place counts on.
    pub(super) counters: Arc<LegCounters>,
}

impl Shared {
    pub(super) fn new(leg: Leg, counters: Arc<LegCounters>) -> Self {
        Self { leg, bound: Origin::new(leg.from, leg.local), counters }
    }
}

/// Written by the worker, once per run of packets, and read by the control plane.
#[derive(Debug, Default)]
pub(super) struct LegCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Nanoseconds from the relay's start to the last packet, plus one; 0 before the first.
    last_seen_ns: AtomicU64,
}

impl LegCounters {
    #[inline]
    pub(super) fn add(&self, packets: u64, bytes: u64, since_start: Duration) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        let ns = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX - 1);
        self.last_seen_ns.store(ns + 1, Relaxed);
    }

    /// Adds what was counted elsewhere, up to now.
    pub(super) fn carry(&self, carried: LegStats, start: Instant) {
        self.packets.fetch_add(carried.packets, Relaxed);
        self.bytes.fetch_add(carried.bytes, Relaxed);
        if let Some(seen) = carried.last_seen {
            let ns = u64::try_from(seen.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX - 1);
            self.last_seen_ns.fetch_max(ns + 1, Relaxed);
        }
    }

    pub(super) fn snapshot(&self, start: Instant) -> LegStats {
        let last_seen = self.last_seen_ns.load(Relaxed).checked_sub(1);
        LegStats {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            last_seen: last_seen.and_then(|ns| start.checked_add(Duration::from_nanos(ns))),
        }
    }
}
