//! Steps of the hot paths that nothing outside sees, for `benches/hot_paths` to measure one by one.
//!
//! Only built with the feature `bench`. Each runs the very code that packets pass, on made-up packets.

use cyphonic_common::packet::ip::IPV6_HEADER_LEN;
use cyphonic_common::packet::protocol::TCP;
use cyphonic_common::packet::tcp;

use crate::gso::{Coalescer, GsoKind, Slot, Sum, SuperPacket, VnetHeader, put};
use crate::protect::{HeaderKey, Suite};

/// The mask that a header is protected with.
pub struct HeaderMask(HeaderKey);

impl HeaderMask {
    /// Under a key of no secrecy.
    pub fn new(suite: Suite) -> Self {
        Self(HeaderKey::new(suite, &[7; 32]))
    }

    /// From the ciphertext's sample.
    pub fn of(&self, sample: &[u8; 16]) -> [u8; 5] {
        self.0.mask(sample)
    }
}

/// The Internet checksum of what starts at an even offset.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    Sum::default().add(bytes).finish()
}

/// A TCP super-packet, as the kernel hands it over.
pub struct TcpSuperPacket {
    vnet: VnetHeader,
    packet: Vec<u8>,
}

impl TcpSuperPacket {
    /// Of `len` bytes, at most 65,535 behind the IPv6 header, to be cut into segments with `size` bytes of
    /// payload.
    pub fn new(len: usize, size: u16) -> Self {
        let vnet = VnetHeader {
            needs_csum: true,
            kind: GsoKind::Tcp6,
            header_len: (IPV6_HEADER_LEN + tcp::MIN_HEADER) as u16,
            gso_size: size,
            csum_start: IPV6_HEADER_LEN as u16,
            csum_offset: tcp::CHECKSUM as u16,
            ..VnetHeader::PLAIN
        };
        let mut packet: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let mut header = [0; IPV6_HEADER_LEN + tcp::MIN_HEADER];
        (header[0], header[6], header[7], header[8], header[24]) = (0x60, TCP, 64, 0xfd, 0xfd);
        header[4..6].copy_from_slice(&(len.saturating_sub(IPV6_HEADER_LEN) as u16).to_be_bytes());
        header[IPV6_HEADER_LEN + tcp::DATA_OFFSET] = (tcp::MIN_HEADER as u8 / 4) << 4;
        header[IPV6_HEADER_LEN + tcp::FLAGS] = tcp::ACK;
        let ipv6 = header.first_chunk().unwrap_or(&[0; IPV6_HEADER_LEN]);
        let sum = Sum::default().add_pseudo_header(ipv6, TCP, (len.saturating_sub(IPV6_HEADER_LEN)) as u32);
        put(&mut packet, 0, &header);
        put(&mut packet, IPV6_HEADER_LEN + tcp::CHECKSUM, &sum.fold());
        Self { vnet, packet }
    }

    /// Cuts it into `out`, one packet behind the other, and tells `each` how long they are. Returns how many
    /// they are.
    pub fn cut(&self, out: &mut [u8], mut each: impl FnMut(usize)) -> usize {
        let Some(whole) = SuperPacket::parse(&self.vnet, &self.packet) else { return 0 };
        let mut rest = out;
        for part in 0..whole.count() {
            let Some(len) = whole.write_part(part, rest) else { return part };
            each(len);
            rest = rest.get_mut(len..).unwrap_or_default();
        }
        whole.count()
    }
}

/// Joins packets as the receiving worker does.
pub struct Joiner(Coalescer);

impl Default for Joiner {
    fn default() -> Self {
        Self(Coalescer::new(true, true))
    }
}

impl Joiner {
    /// Joins what lies one behind the other in `packets`, each as long as `lens` says. Returns how many
    /// writes to the device that comes to.
    pub fn join(&mut self, packets: &[u8], lens: &[usize]) -> usize {
        let mut start = 0;
        for len in lens {
            let slot = Slot { buffer: 0, start: start as u32, len: *len as u32 };
            self.0.push(slot, packets.get(start..start + len).unwrap_or_default());
            start += len;
        }
        let bytes = |slot: Slot| {
            packets.get(slot.start as usize..(slot.start + slot.len) as usize).unwrap_or_default()
        };
        let mut writes = 0;
        self.0.flush(bytes, |parts, _| {
            std::hint::black_box(parts);
            writes += 1;
        });
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_is_joined_again_so_what_is_measured_is_what_happens() {
        let (mut out, mut lens) = (vec![0; 80_000], Vec::new());
        let whole = TcpSuperPacket::new(65_000, 1_360);
        assert_eq!(whole.cut(&mut out, |len| lens.push(len)), 64_940_usize.div_ceil(1_360));
        assert_eq!(Joiner::default().join(&out, &lens), 1);
    }
}
