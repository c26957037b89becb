//! The buffers that datagrams are received into.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use cyphonic_common::Nat64Prefix;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};
use socket2::Socket;

use super::canonical;
use super::group::PortGroup;

/// Bytes per buffer: the most that UDP_GRO puts into one message, so that nothing is ever truncated.
const BUFFER_LEN: usize = 65_536;

/// Reusable buffers and metadata for one receive call.
pub struct RecvBatch {
    buffers: Box<[u8]>,
    metas: [RecvMeta; BATCH_SIZE],
    messages: usize,
    received: usize,
    /// What was received, another worker has handed on.
    handed_on: bool,
    translation: Option<Nat64Prefix>,
}

/// Datagrams that arrived together: same source, same size (the last may be shorter), same ECN bits.
#[derive(Debug)]
pub struct Message<'a> {
    /// Where from.
    pub from: SocketAddr,
    /// The local address it was sent to.
    pub local_ip: Option<IpAddr>,
    /// The two ECN bits of the outer header; nothing for Not-ECT.
    pub ecn: Option<u8>,
    /// The datagrams, back to back: at least one byte.
    pub payload: &'a mut [u8],
    /// The size of each: at least 1.
    pub stride: usize,
    /// Whether another worker received it, and handed it on to this one.
    pub handed_on: bool,
}

impl RecvBatch {
    /// Room for that many messages (1 to 32) of 64 KiB each.
    pub fn new(messages: usize) -> Self {
        let messages = messages.clamp(1, BATCH_SIZE);
        Self {
            buffers: vec![0; messages * BUFFER_LEN].into_boxed_slice(),
            metas: [RecvMeta::default(); BATCH_SIZE],
            messages,
            received: 0,
            handed_on: false,
            translation: None,
        }
    }

    /// What is received from now on from within this prefix comes from IPv4.
    #[inline]
    pub(super) fn translated_by(&mut self, translation: Option<Nat64Prefix>) {
        self.translation = translation;
    }

    /// What the last receive call brought.
    pub fn messages_mut(&mut self) -> impl Iterator<Item = Message<'_>> {
        let buffers = self.buffers.chunks_exact_mut(BUFFER_LEN);
        let (translation, handed_on) = (self.translation, self.handed_on);
        buffers.zip(&self.metas).take(self.received).filter(|(_, meta)| meta.len > 0).map(
            move |(buffer, meta)| {
                let len = meta.len.min(BUFFER_LEN);
                Message {
                    from: inward(canonical(meta.addr), translation),
                    local_ip: meta.dst_ip.map(|ip| ip.to_canonical()),
                    ecn: meta.ecn.map(|ecn| ecn as u8),
                    payload: &mut buffer[..len],
                    stride: meta.stride.clamp(1, len),
                    handed_on,
                }
            },
        )
    }

    /// Takes what other workers have handed on to this one. The number of messages.
    pub(super) fn collect(&mut self, group: &PortGroup, own: usize) -> usize {
        let buffers = self.buffers.chunks_exact_mut(BUFFER_LEN).take(self.messages);
        self.received = group.collect(own, buffers.zip(&mut self.metas));
        self.handed_on = self.received > 0;
        self.received
    }

    /// Whether the last receive call brought what other workers had handed on.
    #[inline]
    pub(super) fn is_handed_on(&self) -> bool {
        self.handed_on
    }

    /// Hands on what is other workers'.
    pub(super) fn sort(&mut self, group: &PortGroup, own: usize) {
        let buffers = self.buffers.chunks_exact_mut(BUFFER_LEN);
        for (buffer, meta) in buffers.zip(&mut self.metas).take(self.received) {
            group.sort(own, meta, buffer);
        }
    }

    pub(super) fn receive(&mut self, state: &UdpSocketState, socket: &Socket) -> io::Result<usize> {
        (self.received, self.handed_on) = (0, false);
        let mut chunks = self.buffers.chunks_exact_mut(BUFFER_LEN);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let slices = &mut slices[..self.messages];
        self.received = state.recv(UdpSockRef::from(socket), slices, &mut self.metas)?;
        Ok(self.received)
    }
}

/// What comes from within a translator's prefix comes from IPv4.
#[inline]
fn inward(from: SocketAddr, translation: Option<Nat64Prefix>) -> SocketAddr {
    match translation {
        None => from,
        Some(prefix) => prefix.inward(from),
    }
}
