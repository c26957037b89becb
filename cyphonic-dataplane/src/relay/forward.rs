//! What the worker does with a batch: find runs of datagrams of one kind, rewrite, send on.
//!
//! The kernel delivers a sender's datagrams merged (UDP_GRO), with equal sizes. Those of one leg go out the
//! same way (UDP_SEGMENT), from the very buffer they came in: no copy, one system call and one set of
//! counters per run.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use cyphonic_common::relay::Origin;
use cyphonic_common::stun::is_stun;
use cyphonic_common::{ConnectionId, DatagramKind, DropReason, classify_datagram, quic};

use super::leg::{LegCounters, Shared};
use super::resets::{Budget, Resets};
use super::userspace::{Change, Counters};
use crate::hash::WordHasher;
use crate::udp::{self, Message, RecvBatch, SignallingSink, Transmit, UdpPort};

/// How long the worker waits for room in the socket's buffer before it drops: arriving packets queue
/// meanwhile.
const SEND_PATIENCE: Duration = Duration::from_millis(5);

/// The worker's state, which no other thread touches.
pub(super) struct Forwarder<'a> {
    sender: Sender<'a>,
    sink: &'a dyn SignallingSink,
    counters: &'a Counters,
    start: Instant,
    resets: Option<&'a Resets>,
    budget: Budget,
    legs: HashMap<ConnectionId, Bound, BuildHasherDefault<WordHasher>>,
}

/// Sends, and counts what it sends.
struct Sender<'a> {
    port: &'a UdpPort,
    counters: &'a Counters,
}

/// A leg as the worker has it.
struct Bound {
    shared: Arc<Shared>,
    /// See [`RelayRate::spend`](super::RelayRate::spend), on a clock that stood at 0 when the relay started.
    paid_until_ns: u64,
}

impl Bound {
    /// Whether a datagram that came from here and to there is the leg's. Where the kernel has not told the
    /// address that it came to, any will do.
    fn accepts(&self, from: SocketAddr, local_ip: Option<IpAddr>) -> bool {
        Origin::new(from, local_ip.or(self.shared.leg.local)).is_bound(&self.shared.bound)
    }

    /// How many bytes of the run, in whole datagrams, are within the leg's rate.
    fn admit(&mut self, len: usize, stride: usize, since_start: Duration) -> usize {
        let rate = self.shared.leg.rate;
        if rate.is_unlimited() {
            return len;
        }
        let now_ns = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX);
        let mut admitted = 0;
        while admitted < len {
            let datagram = stride.min(len - admitted);
            if !rate.spend(&mut self.paid_until_ns, now_ns, datagram as u64) {
                break;
            }
            admitted += datagram;
        }
        admitted
    }
}

impl<'a> Forwarder<'a> {
    pub(super) fn new(
        port: &'a UdpPort,
        sink: &'a dyn SignallingSink,
        counters: &'a Counters,
        start: Instant,
        resets: Option<&'a Resets>,
    ) -> Self {
        let (budget, legs) = (Budget::default(), HashMap::default());
        Self { sender: Sender { port, counters }, sink, counters, start, resets, budget, legs }
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Set(cid, shared) => {
                let paid_until_ns = self.legs.get(&cid).map_or(0, |bound| bound.paid_until_ns);
                self.legs.insert(cid, Bound { shared, paid_until_ns });
            }
            Change::Remove(cid) => {
                self.legs.remove(&cid);
            }
        }
    }

    pub(super) fn forward(&mut self, batch: &mut RecvBatch) {
        let since_start = self.start.elapsed();
        for message in batch.messages_mut() {
            self.forward_message(message, since_start);
        }
    }

    fn forward_message(&mut self, message: Message<'_>, since_start: Duration) {
        let Message { from, local_ip, ecn, payload, stride, .. } = message;
        let mut rest = payload;
        while let Some((kind, len)) = first_run(rest, stride) {
            let (run, tail) = rest.split_at_mut(len);
            rest = tail;
            let packets = len.div_ceil(stride) as u64;
            match kind {
                DatagramKind::Signalling => {
                    self.sink.deliver(from, local_ip, ecn, run, stride);
                    self.counters.signalling.fetch_add(packets, Relaxed);
                }
                DatagramKind::NotQuic => self.receive_other(from, local_ip, run, stride),
                DatagramKind::Data(cid) => match self.legs.get_mut(&cid) {
                    None => {
                        self.counters.count_drop(DropReason::UnknownConnectionId, packets);
                        self.reset(cid, from, local_ip, stride.min(len), since_start);
                    }
                    Some(bound) if !bound.accepts(from, local_ip) => {
                        self.counters.count_drop(DropReason::UnboundSource, packets);
                    }
                    Some(bound) => {
                        let admitted = bound.admit(len, stride, since_start);
                        let (run, over) = run.split_at_mut(admitted);
                        if !over.is_empty() {
                            let over = over.len().div_ceil(stride) as u64;
                            self.counters.count_drop(DropReason::RateLimited, over);
                        }
                        self.sender.pass_on(&bound.shared, run, stride, ecn, since_start);
                    }
                },
            }
        }
    }

    /// Datagrams that are no QUIC packets: STUN, or nothing of ours.
    #[cold]
    fn receive_other(&self, from: SocketAddr, local_ip: Option<IpAddr>, run: &[u8], stride: usize) {
        let strange = run
            .chunks(stride)
            .filter(|datagram| !(is_stun(datagram) && self.sink.deliver_stun(from, local_ip, datagram)))
            .count();
        self.counters.count_drop(DropReason::NotQuic, strange as u64);
    }

    /// Tells a sender that its leg is not there, once for a run of its packets.
    #[cold]
    fn reset(
        &mut self,
        cid: ConnectionId,
        to: SocketAddr,
        src_ip: Option<IpAddr>,
        trigger_len: usize,
        since_start: Duration,
    ) {
        let Some(resets) = self.resets else { return };
        if !self.budget.take(since_start) {
            return;
        }
        let Some(reset) = resets.answer(cid, trigger_len) else { return };
        let transmit = Transmit { src_ip, ..Transmit::new(to, reset.as_bytes()) };
        // The next packet brings another one.
        if self.sender.port.send(&transmit).is_ok() {
            self.counters.resets.fetch_add(1, Relaxed);
        }
    }
}

impl Sender<'_> {
    fn pass_on(
        &self,
        shared: &Shared,
        run: &mut [u8],
        stride: usize,
        ecn: Option<u8>,
        since_start: Duration,
    ) {
        if run.is_empty() {
            return;
        }
        let leg = &shared.leg;
        rewrite(run, stride, leg.real_cid);
        let transmit =
            Transmit { dest: leg.to, ecn, payload: run, segment_size: Some(stride), src_ip: leg.source };
        self.send(&transmit, stride, &shared.counters, since_start);
    }

    fn send(&self, transmit: &Transmit<'_>, stride: usize, counters: &LegCounters, since_start: Duration) {
        let mut transmit = *transmit;
        let mut waited = false;
        loop {
            let (sent, result) = self.port.send_counted(&transmit);
            if sent > 0 {
                let packets = sent.div_ceil(stride) as u64;
                counters.add(packets, sent as u64, since_start);
                self.counters.packets.fetch_add(packets, Relaxed);
                self.counters.bytes.fetch_add(sent as u64, Relaxed);
            }
            transmit.payload = &transmit.payload[sent..];
            let Err(error) = result else { return };
            let full = error.kind() == io::ErrorKind::WouldBlock;
            if full && !waited && matches!(self.port.wait_writable(SEND_PATIENCE), Ok(true)) {
                waited = true;
                continue;
            }
            let reason = udp::drop_reason(&error);
            // What came with packets that are too large may be smaller: where a network passes no UDP, a
            // node's probes of its path's size come in one message with the packet that followed
            // them.
            let alone = transmit.payload.len() <= stride;
            let smaller =
                if reason == DropReason::TooBig && !alone { transmit.payload.len() % stride } else { 0 };
            let (lost, rest) = transmit.payload.split_at(transmit.payload.len() - smaller);
            self.counters.count_drop(reason, lost.len().div_ceil(stride) as u64);
            if rest.is_empty() {
                return;
            }
            transmit.payload = rest;
        }
    }
}

/// The kind of the first datagram, and the bytes of it and all that follow with the same kind and ID.
fn first_run(datagrams: &[u8], stride: usize) -> Option<(DatagramKind, usize)> {
    let mut chunks = datagrams.chunks(stride);
    let first = chunks.next()?;
    let kind = classify_datagram(first);
    let more = chunks.take_while(|datagram| classify_datagram(datagram) == kind);
    Some((kind, first.len() + more.map(<[u8]>::len).sum::<usize>()))
}

/// Writes the receiver's own connection ID into each datagram. All were classified, so all are long enough.
fn rewrite(run: &mut [u8], stride: usize, real_cid: ConnectionId) {
    for datagram in run.chunks_mut(stride) {
        if let Some(cid) = datagram.get_mut(1..quic::SHORT_HEADER_LEN) {
            cid.copy_from_slice(real_cid.as_bytes());
        }
    }
}
