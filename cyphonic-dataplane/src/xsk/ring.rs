//! The four rings of descriptors between a socket and the kernel.
//!
//! Each has one producer and one consumer, one of them the kernel. Both keep a free-running count; an entry
//! is visible to the other side once the producer's count is past it, and free again once the consumer's is.

#![expect(unsafe_code, reason = "ring memory is reached through pointers")]

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use rustix::net::xdp::{XdpDesc, XdpRingFlags, XdpRingOffset};

use super::error::XskError;
use super::memory::Mapping;

/// What a ring's entries may be.
///
/// # Safety
/// Any bytes are a valid value: [`Consumer::take`] reads whatever stands in the memory that the kernel
/// shares.
pub(super) unsafe trait Entry: Copy {}

/// Of the fill and completion rings: a frame's address.
// SAFETY: it is an integer.
unsafe impl Entry for u64 {}
/// Of the receive and transmit rings.
// SAFETY: it is `repr(C)` and consists of a `u64` and two `u32`, one of them as flags that may have any bits.
unsafe impl Entry for XdpDesc {}

/// A ring's memory and where its parts are.
#[derive(Debug)]
struct Memory<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    /// Keeps what the pointers point to.
    _mapping: Mapping,
    entry: PhantomData<T>,
}

// SAFETY: the pointers point into the mapping, which is the process's and which the value owns; nothing in it
// is tied to a thread. Its methods that touch entries take `&mut self`.
unsafe impl<T: Entry + Send> Send for Memory<T> {}

impl<T: Entry> Memory<T> {
    fn map(fd: BorrowedFd<'_>, at: &XdpRingOffset, page: u64, size: u32) -> Result<Self, XskError> {
        let parts = || {
            let (entries, bytes) = (usize::try_from(at.desc).ok()?, size as usize * size_of::<T>());
            let mapping = Mapping::shared(fd, entries + bytes, page);
            Some(mapping.map(|mapping| (mapping, entries, bytes)))
        };
        let failed = |source| XskError::Io { doing: "map a ring of an AF_XDP socket", source };
        let strange = || failed(std::io::ErrorKind::InvalidData.into());
        let (mapping, entries, bytes) = parts().ok_or_else(strange)?.map_err(failed)?;
        let word = |offset: u64| usize::try_from(offset).ok().and_then(|offset| mapping.word(offset));
        let entries =
            mapping.at(entries, bytes).map(NonNull::cast::<T>).filter(|entries| entries.is_aligned());
        Ok(Self {
            producer: word(at.producer).ok_or_else(strange)?,
            consumer: word(at.consumer).ok_or_else(strange)?,
            // Every kernel with what else is needed has flags (Linux 5.4).
            flags: at.flags.and_then(word).ok_or_else(strange)?,
            entries: entries.ok_or_else(strange)?,
            mask: size - 1,
            _mapping: mapping,
            entry: PhantomData,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: it points to an aligned word inside the mapping, which lives as long as `self`, and which
        // both sides only touch atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.flags.as_ref() }
    }

    const fn size(&self) -> u32 {
        self.mask + 1
    }

    /// The place of the entry with this count.
    const fn slot(&self, count: u32) -> NonNull<T> {
        // SAFETY: the masked count is below the number of entries, for which `map` has checked that there is
        // room.
        unsafe { self.entries.add((count & self.mask) as usize) }
    }
}

/// A ring into which we put: fill and transmit.
#[derive(Debug)]
pub(super) struct Producer<T> {
    memory: Memory<T>,
    /// Entries written, published or not.
    written: u32,
    /// Entries the kernel has taken, as far as we know.
    taken: u32,
}

impl<T: Entry> Producer<T> {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        at: &XdpRingOffset,
        page: u64,
        size: u32,
    ) -> Result<Self, XskError> {
        let memory = Memory::map(fd, at, page, size)?;
        let (written, taken) = (memory.producer().load(Relaxed), memory.consumer().load(Acquire));
        Ok(Self { memory, written, taken })
    }

    /// Entries that can be put now.
    #[inline]
    pub(super) fn free(&mut self) -> u32 {
        let free = self.memory.size() - self.written.wrapping_sub(self.taken);
        if free != 0 {
            return free;
        }
        self.refresh();
        self.memory.size() - self.written.wrapping_sub(self.taken)
    }

    /// All entries that can be put, asking the kernel first.
    pub(super) fn all_free(&mut self) -> u32 {
        self.refresh();
        self.memory.size() - self.written.wrapping_sub(self.taken)
    }

    /// Entries that the kernel has not taken yet, published ones and others.
    pub(super) fn pending(&mut self) -> u32 {
        self.refresh();
        self.written.wrapping_sub(self.taken)
    }

    #[inline]
    fn refresh(&mut self) {
        // Acquire: the kernel has read an entry before it says so, and only then do we write there again.
        let taken = self.memory.consumer().load(Acquire);
        // A count that is ahead of ours would make more room than there is.
        if self.written.wrapping_sub(taken) <= self.memory.size() {
            self.taken = taken;
        }
    }

    /// Puts an entry, not visible before [`Producer::publish`]. False if there is no room.
    #[inline]
    pub(super) fn put(&mut self, entry: T) -> bool {
        if self.free() == 0 {
            return false;
        }
        // SAFETY: the slot is inside the mapping, and it is ours: the kernel has taken what was in it (`free`
        // is not 0) and reads it again only after `publish`.
        unsafe { self.memory.slot(self.written).write(entry) };
        self.written = self.written.wrapping_add(1);
        true
    }

    /// Makes all entries visible to the kernel.
    #[inline]
    pub(super) fn publish(&mut self) {
        // Release: the entries are written before their count is.
        self.memory.producer().store(self.written, Release);
    }

    /// Whether the kernel wants to be told of new entries.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        needs_wakeup(&self.memory)
    }
}

/// A ring out of which we take: receive and completion.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    memory: Memory<T>,
    /// Entries we have taken, told or not.
    taken: u32,
    /// Entries the kernel has written, as far as we know.
    written: u32,
}

impl<T: Entry> Consumer<T> {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        at: &XdpRingOffset,
        page: u64,
        size: u32,
    ) -> Result<Self, XskError> {
        let memory = Memory::map(fd, at, page, size)?;
        let taken = memory.consumer().load(Relaxed);
        Ok(Self { memory, taken, written: taken })
    }

    /// Entries that can be taken now.
    #[inline]
    pub(super) fn ready(&mut self) -> u32 {
        if self.written == self.taken {
            // Acquire: what is counted has been written.
            let written = self.memory.producer().load(Acquire);
            if written.wrapping_sub(self.taken) <= self.memory.size() {
                self.written = written;
            }
        }
        self.written.wrapping_sub(self.taken)
    }

    /// The next entry.
    #[inline]
    pub(super) fn take(&mut self) -> Option<T> {
        if self.ready() == 0 {
            return None;
        }
        // SAFETY: the slot is inside the mapping, the kernel has written it (`ready` is not 0), any bytes are
        // a valid [`Entry`], and the kernel writes it again only after `release`.
        let entry = unsafe { self.memory.slot(self.taken).read() };
        self.taken = self.taken.wrapping_add(1);
        Some(entry)
    }

    /// Lets the kernel use the places of what was taken.
    #[inline]
    pub(super) fn release(&mut self) {
        // Release: we have read the entries before the kernel may write there again.
        self.memory.consumer().store(self.taken, Release);
    }
}

fn needs_wakeup<T: Entry>(memory: &Memory<T>) -> bool {
    memory.flags().load(Relaxed) & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
}
