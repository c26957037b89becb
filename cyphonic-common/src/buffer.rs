//! The one way packet bytes are read.
//!
//! In userspace a packet is a slice. In a tc program it is a socket buffer whose bytes may not be linear, and
//! in XDP a pair of pointers that the verifier wants to see compared. [`Buffer`] hides the difference behind
//! a single fallible copy of a constant number of bytes, which is the shape every one of them can check.

use core::fmt;

/// Bytes of one packet.
pub trait Buffer {
    /// Length of the whole packet, including bytes that are not in linear memory.
    fn len(&self) -> usize;

    /// Copies `N` bytes from `offset`, or returns `None` where the packet ends before them.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the packet has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Buffer for [u8] {
    #[inline(always)]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk::<N>().copied()
    }
}

impl<B: Buffer + ?Sized> Buffer for &B {
    #[inline(always)]
    fn len(&self) -> usize {
        (**self).len()
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        (**self).read(offset)
    }
}

/// The packet ended before a field that its headers promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packet ends before a field its headers promise")
    }
}

impl core::error::Error for Truncated {}

/// A position in a packet. It only moves forward, and never past the end.
#[derive(Debug)]
pub struct Cursor<'a, B: Buffer + ?Sized> {
    buffer: &'a B,
    offset: usize,
}

impl<'a, B: Buffer + ?Sized> Cursor<'a, B> {
    /// Starts at the packet's first byte.
    #[inline(always)]
    pub const fn new(buffer: &'a B) -> Self {
        Self { buffer, offset: 0 }
    }

    /// Bytes before the cursor.
    #[inline(always)]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes after the cursor.
    #[inline(always)]
    pub fn remaining(&self) -> usize {
        self.buffer.len().saturating_sub(self.offset)
    }

    /// Reads `N` bytes and moves past them.
    ///
    /// # Errors
    /// [`Truncated`] when fewer remain; the cursor has not moved.
    #[inline(always)]
    pub fn read<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let bytes = self.peek()?;
        self.offset += N;
        Ok(bytes)
    }

    /// Reads `N` bytes without moving.
    ///
    /// # Errors
    /// [`Truncated`] when fewer remain.
    #[inline(always)]
    pub fn peek<const N: usize>(&self) -> Result<[u8; N], Truncated> {
        self.buffer.read(self.offset).ok_or(Truncated)
    }

    /// Moves past `count` bytes.
    ///
    /// # Errors
    /// [`Truncated`] when fewer remain; the cursor has not moved.
    #[inline(always)]
    pub fn skip(&mut self, count: usize) -> Result<(), Truncated> {
        if count > self.remaining() {
            return Err(Truncated);
        }
        self.offset += count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_reads_what_a_slice_holds(bytes: Vec<u8>, skip in 0usize..80) {
            let mut cursor = Cursor::new(bytes.as_slice());
            let skipped = cursor.skip(skip);
            prop_assert_eq!(skipped.is_ok(), skip <= bytes.len());
            let start = cursor.offset();
            match cursor.read::<4>() {
                Ok(read) => prop_assert_eq!(&read[..], &bytes[start..start + 4]),
                Err(Truncated) => {
                    prop_assert!(bytes.len() - start < 4);
                    prop_assert_eq!(cursor.offset(), start);
                }
            }
            prop_assert_eq!(cursor.offset() + cursor.remaining(), bytes.len());
        }
    }

    #[test]
    fn offsets_near_the_end_of_memory_do_not_overflow() {
        assert_eq!(Buffer::read::<8>([0u8; 4].as_slice(), usize::MAX), None);
        assert_eq!(Cursor::new([0u8; 4].as_slice()).skip(usize::MAX), Err(Truncated));
    }
}
