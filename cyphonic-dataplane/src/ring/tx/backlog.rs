//! What the port had no room for, in the order in which it leaves once there is some.
//!
//! Nobody waits for that here: the thread that sends is usually the one that receives. While anything is
//! kept, nothing is read from the virtual interface, so what is kept is what became of one read, of packets
//! that were held for new tunnels, and of control. It is allocated for, but only while the link is slower
//! than the applications.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_common::DropReason;

use super::batch::Sealed;
use crate::ring::shared::Shared;
use crate::udp::{self, Transmit};

/// How long something is kept before it is dropped: behind a stuck network card nothing would ever leave.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is tried again while the kernel does not tell of room: it does so once half of the buffer is
/// empty, which takes a slow link longer than the patience.
pub(super) const RETRY: Duration = Duration::from_millis(5);
/// Control packets that are kept. Peers cause them, too.
const MAX_CONTROL: usize = 256;

/// What was sealed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// Inner packets.
    Batch(Sealed),
    /// A control packet, and whether it goes where the tunnel's packets go.
    Control { on_path: bool },
}

/// Why the rest of a transmission will never leave, and how many packets that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Loss {
    pub(super) packets: u64,
    pub(super) reason: DropReason,
}

/// What became of a transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// It left, but for what is lost.
    Done(Option<Loss>),
    /// There was no room for what is behind so many bytes.
    Full(usize),
}

impl Sent {
    /// By what the port said.
    pub(super) fn of(transmit: &Transmit<'_>, (sent, result): (usize, io::Result<()>)) -> Self {
        let Err(error) = result else { return Self::Done(None) };
        if error.kind() == io::ErrorKind::WouldBlock {
            return Self::Full(sent);
        }
        let reason = udp::drop_reason(&error);
        Self::Done(Some(Loss { packets: packets_behind(transmit, sent), reason }))
    }
}

/// Packets behind the first `sent` bytes.
fn packets_behind(transmit: &Transmit<'_>, sent: usize) -> u64 {
    let stride = transmit.segment_size.unwrap_or(transmit.payload.len()).max(1);
    transmit.payload.len().saturating_sub(sent).div_ceil(stride) as u64
}

/// Something sealed that waits for room.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) shared: Arc<Shared>,
    pub(super) load: Load,
    pub(super) dest: SocketAddr,
    ecn: Option<u8>,
    segment_size: Option<usize>,
    bytes: Box<[u8]>,
    /// Bytes that have left.
    sent: usize,
    since: Instant,
}

impl Unsent {
    fn rest(&self) -> Transmit<'_> {
        let payload = self.bytes.get(self.sent..).unwrap_or_default();
        let Self { dest, ecn, segment_size, .. } = *self;
        Transmit { dest, ecn, payload, segment_size, src_ip: None }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Goes first: it is little, and paths and keys depend on it.
    control: VecDeque<Unsent>,
    /// Each flow's packets stay in order.
    batches: VecDeque<Unsent>,
}

impl Backlog {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.control.is_empty()
    }

    /// Whether control must wait for other control.
    pub(super) fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Keeps what is behind the first `sent` bytes. The loss, if there is no place for it.
    #[cold]
    pub(super) fn keep(
        &mut self,
        shared: &Arc<Shared>,
        load: Load,
        transmit: &Transmit<'_>,
        sent: usize,
        now: Instant,
    ) -> Option<Loss> {
        let queue = match load {
            Load::Batch(_) => &mut self.batches,
            Load::Control { .. } if self.control.len() < MAX_CONTROL => &mut self.control,
            Load::Control { .. } => {
                return Some(Loss { packets: packets_behind(transmit, sent), reason: DropReason::QueueFull });
            }
        };
        let Transmit { dest, ecn, segment_size, .. } = *transmit;
        let bytes = transmit.payload.get(sent..).unwrap_or_default().into();
        let shared = Arc::clone(shared);
        queue.push_back(Unsent { shared, load, dest, ecn, segment_size, bytes, sent: 0, since: now });
        None
    }

    /// Sends on. The next of what was kept that has left or is lost; `None` when there is nothing, or no
    /// room.
    pub(super) fn next_done(
        &mut self,
        now: Instant,
        send: impl Fn(&Load, &Transmit<'_>) -> (usize, io::Result<()>),
    ) -> Option<(Unsent, Option<Loss>)> {
        let queue = if self.control.is_empty() { &mut self.batches } else { &mut self.control };
        let first = queue.front_mut()?;
        let rest = first.rest();
        let loss = match Sent::of(&rest, send(&first.load, &rest)) {
            Sent::Done(loss) => loss,
            Sent::Full(sent) => {
                first.sent += sent;
                if now.saturating_duration_since(first.since) < PATIENCE {
                    return None;
                }
                Some(Loss { packets: packets_behind(&first.rest(), 0), reason: DropReason::QueueFull })
            }
        };
        queue.pop_front().map(|done| (done, loss))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use cyphonic_common::ConnectionId;

    use super::*;
    use crate::ring::{Path, TunnelId};

    const STRIDE: usize = 100;

    /// A port with room for so many packets of [`STRIDE`] bytes.
    struct Port(Cell<usize>);

    impl Port {
        fn send(&self, transmit: &Transmit<'_>) -> (usize, io::Result<()>) {
            let fits = (self.0.get() * STRIDE).min(transmit.payload.len());
            self.0.set(self.0.get() - fits.div_ceil(STRIDE));
            let full = fits < transmit.payload.len();
            (fits, if full { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) })
        }
    }

    fn shared() -> Arc<Shared> {
        let remote = SocketAddr::from(([192, 0, 2, 1], 9));
        let wire_cid = ConnectionId::from_random_data([1; 8]);
        Arc::new(Shared::new(TunnelId(1), Path { remote, wire_cid }, 0, Instant::now()))
    }

    fn batch(payload: &[u8]) -> Transmit<'_> {
        let dest = SocketAddr::from(([192, 0, 2, 1], 9));
        Transmit { segment_size: Some(STRIDE), ..Transmit::new(dest, payload) }
    }

    fn is_control(done: &(Unsent, Option<Loss>)) -> bool {
        matches!(done.0.load, Load::Control { .. })
    }

    const BATCH: Load = Load::Batch(Sealed::NONE);
    const CONTROL: Load = Load::Control { on_path: true };

    #[test]
    fn what_is_kept_goes_on_where_it_stopped_and_control_goes_first() {
        let (mut backlog, shared, now) = (Backlog::default(), shared(), Instant::now());
        let packets: Vec<u8> = (0..5 * STRIDE).map(|at| (at / STRIDE) as u8).collect();
        // Two of the five have left.
        assert_eq!(backlog.keep(&shared, BATCH, &batch(&packets), 2 * STRIDE, now), None);
        assert_eq!(backlog.keep(&shared, BATCH, &batch(&[7; STRIDE]), 0, now), None);
        assert_eq!(backlog.keep(&shared, CONTROL, &batch(&[9; 50]), 0, now), None);
        let (port, seen) = (Port(Cell::new(0)), Cell::new(Vec::new()));
        let send = |_: &Load, transmit: &Transmit<'_>| {
            let (sent, result) = port.send(transmit);
            let mut all = seen.take();
            all.extend(transmit.payload[..sent].chunks(STRIDE).map(|packet| packet[0]));
            seen.set(all);
            (sent, result)
        };
        assert!(backlog.next_done(now, send).is_none(), "no room");
        port.0.set(3);
        let done = backlog.next_done(now, send).unwrap();
        assert!(is_control(&done) && done.1.is_none());
        assert!(backlog.next_done(now, send).is_none(), "room for a part");
        port.0.set(2);
        for _ in 0..2 {
            let done = backlog.next_done(now, send).unwrap();
            assert!(!is_control(&done) && done.1.is_none());
        }
        assert!(backlog.is_empty() && backlog.next_done(now, send).is_none());
        assert_eq!(seen.take(), [9, 2, 3, 4, 7]);
    }

    #[test]
    fn what_finds_no_room_for_too_long_is_lost_and_the_rest_has_its_own_time() {
        let (mut backlog, shared, start) = (Backlog::default(), shared(), Instant::now());
        let later = start + PATIENCE / 2;
        backlog.keep(&shared, BATCH, &batch(&[1; 3 * STRIDE]), 0, start);
        backlog.keep(&shared, BATCH, &batch(&[2; STRIDE]), 0, later);
        let port = Port(Cell::new(1));
        assert!(backlog.next_done(later, |_, transmit| port.send(transmit)).is_none());
        let end = start + PATIENCE;
        let (_, loss) = backlog.next_done(end, |_, transmit| port.send(transmit)).unwrap();
        assert_eq!(loss, Some(Loss { packets: 2, reason: DropReason::QueueFull }));
        assert!(backlog.next_done(end, |_, transmit| port.send(transmit)).is_none());
        port.0.set(1);
        assert_eq!(backlog.next_done(end, |_, transmit| port.send(transmit)).unwrap().1, None);
    }

    #[test]
    fn another_error_loses_what_it_met_and_control_is_bounded() {
        let (mut backlog, shared, now) = (Backlog::default(), shared(), Instant::now());
        backlog.keep(&shared, BATCH, &batch(&[1; 3 * STRIDE]), 0, now);
        let fails = |_: &Load, _: &Transmit<'_>| (STRIDE, Err(io::Error::from_raw_os_error(libc::EMSGSIZE)));
        let (_, loss) = backlog.next_done(now, fails).unwrap();
        assert_eq!(loss, Some(Loss { packets: 2, reason: DropReason::TooBig }));
        let kept = (0..1000).filter(|_| backlog.keep(&shared, CONTROL, &batch(&[1]), 0, now).is_none());
        assert_eq!(kept.count(), MAX_CONTROL);
    }
}
