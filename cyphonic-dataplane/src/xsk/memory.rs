//! Memory that the kernel reads and writes as well: packet memory, and the rings of descriptors.

#![expect(unsafe_code, reason = "memory is mapped by system calls and reached through pointers")]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU32;

use rustix::mm::{MapFlags, ProtFlags};

/// A mapping of whole pages. Unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread. What its users may do with its bytes at the
// same time is their concern: this type only hands out pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives pointers and atomics, never references to plain bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Fresh zeroed memory, on huge pages where asked for and there are some.
    pub(super) fn anonymous(len: usize, huge: bool) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let map = |flags| {
            // SAFETY: without a fixed address the kernel chooses unused addresses, so no memory of ours is
            // replaced.
            unsafe {
                rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
            }
        };
        let base = match huge {
            true => map(flags | MapFlags::HUGETLB).or_else(|_| map(flags))?,
            false => map(flags)?,
        };
        Self::new(base.cast(), len)
    }

    /// What the kernel shares by `fd`: a socket's ring, a map's values.
    pub(crate) fn shared(fd: BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: as in `anonymous`.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, flags, fd, offset)? };
        Self::new(base.cast(), len)
    }

    fn new(base: *mut u8, len: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Bytes mapped.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The address of the first byte.
    pub(super) fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// A pointer to `len` bytes at `offset`, or `None` where they are not all inside.
    #[inline]
    pub(crate) fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` is at most `self.len`, so the sum stays inside the mapping or is one past its end.
        Some(unsafe { self.base.add(offset) })
    }

    /// A word that the kernel writes or reads while we do.
    pub(super) fn word(&self, offset: usize) -> Option<NonNull<AtomicU32>> {
        let word = self.at(offset, size_of::<AtomicU32>())?.cast::<AtomicU32>();
        word.is_aligned().then_some(word)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is what was mapped, and whoever uses pointers into it owns this mapping, which
        // ends now.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::warn!(%error, "memory shared with the kernel stays mapped");
        }
    }
}
