//! The receiving worker: UDP port (and network cards' AF_XDP sockets, where the ring has any) → open →
//! virtual interface.
//!
//! One thread owns every opener and is the port's only reader. It opens the datagrams of a receive batch in
//! place, checks every inner packet against its tunnel, and then writes what belongs together as
//! super-packets straight out of the receive buffers. What is not tunnel data goes to signalling, in runs.

mod cards;
mod datagram;
mod joiner;
mod sources;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use cyphonic_common::quic::PUNCH;
use cyphonic_common::stun::is_stun;
use cyphonic_common::{ConnectionId, DatagramKind, DropReason, classify_datagram};

use self::cards::CardQueues;
pub(super) use self::cards::{AnyQueue, CardQueue};
pub(super) use self::datagram::Arrived;
use self::datagram::{Out, Peer};
use super::command::{Answer, RxCommand};
use super::counters::Counters;
use super::device::Delivery;
use super::duty::Turn;
use super::permissions::Enforced;
use super::wake::Waker;
use super::{EarlyPackets, EventSink};
use crate::gso::Slot;
use crate::hash::WordHasher;
use crate::udp::{self, Message, RecvBatch, SignallingSink, UdpPort};

/// Messages per receive call, each of up to 64 KiB: with receive offload one holds a whole super-packet.
pub(crate) const MESSAGES: usize = 16;
/// Batches of frames after which the port is looked at, though there may be more frames.
const FRAME_BATCHES: u32 = 8;
/// Messages that are handled together, wherever they come from.
const BATCH: usize = if cards::BATCH > MESSAGES { cards::BATCH } else { MESSAGES };
/// In a [`Slot`]: the packet lies where packets are joined, in none of the messages' buffers.
const JOINED: u32 = u32::MAX;
/// How often old keys are looked at while there are any.
const KEY_INTERVAL: Duration = Duration::from_secs(1);
/// How long after a key update old keys may be left over.
const KEY_AFTERMATH: Duration = Duration::from_secs(10);
/// Receive errors in a row that do not [pass](udp::is_passing) by themselves, after which the port is taken to be
/// broken.
const MAX_ERRORS: u32 = 100;
/// The pause after a receive error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What the worker is built from.
pub(super) struct RxParts {
    pub(super) port: Arc<UdpPort>,
    pub(super) sink: Arc<dyn SignallingSink>,
    pub(super) own: Ipv6Addr,
    pub(super) events: EventSink,
    pub(super) counters: Arc<Counters>,
    pub(super) commands: Receiver<RxCommand>,
    pub(super) answers: SyncSender<Answer>,
    pub(super) tx_waker: Arc<Waker>,
    /// What may pass, where not everything may and no program says so.
    pub(super) permissions: Option<Arc<Enforced>>,
    /// What came before its tunnel.
    pub(super) early: Arc<EarlyPackets>,
}

/// See the module.
pub(super) struct RxWorker<D> {
    parts: RxParts,
    delivery: D,
    cards: CardQueues,
    /// Batches of frames since the port was looked at.
    frame_batches: u32,
    peers: HashMap<ConnectionId, Peer, BuildHasherDefault<WordHasher>>,
    /// The batch's packets that came in pieces.
    joined: Vec<u8>,
    /// See [`Out::found`].
    found: Vec<Range<usize>>,
    /// Until when old keys must be looked at.
    aftermath: Option<Instant>,
    keys_looked_at: Instant,
    /// Receive errors in a row, as [`MAX_ERRORS`] counts them.
    errors: u32,
}

impl<D: Delivery> RxWorker<D> {
    pub(super) fn new(parts: RxParts, delivery: D) -> Self {
        Self {
            parts,
            delivery,
            cards: CardQueues::default(),
            frame_batches: 0,
            peers: HashMap::default(),
            joined: Vec::new(),
            found: Vec::new(),
            aftermath: None,
            keys_looked_at: Instant::now(),
            errors: 0,
        }
    }

    /// Takes what was asked for, then one batch of frames, or of the port's messages where there are no
    /// frames: asking the port costs a system call, which frames do not.
    ///
    /// # Errors
    /// The port is broken.
    pub(super) fn turn(&mut self, batch: &mut RecvBatch) -> io::Result<Turn> {
        self.take_commands();
        let frames = if self.frame_batches < FRAME_BATCHES { self.receive_from_cards() } else { 0 };
        if frames > 0 {
            self.frame_batches += 1;
            return Ok(Turn { done: frames, dry: false });
        }
        let more_frames = std::mem::take(&mut self.frame_batches) >= FRAME_BATCHES;
        match self.parts.port.recv_batch(batch) {
            Ok(messages) => {
                self.errors = 0;
                self.receive(batch.messages_mut());
                return Ok(Turn { done: messages as u32, dry: false });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.errors = 0;
                self.expire_keys();
            }
            Err(error) => {
                // With the ring all tunnels end: what nobody has thought of is given time to pass, too.
                self.errors += u32::from(!udp::is_passing(&error));
                if self.errors > MAX_ERRORS {
                    return Err(error);
                }
                tracing::debug!(%error, "receiving from the ring's port");
                std::thread::sleep(ERROR_PAUSE);
            }
        }
        Ok(Turn { done: 0, dry: !more_frames })
    }

    /// What tells of frames, where there are network cards that give some.
    pub(super) fn cards_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.cards.descriptor()
    }

    /// Opens a batch of frames, if there are any. Returns how many.
    fn receive_from_cards(&mut self) -> u32 {
        let received = self.cards.receive();
        if received > 0 {
            // Out of the worker, which the frames' packets are opened with.
            let mut frames = std::mem::take(&mut self.cards);
            self.receive(frames.messages_mut(self.parts.port.nat64()));
            let malformed = frames.give_back();
            self.cards = frames;
            if malformed > 0 {
                self.parts.counters.count_drop(DropReason::MalformedOuter, malformed);
            }
        }
        received as u32
    }

    /// How long nothing is due; what the host was too slow for is tried again first.
    pub(super) fn timeout(&mut self) -> Option<Duration> {
        if self.delivery.behind().is_some() {
            self.delivery.flush(|_| &[], &self.parts.counters);
        }
        self.delivery.behind().or_else(|| self.aftermath.is_some().then_some(KEY_INTERVAL))
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.parts.commands.try_recv() {
            match command {
                RxCommand::Install(tunnel) => {
                    let cid = tunnel.local_cid;
                    self.peers.insert(cid, Peer::new(*tunnel));
                    self.open_early(cid);
                }
                RxCommand::Remove(cid) => drop(self.peers.remove(&cid)),
                RxCommand::Deliver(packet) => self.delivery.deliver(&packet, &self.parts.counters),
                RxCommand::SetPermissions(permissions) => self.parts.permissions = permissions,
                RxCommand::AddQueue(queue) => self.cards.add(*queue),
                RxCommand::RemoveCard(card, done) => self.cards.remove(card, &done),
                RxCommand::SetPath(cid, path) => {
                    if let Some(peer) = self.peers.get_mut(&cid) {
                        peer.set_path(path);
                    }
                }
            }
        }
    }

    /// Opens what has arrived, then writes it.
    fn receive<'b>(&mut self, messages: impl Iterator<Item = Message<'b>>) {
        let now = Instant::now();
        let mut buffers: [&[u8]; BATCH] = [&[]; BATCH];
        for ((index, message), buffer) in messages.enumerate().zip(&mut buffers) {
            *buffer = self.receive_message(index as u32, message, now);
        }
        self.flush(&buffers);
    }

    /// Hands what was opened to the host: it lies in `buffers`, or where packets are joined.
    fn flush(&mut self, buffers: &[&[u8]]) {
        let joined = self.joined.as_slice();
        let bytes = |slot: Slot| {
            let other = if slot.buffer == JOINED { joined } else { &[] };
            let buffer = buffers.get(slot.buffer as usize).copied().unwrap_or(other);
            buffer.get(slot.start as usize..(slot.start + slot.len) as usize).unwrap_or_default()
        };
        self.delivery.flush(bytes, &self.parts.counters);
        self.joined.clear();
    }

    /// Handles each datagram of a message and returns the buffer, in which opened packets now lie in clear.
    fn receive_message<'b>(&mut self, index: u32, message: Message<'b>, now: Instant) -> &'b [u8] {
        let Message { from, local_ip, ecn, payload, stride, handed_on } = message;
        let mut at = 0;
        while let Some(rest) = payload.get_mut(at..).filter(|rest| !rest.is_empty()) {
            let len = stride.min(rest.len());
            let (datagram, _) = rest.split_at_mut(len);
            match classify_datagram(datagram) {
                DatagramKind::Data(cid) => {
                    let place = Slot { buffer: index, start: at as u32, len: len as u32 };
                    let mut arrived = Arrived { datagram, place, from, ecn: ecn.unwrap_or(0), now };
                    match self.open(cid, &mut arrived) {
                        Ok(()) => {}
                        // What was handed on to this worker already is nobody's.
                        Err(DropReason::UnknownConnectionId) if !handed_on && self.hand_on(cid, &arrived) => {
                        }
                        Err(reason) => self.parts.counters.count_drop(reason, 1),
                    }
                    at += len;
                }
                DatagramKind::Signalling => {
                    let run = run_of_signalling(rest, stride);
                    self.parts.sink.deliver(from, local_ip, ecn, rest.get(..run).unwrap_or_default(), stride);
                    at += run;
                }
                DatagramKind::NotQuic if datagram == PUNCH => at += len,
                DatagramKind::NotQuic => {
                    self.receive_other(from, local_ip, datagram);
                    at += len;
                }
            }
        }
        payload
    }

    fn open(&mut self, cid: ConnectionId, arrived: &mut Arrived<'_>) -> Result<(), DropReason> {
        let Some(peer) = self.peers.get_mut(&cid) else { return self.hold(cid, arrived) };
        let updates = peer.opener.key_updates();
        let (parts, delivery, joined) = (&self.parts, &mut self.delivery, &mut self.joined);
        let mut out = Out { parts, delivery, joined, found: &mut self.found };
        let result = peer.open(&mut out, arrived);
        if peer.opener.key_updates() != updates {
            peer.shared.rx.set_key_updates(peer.opener.key_updates());
            self.aftermath = Some(arrived.now + KEY_AFTERMATH);
            // The sending half follows at once, so that the peer's update is acknowledged (RFC 9001 §6.2).
            self.parts.tx_waker.wake();
        }
        result
    }

    /// A packet without a tunnel: held if one is under way, else dropped.
    #[cold]
    fn hold(&self, cid: ConnectionId, arrived: &Arrived<'_>) -> Result<(), DropReason> {
        let held = self.parts.early.hold(cid, arrived);
        let others = held.ok_or(DropReason::UnknownConnectionId)?;
        self.parts.counters.count_drop(DropReason::UnknownConnectionId, others);
        Ok(())
    }

    /// A packet of no tunnel of this worker's: another's, if the program that chooses among them did not know
    /// that.
    #[cold]
    fn hand_on(&self, cid: ConnectionId, arrived: &Arrived<'_>) -> bool {
        let ecn = (arrived.ecn != 0).then_some(arrived.ecn);
        let group = self.parts.port.group();
        group.is_some_and(|group| group.hand_on_stray(cid, arrived.from, ecn, arrived.datagram))
    }

    /// Opens what came before the tunnel that was just installed.
    #[cold]
    fn open_early(&mut self, cid: ConnectionId) {
        let now = Instant::now();
        let (packets, old) = self.parts.early.take(cid, now);
        self.parts.counters.count_drop(DropReason::UnknownConnectionId, old);
        for mut early in packets {
            let (from, ecn) = (early.from, early.ecn);
            let place = Slot { buffer: 0, start: 0, len: early.datagram.len() as u32 };
            let mut arrived = Arrived { datagram: &mut early.datagram, place, from, ecn, now };
            if let Err(reason) = self.open(cid, &mut arrived) {
                self.parts.counters.count_drop(reason, 1);
            }
            self.flush(&[&early.datagram]);
        }
    }

    /// A datagram that is no QUIC packet: STUN, or nothing of ours.
    #[cold]
    fn receive_other(&self, from: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]) {
        if !(is_stun(datagram) && self.parts.sink.deliver_stun(from, local_ip, datagram)) {
            self.parts.counters.count_drop(DropReason::NotQuic, 1);
        }
    }

    fn expire_keys(&mut self) {
        let Some(until) = self.aftermath else { return };
        let now = Instant::now();
        if now.saturating_duration_since(self.keys_looked_at) < KEY_INTERVAL {
            return;
        }
        self.keys_looked_at = now;
        self.peers.values_mut().for_each(|peer| peer.opener.expire_keys(now));
        if now >= until {
            self.aftermath = None;
        }
    }
}

/// The bytes of the signalling datagrams at the start of `rest`, which begins with one.
fn run_of_signalling(rest: &[u8], stride: usize) -> usize {
    let run =
        rest.chunks(stride).take_while(|datagram| classify_datagram(datagram) == DatagramKind::Signalling);
    run.map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests;
