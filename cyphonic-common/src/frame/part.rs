//! PART: a piece of an inner packet that is too large for one tunnel packet.
//!
//! IPv6 promises its users 1,280 bytes (RFC 8200 §5), also over a path that carries less; then the layer
//! below it has to split and join (RFC 8200 §5 says so, RFC 9484 §10.1 repeats it for tunnels). Here that is
//! done inside the packet protection: each piece is authenticated before anything is kept of it, which IP
//! fragments outside would not be.
//!
//! A PART runs to the end of its packet, as a DATAGRAM without a length does. Its fields have fixed sizes:
//!
//! ```text
//! +----------------+----------+------------+-----------+------------------
//! | type (varint)  | id (16)  | offset (16)| total (16)| bytes of the packet
//! +----------------+----------+------------+-----------+------------------
//! ```

use super::{FrameError, PART};

/// Bytes of a PART in front of its piece.
pub const PART_HEADER: usize = 2 + 2 + 2 + 2;

/// The most pieces of one packet: what the largest inner packet needs on the narrowest path, rounded up.
pub const MAX_PARTS: usize = 64;

/// A piece of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// Tells the pieces of one packet from those of others near it; counts up and wraps.
    pub id: u16,
    /// Where in the packet the piece begins.
    pub offset: u16,
    /// Bytes of the whole packet.
    pub total: u16,
    /// The piece: never empty, and never the whole packet.
    pub bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// Reads what follows the type.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, FrameError> {
        let (header, bytes) = body.split_first_chunk::<6>().ok_or(FrameError::Truncated)?;
        let [i, d, o, f, t, l] = *header;
        let part = Self {
            id: u16::from_be_bytes([i, d]),
            offset: u16::from_be_bytes([o, f]),
            total: u16::from_be_bytes([t, l]),
            bytes,
        };
        if part.is_sound() { Ok(part) } else { Err(FrameError::BadPart) }
    }

    /// Everything but the piece itself.
    pub fn header(&self) -> [u8; PART_HEADER] {
        let [kind, low] = (0x4000 | u16::from(PART)).to_be_bytes();
        let ([i, d], [o, f]) = (self.id.to_be_bytes(), self.offset.to_be_bytes());
        let [t, l] = self.total.to_be_bytes();
        [kind, low, i, d, o, f, t, l]
    }

    /// A piece that lies inside its packet and is neither nothing nor all of it.
    pub(super) fn is_sound(&self) -> bool {
        let (len, total) = (self.bytes.len(), usize::from(self.total));
        len > 0 && len < total && usize::from(self.offset) + len <= total
    }
}

/// How a packet is cut: into as few pieces as fit, all of one size but the last, which is at most a few bytes
/// shorter, so that the pieces of several packets leave in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    total: usize,
    each: usize,
}

impl Pieces {
    /// A packet of `total` bytes in frames of at most `room` bytes with their headers. `None` if one frame
    /// would do, if it takes more than [`MAX_PARTS`], or if the packet is larger than the frame's fields
    /// can say.
    pub fn of(total: usize, room: usize) -> Option<Self> {
        let most = room.checked_sub(PART_HEADER).filter(|most| *most > 0)?;
        let count = total.div_ceil(most);
        let sound = (2..=MAX_PARTS).contains(&count) && total <= usize::from(u16::MAX);
        sound.then(|| Self { total, each: total.div_ceil(count) })
    }

    /// Offset and length of each piece, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Self { total, each } = *self;
        (0..total).step_by(each).map(move |offset| (offset, each.min(total - offset)))
    }
}
