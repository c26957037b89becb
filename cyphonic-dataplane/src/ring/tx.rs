//! The sending worker: virtual interface → seal → UDP port.
//!
//! One thread at a time owns every sealer. It reads a packet or a super-packet, finds its tunnel, cuts and seals it in one
//! pass into the batch, and sends the batch when it is full, when the next packet does not fit behind the last,
//! or when the device has nothing more. While the socket has no room it waits: then the device's queue fills, and
//! the kernel's queueing discipline and TCP see what they would see in front of a slow link.

mod batch;
mod control;
mod tunnels;
mod wide;

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use cyphonic_common::limits::TUNNEL_OVERHEAD;
use cyphonic_common::policy::Direction;
use cyphonic_common::{DropReason, InterfaceConfig, Verdict, classify_egress};

use self::batch::Batch;
use self::tunnels::Tunnels;
use super::command::{Answer, RxCommand, TxCommand};
use super::counters::Counters;
use super::device::Source;
use super::duty::Turn;
use super::hold::{Held, Hold, Holding};
use super::icmp::{self, ErrorLimit, Problem};
use super::wake::Waker;
use super::{EventSink, PathMtu, Permissions, RingEvent, ecn};
use crate::gso::{SuperPacket, VnetHeader};
use crate::protect::{HEADER_LEN, SealError};
use crate::udp::{Transmit, UdpPort};

/// The type byte of a DATAGRAM frame that runs to the end of its packet (RFC 9221 §4).
const DATAGRAM: u8 = 0x30;
/// How long the worker waits for room in the socket before it drops a batch: a stuck network card must not stop
/// control.
const SEND_PATIENCE: Duration = Duration::from_millis(500);
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
    pub(super) stop: Arc<AtomicBool>,
    pub(super) hold: Hold,
}

/// See the module.
pub(super) struct TxWorker {
    parts: TxParts,
    tunnels: Tunnels,
    batch: Batch,
    errors: ErrorLimit,
    /// What may pass, where not everything may and no program says so.
    permissions: Option<Arc<Permissions>>,
    /// Where probes, and packets that go in pieces, are written first.
    scratch: Vec<u8>,
    now: Instant,
}

impl TxWorker {
    pub(super) fn new(parts: TxParts) -> Self {
        let now = Instant::now();
        let (tunnels, batch, errors) = (Tunnels::default(), Batch::new(), ErrorLimit::new(now));
        Self { parts, tunnels, batch, errors, permissions: None, scratch: Vec::new(), now }
    }

    /// Takes what was asked for, then up to `reads` packets from the source. What is sealed leaves with the turn in
    /// which the source runs dry.
    ///
    /// # Errors
    /// The virtual interface is gone.
    pub(super) fn turn(&mut self, source: &mut impl Source, reads: u32) -> io::Result<Turn> {
        self.now = Instant::now();
        if self.parts.waker.take() {
            self.take_commands();
        }
        for read in 0..reads {
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
            self.parts.counters.count_drop(reason, 1);
        }
    }

    fn try_send_read(&mut self, vnet: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let dst = match classify_egress(packet, &self.parts.config) {
            Verdict::Tunnel { dst } => Ipv6Addr::from(dst),
            Verdict::Drop(reason) => return Err(reason),
        };
        let Some(tunnel) = self.tunnels.sending(dst) else { return self.hold(dst, vnet, packet) };
        if let Some(permissions) = &self.permissions {
            permissions.judge(packet, Direction::Out)?;
        }
        let whole = SuperPacket::parse(vnet, packet).ok_or(DropReason::LengthMismatch)?;
        let ecn = ecn::of_ipv6(packet);
        match self.tunnels.get(tunnel).map(|tunnel| tunnel.whole) {
            Some(fits) if whole.largest() <= fits => self.seal(tunnel, &whole, ecn),
            Some(_) => self.send_wide(tunnel, whole, ecn),
            None => Err(DropReason::NoTunnel),
        }
    }

    /// Cuts and seals a packet into the batch, and sends the batch whenever the next part has no room in it.
    fn seal(&mut self, index: usize, whole: &SuperPacket<'_>, ecn: u8) -> Result<(), DropReason> {
        for part in 0..whole.count() {
            self.seal_part(index, whole, part, ecn)?;
        }
        Ok(())
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

    /// Sends the batch.
    fn flush(&mut self) {
        let Some(sealed) = self.batch.take() else { return };
        let Some(tunnel) = self.tunnels.get_mut(sealed.tunnel) else { return self.batch.clear() };
        let transmit = Transmit {
            dest: tunnel.path.remote,
            ecn: (sealed.ecn != 0).then_some(sealed.ecn),
            payload: self.batch.bytes(),
            segment_size: Some(sealed.stride),
            src_ip: None,
        };
        let loss = transmit_all(&self.parts.port, &transmit, &self.parts.counters, &self.parts.stop);
        let counters = &self.parts.counters;
        let packets = sealed.inner_packets_without(loss.packets);
        counters.tx_sends.fetch_add(1, Relaxed);
        counters.tx_packets.fetch_add(packets, Relaxed);
        // First the part, then the whole: nobody sees a packet counted whose size is not.
        if sealed.stride > usize::from(PathMtu::BASE_DATAGRAM) {
            tunnel.shared.tx.add_large(sealed.packets);
        }
        tunnel.shared.tx.add(packets, sealed.inner_bytes_without(loss.packets));
        tunnel.shared.touch_inner(self.now);
        self.batch.clear();
        if loss.too_big {
            Self::interface_shrank(tunnel, &self.parts.events);
        }
        let challenge = tunnel.sealer.poll_key_update(self.now);
        if challenge.is_some() || tunnel.sealer.is_key_update_pending() {
            self.challenge_keys(sealed.tunnel, challenge);
        }
    }

    #[cold]
    fn hold(&mut self, dst: Ipv6Addr, vnet: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let report = !self.tunnels.has(dst);
        let holding = self.parts.hold.push(dst, *vnet, packet, report, self.now);
        self.parts.counters.held.store(self.parts.hold.len() as u64, Relaxed);
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
        self.parts.counters.held.store(self.parts.hold.len() as u64, Relaxed);
        self.flush();
    }

    /// Tells an application that its packet goes nowhere.
    fn answer(&mut self, problem: Problem, offending: &[u8]) {
        let mut out = [0; icmp::MAX_ERROR];
        let Some(len) = icmp::error(problem, self.parts.own, offending, &mut out) else { return };
        if !self.errors.allows(self.now) {
            return;
        }
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
        [held, tick].into_iter().flatten().min()
    }
}

/// What of a batch was not sent.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    packets: u64,
    /// Because the interface is too small for it.
    too_big: bool,
}

/// Sends a batch, waiting for room as long as is reasonable.
fn transmit_all(port: &UdpPort, transmit: &Transmit<'_>, counters: &Counters, stop: &AtomicBool) -> Loss {
    let stride = transmit.segment_size.unwrap_or(transmit.payload.len()).max(1);
    let mut transmit = *transmit;
    loop {
        let (sent, result) = port.send_counted(&transmit);
        transmit.payload = transmit.payload.get(sent..).unwrap_or_default();
        let Err(error) = result else { return Loss::default() };
        let full = error.kind() == io::ErrorKind::WouldBlock;
        if full && !stop.load(Relaxed) && port.wait_writable(SEND_PATIENCE).unwrap_or(false) {
            continue;
        }
        let reason = match error.raw_os_error() {
            _ if full => DropReason::QueueFull,
            Some(libc::EMSGSIZE) => DropReason::TooBig,
            _ => DropReason::SendFailed,
        };
        let packets = transmit.payload.len().div_ceil(stride) as u64;
        counters.count_drop(reason, packets);
        return Loss { packets, too_big: reason == DropReason::TooBig };
    }
}
