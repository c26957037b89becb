//! The sending worker: virtual interface → seal → UDP port.
//!
//! One thread at a time owns every sealer. It reads a packet or a super-packet, finds its tunnel, cuts and
//! seals it in one pass into the batch, and sends the batch when it is full, when the next packet does not
//! fit behind the last, or when the device has nothing more. What the socket has no room for is kept, and
//! until it has left the device is not read: its queue fills, and then the kernel drops there what more
//! comes, which TCP takes as it does drops in front of a slow link.

mod backlog;
mod batch;
mod control;
mod tunnels;
mod wide;

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use cyphonic_common::frame::DATAGRAM;
use cyphonic_common::limits::TUNNEL_OVERHEAD;
use cyphonic_common::policy::{Direction, EVERY_CLASS};
use cyphonic_common::{DropReason, InterfaceConfig, classify_egress};

use self::backlog::{Backlog, Load, Loss, Sent};
pub(crate) use self::batch::Batch;
use self::batch::Sealed;
use self::tunnels::Tunnels;
use super::command::{Answer, RxCommand, TxCommand};
use super::counters::Counters;
use super::device::Source;
use super::duty::Turn;
use super::hold::{Held, Hold, Holding};
use super::icmp::{self, ErrorLimit, Problem};
use super::permissions::Enforced;
use super::shared::Shared;
use super::wake::Waker;
use super::{EventSink, PathMtu, RingEvent, ecn};
use crate::gso::{SuperPacket, VnetHeader};
use crate::protect::{HEADER_LEN, SealError};
use crate::udp::{Transmit, UdpPort};

/// The pace of repeated challenges.
const TICK: Duration = Duration::from_millis(50);

/// What the worker is built from.
pub(super) struct TxParts {
    pub(super) port: Arc<UdpPort>,
    pub(super) config: InterfaceConfig,
    pub(super) own: Ipv6Addr,
    pub(super) events: EventSink,
    pub(super) counters: Arc<Counters>,
    pub(super) commands: Receiver<TxCommand>,
    pub(super) answers: Receiver<Answer>,
    /// To the receiving worker, which alone writes to the virtual interface.
    pub(super) deliver: Sender<RxCommand>,
    pub(super) waker: Arc<Waker>,
    pub(super) hold: Hold,
}

/// See the module.
pub(super) struct TxWorker {
    parts: TxParts,
    tunnels: Tunnels,
    batch: Batch,
    /// What the socket had no room for.
    backlog: Backlog,
    errors: ErrorLimit,
    /// What may pass, where not everything may and no program says so.
    permissions: Option<Arc<Enforced>>,
    /// Where probes, and packets that go in pieces, are written first.
    scratch: Vec<u8>,
    now: Instant,
}

impl TxWorker {
    pub(super) fn new(parts: TxParts) -> Self {
        let now = Instant::now();
        let (tunnels, batch, errors) = (Tunnels::default(), Batch::new(), ErrorLimit::new(now));
        let (backlog, scratch) = (Backlog::default(), Vec::new());
        Self { parts, tunnels, batch, backlog, errors, permissions: None, scratch, now }
    }

    /// Takes what was asked for, then up to `reads` packets from the source. What is sealed leaves with the
    /// turn in which the source runs dry, or with later ones if the socket has no room for it; until then
    /// the source is not read.
    ///
    /// # Errors
    /// The virtual interface is gone.
    pub(super) fn turn(&mut self, source: &mut impl Source, reads: u32) -> io::Result<Turn> {
        self.now = Instant::now();
        if self.parts.waker.take() {
            self.take_commands();
        }
        if self.awaits_room() {
            self.send_backlog();
        }
        for read in 0..reads {
            if self.awaits_room() {
                self.tick();
                return Ok(Turn { done: read, dry: true });
            }
            match source.read() {
                Ok(Some((vnet, packet))) => self.send_read(&vnet, packet),
                Ok(None) => self.parts.counters.count_drop(DropReason::Truncated, 1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.flush();
                    self.tick();
                    return Ok(Turn { done: read, dry: true });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.tick();
        Ok(Turn { done: reads, dry: false })
    }

    /// What came from the virtual interface, or was held since.
    fn send_read(&mut self, vnet: &VnetHeader, packet: &[u8]) {
        if let Err(reason) = self.try_send_read(vnet, packet) {
            let packets = SuperPacket::parse(vnet, packet).map_or(1, |whole| whole.count());
            self.parts.counters.count_drop(reason, packets as u64);
        }
    }

    /// The error is why nothing of it went: not even a first part.
    fn try_send_read(&mut self, vnet: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let dst = Ipv6Addr::from(classify_egress(packet, &self.parts.config)?);
        let Some(tunnel) = self.tunnels.sending(dst) else { return self.hold(dst, vnet, packet) };
        if let Some(permissions) = &self.permissions {
            let class = self.tunnels.get(tunnel).map_or(EVERY_CLASS, |tunnel| tunnel.shared.class());
            permissions.judge(packet, (dst, class), Direction::Out, self.now)?;
        }
        let whole = SuperPacket::parse(vnet, packet).ok_or(DropReason::LengthMismatch)?;
        let ecn = ecn::of_ipv6(packet);
        match self.tunnels.get(tunnel).map(|tunnel| tunnel.whole) {
            Some(fits) if whole.largest() <= fits => {
                self.seal(tunnel, &whole, ecn);
                Ok(())
            }
            Some(_) => self.send_wide(tunnel, whole, ecn),
            None => Err(DropReason::NoTunnel),
        }
    }

    /// Cuts and seals a packet into the batch, and sends the batch whenever the next part has no room in it.
    fn seal(&mut self, index: usize, whole: &SuperPacket<'_>, ecn: u8) {
        for part in 0..whole.count() {
            if let Err(reason) = self.seal_part(index, whole, part, ecn) {
                return self.count_rest(reason, whole, part);
            }
        }
    }

    /// Counts the parts of a packet that will not go, from `first` on.
    #[cold]
    fn count_rest(&self, reason: DropReason, whole: &SuperPacket<'_>, first: usize) {
        self.parts.counters.count_drop(reason, (whole.count() - first) as u64);
    }

    #[inline]
    fn seal_part(
        &mut self,
        index: usize,
        whole: &SuperPacket<'_>,
        part: usize,
        ecn: u8,
    ) -> Result<(), DropReason> {
        let inner = whole.part_len(part);
        let len = inner + TUNNEL_OVERHEAD;
        if !self.batch.takes(index, ecn, len) {
            self.flush();
        }
        let Some(tunnel) = self.tunnels.get_mut(index) else { return Err(DropReason::NoTunnel) };
        let out = self.batch.room(len).ok_or(DropReason::TooBig)?;
        let payload = out.get_mut(HEADER_LEN..).ok_or(DropReason::TooBig)?;
        let (kind, rest) = payload.split_first_mut().ok_or(DropReason::TooBig)?;
        *kind = DATAGRAM;
        whole.write_part(part, rest).ok_or(DropReason::TooBig)?;
        match tunnel.sealer.seal(tunnel.remote_cid, tunnel.path.wire_cid, out, 1 + inner) {
            Ok(_) => {
                self.batch.commit(index, ecn, len, inner);
                Ok(())
            }
            Err(error) => {
                self.seal_failed(index, error);
                Err(error.drop_reason())
            }
        }
    }

    #[cold]
    fn seal_failed(&mut self, index: usize, error: SealError) {
        let Some(tunnel) = self.tunnels.get_mut(index) else { return };
        if error == SealError::KeysExhausted && !tunnel.exhausted {
            tunnel.exhausted = true;
            (self.parts.events)(RingEvent::KeysExhausted { tunnel: tunnel.shared.id });
        }
    }

    /// Sends the batch, or keeps it behind what found no room before.
    fn flush(&mut self) {
        let Some(mut sealed) = self.batch.take() else { return };
        let Some(tunnel) = self.tunnels.get_mut(sealed.tunnel) else { return self.batch.clear() };
        sealed.relayed = tunnel.path.is_relayed(tunnel.remote_cid);
        let transmit = Transmit {
            dest: tunnel.path.remote,
            ecn: (sealed.ecn != 0).then_some(sealed.ecn),
            payload: self.batch.bytes(),
            segment_size: Some(sealed.stride),
            src_ip: None,
        };
        // What was before it may have been given up: then the room that was left to others still is theirs.
        let sent = match self.backlog.is_empty() && self.parts.port.admits_bulk() {
            true => Sent::of(&transmit, self.parts.port.send_counted(&transmit)),
            false => Sent::Full(0),
        };
        match sent {
            Sent::Done(loss) => {
                batch_left(&self.parts.counters, &tunnel.shared, &sealed, loss, self.now);
                if is_too_big(loss) {
                    Self::interface_shrank(tunnel, &self.parts.events);
                }
            }
            Sent::Full(sent) => {
                self.parts.port.reserve();
                // There is a place for every batch.
                self.backlog.keep(&tunnel.shared, Load::Batch(sealed), &transmit, sent, self.now);
            }
        }
        self.batch.clear();
        let challenge = tunnel.sealer.poll_key_update(self.now);
        if challenge.is_some() || tunnel.sealer.is_key_update_pending() {
            self.challenge_keys(sealed.tunnel, challenge);
        }
    }

    /// Whether the socket has no room: nothing more is read until it has.
    #[inline]
    pub(super) fn awaits_room(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends what there is room for now of what was kept.
    #[cold]
    fn send_backlog(&mut self) {
        let port = &self.parts.port;
        let admits_bulk = port.admits_bulk();
        let send = |load: &Load, rest: &Transmit<'_>| match load {
            Load::Batch(_) if !admits_bulk => (0, Err(io::ErrorKind::WouldBlock.into())),
            Load::Batch(_) | Load::Control { .. } => port.send_counted(rest),
        };
        while let Some((done, loss)) = self.backlog.next_done(self.now, send) {
            match done.load {
                Load::Batch(sealed) => {
                    batch_left(&self.parts.counters, &done.shared, &sealed, loss, self.now);
                    // A path that the tunnel has left since says nothing of the one that it is on.
                    if is_too_big(loss)
                        && let Some(tunnel) = self.tunnels.by_id_mut(done.shared.id)
                        && tunnel.path.remote == done.dest
                    {
                        Self::interface_shrank(tunnel, &self.parts.events);
                    }
                }
                Load::Control { on_path } => {
                    control_left(&self.parts.counters, &done.shared, on_path, loss, self.now);
                }
            }
        }
        if self.awaits_room() {
            port.reserve();
        }
    }

    #[cold]
    fn hold(&mut self, dst: Ipv6Addr, vnet: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let report = !self.tunnels.has(dst);
        let holding = self.parts.hold.push(dst, *vnet, packet, report, self.now);
        self.count_held();
        if matches!(holding, Holding::Report | Holding::FullReport) {
            (self.parts.events)(RingEvent::UnknownDestination { dst });
        }
        match holding {
            Holding::Held | Holding::Report => Ok(()),
            Holding::Full | Holding::FullReport => Err(DropReason::QueueFull),
        }
    }

    /// Sends what was held for a destination, in order.
    fn release(&mut self, dst: Ipv6Addr) {
        for Held { vnet, packet } in self.parts.hold.take(dst) {
            self.send_read(&vnet, &packet);
        }
        self.count_held();
        self.flush();
    }

    /// Tells an application that its packet goes nowhere, if it may be told: `offending` is written only
    /// then.
    #[cold]
    fn answer(&mut self, problem: Problem, offending: &SuperPacket<'_>) {
        if !self.errors.allows(problem, self.now) {
            return;
        }
        let mut first = vec![0; offending.largest()];
        let Some(len) = offending.write_part(0, &mut first) else { return };
        let mut out = [0; icmp::MAX_ERROR];
        let offending = first.get(..len).unwrap_or_default();
        let Some(len) = icmp::error(problem, self.parts.own, offending, &mut out) else { return };
        let packet = out.get(..len).unwrap_or_default().into();
        match self.parts.deliver.send(RxCommand::Deliver(packet)) {
            Ok(()) => self.parts.port.wake(),
            Err(_) => self.parts.counters.count_drop(DropReason::InterfaceFailed, 1),
        }
    }

    /// How long nothing is due.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let held = self.parts.hold.deadline().map(|due| due.saturating_duration_since(self.now));
        let tick = self.tunnels.is_watching().then_some(TICK);
        let retry = self.awaits_room().then_some(backlog::RETRY);
        [held, tick, retry].into_iter().flatten().min()
    }
}

/// Counts a batch that has left, but for what was lost.
fn batch_left(counters: &Counters, shared: &Shared, sealed: &Sealed, loss: Option<Loss>, now: Instant) {
    let lost = loss.map_or(0, |loss| loss.packets);
    if let Some(loss) = loss {
        counters.count_drop(loss.reason, loss.packets);
    }
    let packets = sealed.inner_packets_without(lost);
    counters.tx_sends.count();
    // First the part, then the whole: nobody sees a packet counted whose size is not.
    if sealed.stride > usize::from(PathMtu::BASE_DATAGRAM) {
        shared.tx.add_large(sealed.packets);
    }
    let bytes = sealed.inner_bytes_without(lost);
    counters.sent.add(sealed.relayed, packets, bytes);
    shared.tx.add(packets, bytes);
    shared.touch_inner(now);
}

/// Counts a control packet that has left, or was lost.
fn control_left(counters: &Counters, shared: &Shared, on_path: bool, loss: Option<Loss>, now: Instant) {
    if let Some(loss) = loss {
        counters.count_drop(loss.reason, loss.packets);
    }
    if on_path {
        shared.touch_tx(now);
    }
}

fn is_too_big(loss: Option<Loss>) -> bool {
    loss.is_some_and(|loss| loss.reason == DropReason::TooBig)
}
