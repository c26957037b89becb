//! The search for what one path carries: Datagram Packetization Layer Path MTU Discovery (RFC 8899).
//!
//! Sizes are bytes of UDP payload: what a path through a relay has in common at both its legs, whatever their
//! address families. Probes are data packets of the tunnel with nothing but a challenge in them, so a probe
//! that is lost costs nobody anything, and one that arrives is acknowledged by the challenge's response
//! (§4.1).
//!
//! | Phase (§5.2) | Is left when |
//! |---|---|
//! | `Base` | a probe of [`BASE`] bytes is answered. While none is, nothing is known, also not that the path is narrow |
//! | `Searching` | no size is left between the largest that was answered and the smallest that was not |
//! | `Complete` | the path seems to carry less (§4.3), is another, or is to be tried for more (§5.1.1) |
//!
//! RFC 8899 sends one probe at a time. Here a round of a few sizes is on its way together, which finds the
//! usual sizes in one round trip; a size that is not answered [`MAX_PROBES`] times is too large. The last try
//! is accompanied by one of [`BASE`]: if that is not answered either, it is the path that is silent, and
//! nothing is concluded. ICMP is not believed (§4.6.1): what it says, the confirmation finds out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_common::limits::{MIN_INNER_MTU, MIN_PROBE_DATAGRAM, TUNNEL_OVERHEAD};

use crate::ConnectionId;

/// BASE_PLPMTU: QUIC's least, which every path of a tunnel carries (§5.1.2, RFC 9000 §14).
pub(crate) const BASE: u16 = MIN_PROBE_DATAGRAM as u16;
/// MAX_PROBES (§5.1.2).
const MAX_PROBES: u32 = 3;
/// PMTU_RAISE_TIMER (§5.1.1).
const RAISE: Duration = Duration::from_secs(600);
/// How often the present size is confirmed while packets of that size leave (CONFIRMATION_TIMER, §5.1.1):
/// this and the time-outs of the probes bound how long a path that has become narrower swallows packets.
const CONFIRM: Duration = Duration::from_secs(1);
/// PROBE_TIMER: this many round trips for the first try, within the bounds; doubled for each further one.
const ROUND_TRIPS: u32 = 3;
const LEAST_WAIT: Duration = Duration::from_millis(100);
const MOST_WAIT: Duration = Duration::from_secs(3);
/// Probes on their way together.
const ROUND: usize = 5;
/// Sizes closer than this are not told apart (§5.3.2 leaves it to the implementation).
const GRANULE: u16 = 8;
/// What is often the limit: paths of 1,280, 1,400, 1,492 (PPPoE), 1,500 and 9,000 bytes under IPv6 and IPv4.
const LADDER: [u16; 10] = [1_232, 1_252, 1_352, 1_372, 1_444, 1_452, 1_464, 1_472, 8_952, 8_972];

/// What a path carries, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// The largest UDP payload.
    pub datagram: u16,
    /// The largest inner packet that applications are to send.
    pub inner: u16,
}

/// Where a path leads.
pub(crate) type Path = (SocketAddr, ConnectionId);

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) size: u16,
    pub(crate) data: [u8; 8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Base,
    Searching,
    Complete,
}

/// A probe on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    probe: Probe,
    /// The first try.
    first: Instant,
    tries: u32,
    due: Instant,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    path: Path,
    phase: Phase,
    /// The largest inner packet that both ends take.
    most_inner: u16,
    /// What applications are told.
    inner: u16,
    /// The largest size that was answered.
    carried: u16,
    /// The smallest that was not, or one more than is worth trying.
    refused: u16,
    sent: Vec<Sent>,
    /// Of the size that is used; beside the search.
    confirming: Option<Sent>,
    confirmed_at: Instant,
    /// When to confirm it next, while packets of that size leave.
    confirm_at: Option<Instant>,
    raise_at: Instant,
    round_trip: Option<Duration>,
    /// Whether that was measured, not only bounded.
    measured: bool,
}

impl Search {
    /// A search on a path that nothing is known of. `inner` is what applications send meanwhile.
    pub(crate) fn new(path: Path, inner: u16, most_inner: u16, now: Instant) -> Self {
        Self {
            path,
            phase: Phase::Base,
            most_inner,
            inner,
            carried: BASE,
            refused: limit(most_inner),
            sent: Vec::new(),
            confirming: None,
            confirmed_at: now,
            confirm_at: None,
            raise_at: now,
            round_trip: None,
            measured: false,
        }
    }

    /// What the path carries now. The inner size stays as it was until the search is over, so that
    /// applications are told no passing value.
    pub(crate) const fn mtu(&self) -> PathMtu {
        PathMtu { datagram: self.carried, inner: self.inner }
    }

    pub(crate) const fn path(&self) -> Path {
        self.path
    }

    /// Whether nothing more is to be found out for now.
    pub(crate) fn is_complete(&self) -> bool {
        self.phase == Phase::Complete
    }

    /// The tunnel has another path.
    pub(crate) fn moved(&mut self, path: Path, now: Instant) {
        *self = Self::new(path, self.inner, self.most_inner, now);
    }

    /// The tunnel has carried something since the last time: from time to time it is tried whether the path
    /// carries more. With large packets among it the present size is confirmed as often, and at once if the
    /// peer has become silent. On a path that carries none there are none.
    pub(crate) fn used(&mut self, large: bool, answered: bool, now: Instant) {
        let beyond = limit(self.most_inner);
        if self.phase == Phase::Complete && self.raise_at <= now && self.carried + 1 < beyond {
            self.refused = beyond;
            self.phase = Phase::Searching;
        }
        if !large {
            return;
        }
        if answered {
            self.confirm_at.get_or_insert(self.confirmed_at + CONFIRM);
        } else {
            self.doubt(now);
        }
    }

    /// Something says that the path carries less than it did: to be found out now.
    pub(crate) fn doubt(&mut self, now: Instant) {
        if self.confirming.is_none() && self.carried > BASE {
            let probe = Probe { size: self.carried, data: [0; 8] };
            self.confirming = Some(Sent { probe, first: now, tries: 0, due: now });
        }
    }

    /// The response to a challenge; false if the challenge was no probe.
    pub(crate) fn answered(&mut self, data: [u8; 8], now: Instant) -> bool {
        if let Some(sent) = self.confirming.filter(|sent| sent.probe.data == data && sent.tries > 0) {
            self.confirming = None;
            self.confirmed_at = now;
            self.measure(&sent, now);
            return true;
        }
        let Some(sent) = self.sent.iter().find(|sent| sent.probe.data == data).copied() else { return false };
        self.measure(&sent, now);
        self.carried = self.carried.max(sent.probe.size);
        // What carries the larger one carries the smaller ones.
        self.sent.retain(|other| other.probe.size > sent.probe.size);
        if sent.probe.size > BASE {
            self.confirmed_at = now;
        }
        if self.phase == Phase::Base {
            self.phase = Phase::Searching;
        }
        self.settle(now);
        true
    }

    /// This host's interface does not take a probe, or packets of the size in use.
    pub(crate) fn too_big(&mut self, probe: Option<[u8; 8]>, now: Instant) {
        let of = |sent: &Sent| Some(sent.probe.data) == probe;
        if probe.is_none() || self.confirming.as_ref().is_some_and(of) {
            return self.fall(now);
        }
        // Nothing less than BASE can be tried: an interface that does not take it is asked again in time.
        let size = self.sent.iter().find(|sent| of(sent)).map(|sent| sent.probe.size);
        if let Some(size) = size.filter(|size| *size > BASE) {
            self.refuse(size, now);
        }
    }

    /// The probes that are due, with challenges from `fresh`.
    pub(crate) fn poll(&mut self, now: Instant, mut fresh: impl FnMut() -> [u8; 8]) -> Vec<Probe> {
        self.give_up(now);
        if self.confirm_at.is_some_and(|at| at <= now) {
            self.confirm_at = None;
            self.doubt(now);
        }
        if self.sent.is_empty() {
            let sizes = self.next_sizes();
            let sent = |size| Sent { probe: Probe { size, data: fresh() }, first: now, tries: 0, due: now };
            self.sent = sizes.into_iter().map(sent).collect();
        }
        self.accompany(now, &mut fresh);
        let wait = self.wait();
        let mut probes = Vec::new();
        if let Some(confirming) = &mut self.confirming
            && confirming.tries == 0
        {
            confirming.probe.data = fresh();
        }
        for sent in self.sent.iter_mut().chain(&mut self.confirming).filter(|sent| sent.due <= now) {
            if sent.tries == 0 {
                sent.first = now;
            }
            sent.due = now + (wait * (1 << sent.tries.min(4))).min(MOST_WAIT);
            sent.tries += 1;
            probes.push(sent.probe);
        }
        probes
    }

    /// Before sizes are tried for the last time: has a probe of the least size go with them, which every path
    /// carries. It is due when they are.
    fn accompany(&mut self, now: Instant, fresh: impl FnOnce() -> [u8; 8]) {
        let is_last = |sent: &Sent| sent.due <= now && sent.tries + 1 == MAX_PROBES;
        if self.phase == Phase::Searching && self.sent.iter().any(is_last) {
            let probe = Probe { size: BASE, data: fresh() };
            self.sent.push(Sent { probe, first: now, tries: MAX_PROBES - 1, due: now });
        }
    }

    /// When to poll next.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        self.sent.iter().chain(&self.confirming).map(|sent| sent.due).chain(self.confirm_at).min()
    }

    /// What was not answered often enough is too large.
    fn give_up(&mut self, now: Instant) {
        let over = |sent: &Sent| sent.tries >= MAX_PROBES && sent.due <= now;
        if self.confirming.as_ref().is_some_and(over) {
            self.fall(now);
        }
        // The least one: it takes those above it with it.
        let lost = self.sent.iter().filter(|sent| over(sent)).map(|sent| sent.probe.size).min();
        match lost {
            // Silence is no sign of a narrow path. When it is over, larger sizes are tried anew.
            Some(BASE) => {
                self.sent.retain(|sent| sent.probe.size == BASE);
                self.sent.iter_mut().for_each(|sent| sent.tries = MAX_PROBES);
            }
            Some(size) => self.refuse(size, now),
            None => {}
        }
    }

    fn refuse(&mut self, size: u16, now: Instant) {
        self.refused = self.refused.min(size);
        self.sent.retain(|sent| sent.probe.size < size);
        self.settle(now);
    }

    /// A black hole, or nearly one: only what every path carries is sent until more is known (§4.3).
    fn fall(&mut self, now: Instant) {
        self.carried = BASE;
        self.refused = limit(self.most_inner);
        self.phase = Phase::Base;
        self.sent.clear();
        self.confirming = None;
        self.confirm_at = None;
        self.confirmed_at = now;
    }

    fn settle(&mut self, now: Instant) {
        if self.phase == Phase::Searching && self.sent.is_empty() && self.next_sizes().is_empty() {
            self.phase = Phase::Complete;
            self.raise_at = now + RAISE;
            let fits = self.carried.saturating_sub(TUNNEL_OVERHEAD as u16);
            self.inner = fits.max(MIN_INNER_MTU as u16).min(self.most_inner);
        }
    }

    /// What the next round tries: of the usual sizes those that are open, else a few in even steps.
    fn next_sizes(&self) -> Vec<u16> {
        match self.phase {
            Phase::Base => return vec![BASE],
            Phase::Complete => return Vec::new(),
            Phase::Searching => {}
        }
        let (low, high) = (self.carried, self.refused);
        let most = limit(self.most_inner) - 1;
        let mut usual: Vec<u16> =
            LADDER.into_iter().chain([most]).filter(|size| (low + 1..high).contains(size)).collect();
        usual.dedup();
        if !usual.is_empty() {
            return spread(&usual);
        }
        let gap = high - low;
        if gap <= GRANULE {
            return Vec::new();
        }
        let steps = ROUND as u16;
        let mut sizes: Vec<u16> = (1..=steps)
            .map(|step| low + (u32::from(gap) * u32::from(step) / u32::from(steps + 1)) as u16)
            .collect();
        sizes.dedup();
        sizes
    }

    fn measure(&mut self, sent: &Sent, now: Instant) {
        let took = now.saturating_duration_since(sent.first);
        if sent.tries == 1 {
            let smoothed = self.round_trip.filter(|_| self.measured).map(|before| (before * 7 + took) / 8);
            self.round_trip = Some(smoothed.unwrap_or(took));
            self.measured = true;
        } else if self.round_trip.is_none() {
            // A response to one of several tries says nothing about the time it took (RFC 6298 §3), but that
            // it was no longer than since the first. Without that, a path slower than all tries
            // together would never be measured.
            self.round_trip = Some(took);
        }
    }

    fn wait(&self) -> Duration {
        self.round_trip
            .map_or(LEAST_WAIT, |round_trip| (round_trip * ROUND_TRIPS).clamp(LEAST_WAIT, MOST_WAIT))
    }
}

/// One more than the largest size that is of use.
fn limit(most_inner: u16) -> u16 {
    most_inner.saturating_add(TUNNEL_OVERHEAD as u16).max(BASE).saturating_add(1)
}

/// At most a round of them, the largest among them, the others evenly.
fn spread(sizes: &[u16]) -> Vec<u16> {
    if sizes.len() <= ROUND {
        return sizes.to_vec();
    }
    let picked = (1..=ROUND).filter_map(|nth| sizes.get(sizes.len() * nth / ROUND - 1));
    picked.copied().collect()
}

#[cfg(test)]
mod tests;
