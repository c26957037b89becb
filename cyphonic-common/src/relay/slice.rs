//! A frame in a byte slice, with room before it.

use super::forward::Frame;
use crate::buffer::Buffer;
use crate::packet::ethernet::ETHERNET_LEN;

/// A frame somewhere in a buffer. What XDP calls headroom are the bytes before it.
#[derive(Debug)]
pub struct SliceFrame<'a> {
    buffer: &'a mut [u8],
    start: usize,
}

impl<'a> SliceFrame<'a> {
    /// The frame from `start` to the buffer's end; an empty one where `start` is beyond.
    pub fn new(buffer: &'a mut [u8], start: usize) -> Self {
        let start = start.min(buffer.len());
        Self { buffer, start }
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.start..).unwrap_or_default()
    }
}

impl Buffer for SliceFrame<'_> {
    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes().read(offset)
    }
}

impl Frame for SliceFrame<'_> {
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.bytes_mut().get_mut(offset..)?.first_chunk_mut::<N>()? = bytes;
        Some(())
    }

    /// As `bpf_xdp_adjust_head`: at least an Ethernet header must remain.
    fn shift_head(&mut self, shift: i32) -> Option<()> {
        let start = self.start.checked_add_signed(isize::try_from(shift).ok()?)?;
        if self.buffer.len().checked_sub(start)? < ETHERNET_LEN {
            return None;
        }
        self.start = start;
        Some(())
    }
}
