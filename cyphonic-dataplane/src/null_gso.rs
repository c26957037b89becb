//! A tunnel without keys: the offload ring's pipe, and nothing else.
//!
//! Super-packets are read from a TUN device, cut, and sent in segmented batches; what arrives is joined and written.
//! There is no cryptography, no peer, no check of anything. It exists to be measured: what a ring adds to this is the
//! price of protection, and what this costs is the kernel's. Only built with the feature `bench`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use crate::gso::{Coalescer, Slot, SuperPacket, VnetHeader};
use crate::tun::{MAX_READ, TunDevice};
use crate::udp::{RecvBatch, Transmit, UdpPort};

/// What the kernel takes in one segmented send: a datagram's limit over IPv4, and its `UDP_MAX_SEGMENTS`.
const MAX_BYTES: usize = 65_507;
const MAX_PACKETS: usize = 64;
/// As the offload ring's receive worker.
const MESSAGES: usize = 16;

/// Carries packets between a device and a peer, in this thread and another, until the device is gone.
///
/// # Errors
/// The device or the port failed.
pub fn run(tun: TunDevice, port: UdpPort, peer: SocketAddr) -> io::Result<()> {
    let port = Arc::new(port);
    let receiving = (tun.clone(), Arc::clone(&port));
    std::thread::Builder::new().name("null-rx".into()).spawn(move || receive(&receiving.0, &receiving.1))?;
    send(&tun, &port, peer)
}

/// Packets of one size that leave together.
struct Batch {
    buffer: Vec<u8>,
    stride: usize,
    packets: usize,
    closed: bool,
}

impl Batch {
    fn takes(&self, len: usize) -> bool {
        self.packets == 0
            || (!self.closed
                && len <= self.stride
                && self.packets < MAX_PACKETS
                && self.buffer.len() + len <= MAX_BYTES)
    }

    fn add(&mut self, whole: &SuperPacket<'_>, part: usize, len: usize) {
        if self.packets == 0 {
            self.stride = len;
        }
        let start = self.buffer.len();
        self.buffer.resize(start + len, 0);
        if let Some(room) = self.buffer.get_mut(start..) {
            whole.write_part(part, room);
        }
        self.packets += 1;
        self.closed = len < self.stride;
    }

    fn flush(&mut self, port: &UdpPort, dest: SocketAddr) {
        if self.packets == 0 {
            return;
        }
        let transmit =
            Transmit { segment_size: Some(self.stride), ..Transmit::new(dest, self.buffer.as_slice()) };
        // What cannot be sent is lost, as on a wire.
        let _ = port.send(&transmit);
        self.buffer.clear();
        self.packets = 0;
        self.closed = false;
    }
}

fn send(tun: &TunDevice, port: &UdpPort, peer: SocketAddr) -> io::Result<()> {
    let mut read = vec![0; MAX_READ];
    let mut batch = Batch { buffer: Vec::with_capacity(MAX_BYTES), stride: 0, packets: 0, closed: false };
    loop {
        match tun.read(&mut read) {
            Ok(len) => {
                let parsed = VnetHeader::parse(read.get(..len).unwrap_or_default());
                let Some(whole) = parsed.and_then(|(vnet, packet)| SuperPacket::parse(&vnet, packet)) else {
                    continue;
                };
                for part in 0..whole.count() {
                    let len = whole.part_len(part);
                    if !batch.takes(len) {
                        batch.flush(port, peer);
                    }
                    batch.add(&whole, part, len);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                batch.flush(port, peer);
                poll(&mut [PollFd::new(tun, PollFlags::IN)], None)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn receive(tun: &TunDevice, port: &UdpPort) -> io::Result<()> {
    let offloads = tun.offloads();
    let mut coalescer = Coalescer::new(offloads.tcp, offloads.udp);
    let mut batch = RecvBatch::new(MESSAGES);
    loop {
        match port.recv_batch(&mut batch) {
            Ok(_) => write(tun, &mut coalescer, &mut batch),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                port.wait(None)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn write(tun: &TunDevice, coalescer: &mut Coalescer, batch: &mut RecvBatch) {
    let mut buffers: [&[u8]; MESSAGES] = [&[]; MESSAGES];
    for ((index, message), buffer) in batch.messages_mut().enumerate().zip(&mut buffers) {
        let payload: &[u8] = message.payload;
        let mut start = 0;
        for packet in payload.chunks(message.stride) {
            let slot = Slot { buffer: index as u32, start: start as u32, len: packet.len() as u32 };
            coalescer.push(slot, packet);
            start += packet.len();
        }
        *buffer = payload;
    }
    let bytes = |slot: Slot| {
        let buffer = buffers.get(slot.buffer as usize).copied().unwrap_or_default();
        buffer.get(slot.start as usize..(slot.start + slot.len) as usize).unwrap_or_default()
    };
    // As above.
    coalescer.flush(bytes, |parts, _| drop(tun.write(parts)));
}
