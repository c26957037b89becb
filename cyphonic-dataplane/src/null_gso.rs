//! A tunnel without keys: the offload ring's pipe, and nothing else.
//!
//! Super-packets are read from a TUN device, cut, and sent in segmented batches; what arrives is joined and
//! written, all of it by one thread that rests and is scheduled as a ring's is. There is no cryptography, no
//! peer, no check of anything. It exists to be measured: what a ring adds to this is the price of protection,
//! and what this costs is the kernel's. Only built with the feature `bench`.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use crate::gso::{Coalescer, Slot, SuperPacket, VnetHeader};
use crate::ring::{Batch, MESSAGES, Pacing, READS_TOGETHER};
use crate::thread::priority::outrank_applications;
use crate::thread::scheduling::Scheduling;
use crate::tun::{MAX_READ, TunDevice};
use crate::udp::{RecvBatch, Transmit, UdpPort};

/// The one that all packets are of.
const TUNNEL: usize = 0;
/// What is inside is not looked at.
const ECN: u8 = 0;

/// Carries packets between a device and a peer until the device is gone.
///
/// # Errors
/// The device or the port failed.
pub fn run(tun: &TunDevice, port: &UdpPort, peer: SocketAddr) -> io::Result<()> {
    outrank_applications();
    let (mut sending, mut receiving) = (Sending::new(peer), Receiving::new(tun));
    let (mut pacing, mut scheduling) = (Pacing::new(Instant::now()), Scheduling::of_this_thread());
    loop {
        let (received, sent) = (receiving.turn(tun, port)?, sending.turn(tun, port)?);
        pacing.count(received + sent);
        if received == 0 && sent == 0 {
            scheduling.rest();
            if !pacing.pause() {
                poll(&mut [PollFd::new(tun, PollFlags::IN), PollFd::new(port, PollFlags::IN)], None)?;
            }
        }
    }
}

struct Sending {
    peer: SocketAddr,
    read: Vec<u8>,
    batch: Batch,
}

impl Sending {
    fn new(peer: SocketAddr) -> Self {
        Self { peer, read: vec![0; MAX_READ], batch: Batch::new() }
    }

    /// What was read, in packets.
    fn turn(&mut self, tun: &TunDevice, port: &UdpPort) -> io::Result<u32> {
        let mut packets = 0;
        for _ in 0..READS_TOGETHER {
            let len = match tun.read(&mut self.read) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let parsed = VnetHeader::parse(self.read.get(..len).unwrap_or_default());
            let Some(whole) = parsed.and_then(|(vnet, packet)| SuperPacket::parse(&vnet, packet)) else {
                continue;
            };
            for part in 0..whole.count() {
                let len = whole.part_len(part);
                if !self.batch.takes(TUNNEL, ECN, len) {
                    flush(&mut self.batch, port, self.peer);
                }
                let Some(room) = self.batch.room(len) else { continue };
                whole.write_part(part, room);
                self.batch.commit(TUNNEL, ECN, len, len);
                packets += 1;
            }
        }
        flush(&mut self.batch, port, self.peer);
        Ok(packets)
    }
}

fn flush(batch: &mut Batch, port: &UdpPort, dest: SocketAddr) {
    let Some(sealed) = batch.take() else { return };
    let transmit = Transmit { segment_size: Some(sealed.stride), ..Transmit::new(dest, batch.bytes()) };
    // What cannot be sent is lost, as on a wire.
    let _ = port.send(&transmit);
    batch.clear();
}

struct Receiving {
    coalescer: Coalescer,
    batch: RecvBatch,
}

impl Receiving {
    fn new(tun: &TunDevice) -> Self {
        let offloads = tun.offloads();
        Self { coalescer: Coalescer::new(offloads.tcp, offloads.udp), batch: RecvBatch::new(MESSAGES) }
    }

    /// What was received, in packets.
    fn turn(&mut self, tun: &TunDevice, port: &UdpPort) -> io::Result<u32> {
        match port.recv_batch(&mut self.batch) {
            Ok(_) => Ok(write(tun, &mut self.coalescer, &mut self.batch)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }
}

fn write(tun: &TunDevice, coalescer: &mut Coalescer, batch: &mut RecvBatch) -> u32 {
    let mut buffers: [&[u8]; MESSAGES] = [&[]; MESSAGES];
    let mut packets = 0;
    for ((index, message), buffer) in batch.messages_mut().enumerate().zip(&mut buffers) {
        let payload: &[u8] = message.payload;
        let mut start = 0;
        for packet in payload.chunks(message.stride) {
            let slot = Slot { buffer: index as u32, start: start as u32, len: packet.len() as u32 };
            coalescer.push(slot, packet);
            start += packet.len();
            packets += 1;
        }
        *buffer = payload;
    }
    let bytes = |slot: Slot| {
        let buffer = buffers.get(slot.buffer as usize).copied().unwrap_or_default();
        buffer.get(slot.start as usize..(slot.start + slot.len) as usize).unwrap_or_default()
    };
    // As above.
    coalescer.flush(bytes, |parts, _| drop(tun.write(parts)));
    packets
}
