//! Where a worker runs while little happens: on the processor that its packets arrive on.
//!
//! The network card's interrupt, and with it the kernel's half of receiving, comes to one processor. If the worker sleeps
//! on another one, that one must be woken by an interrupt between processors, from a sleep state, with cold caches: in a
//! virtual machine that alone takes longer than all else a packet needs. So a worker that sleeps between packets follows
//! them. A worker that is busy is the scheduler's to place again.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::udp::UdpPort;

/// Waits between two looks at how things are.
const INTERVAL: u32 = 16;
/// A worker that sleeps at least this share of its time has little to do, in percent. Time in which another thread has
/// the processor counts as work: two busy workers on one processor must part.
const IDLE_PERCENT: u32 = 70;

/// See the module.
#[derive(Debug)]
pub(super) struct Vicinity {
    /// Where the thread may run; `None` where there is no choice, or no telling.
    allowed: Option<CpuSet>,
    /// Where it has gone.
    at: Option<usize>,
    waits: u32,
    since: Instant,
    slept: Duration,
}

impl Vicinity {
    /// Of the thread that calls. What the operator has allowed it stays the limit.
    pub(super) fn of_this_thread() -> Self {
        let allowed = sched_getaffinity(None).ok().filter(|allowed| allowed.count() > 1);
        Self { allowed, at: None, waits: 0, since: Instant::now(), slept: Duration::ZERO }
    }

    /// The worker has slept from `start` to `end`. Sees, now and then, to being where packets arrive.
    pub(super) fn slept(&mut self, start: Instant, end: Instant, port: &UdpPort) {
        self.waits += 1;
        self.slept += end.saturating_duration_since(start);
        if self.waits < INTERVAL {
            return;
        }
        let elapsed = end.saturating_duration_since(self.since);
        let idle = self.slept * 100 >= elapsed * IDLE_PERCENT;
        (self.waits, self.since, self.slept) = (0, end, Duration::ZERO);
        if idle {
            self.follow(port);
        } else {
            self.leave();
        }
    }

    fn follow(&mut self, port: &UdpPort) {
        let Some(allowed) = &self.allowed else { return };
        let Some(there) = port.arrival_processor().filter(|cpu| *cpu < CpuSet::MAX_CPU && allowed.is_set(*cpu)) else { return };
        if self.at != Some(there) {
            let mut only = CpuSet::new();
            only.set(there);
            // If the system refuses, it is as before.
            self.at = sched_setaffinity(None, &only).ok().map(|()| there);
        }
    }

    /// There is much to do: the scheduler shall choose.
    pub(super) fn leave(&mut self) {
        if let Some(allowed) = self.allowed.as_ref().filter(|_| self.at.take().is_some()) {
            let _ = sched_setaffinity(None, allowed);
        }
    }
}
