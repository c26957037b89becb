//! Packet memory (a "UMEM"), shared with the kernel and between sockets.

#![expect(unsafe_code, reason = "frames are slices of memory that the kernel shares")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard};

use super::error::XskError;
use super::frame::{Frame, FramePool};
use super::memory::Mapping;
use crate::sync;

/// How much packet memory, in which pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmemConfig {
    /// Frames in all.
    pub frames: u32,
    /// Bytes of a frame, and so the longest packet with its headers and [`HEADROOM`](super::HEADROOM).
    pub frame_size: FrameSize,
    /// Use huge pages if the system has some set aside: fewer misses in the page tables.
    pub huge_pages: bool,
}

/// Bytes of a frame. The kernel takes powers of two from 2,048 up to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSize {
    /// 2,048: packets of an MTU of 1,500.
    Small = 2048,
    /// 4,096: packets up to 3,840 bytes.
    Large = 4096,
}

impl FrameSize {
    /// The smallest that holds packets of `bytes` (link layer included), the kernel's headroom before them
    /// and room for a tunnel's headers and tag around them.
    #[must_use]
    pub const fn for_packets_of(bytes: usize) -> Option<Self> {
        const AROUND: usize = super::HEADROOM + 32;
        const SMALL: usize = FrameSize::Small as usize - AROUND;
        const LARGE: usize = FrameSize::Large as usize - AROUND;
        if bytes <= SMALL {
            Some(Self::Small)
        } else if bytes <= LARGE {
            Some(Self::Large)
        } else {
            None
        }
    }

    const fn bytes(self) -> u16 {
        self as u16
    }
}

impl Default for UmemConfig {
    /// 8 MiB: enough for two sockets' rings of 1,024 and what is between them.
    fn default() -> Self {
        Self { frames: 4096, frame_size: FrameSize::Small, huge_pages: false }
    }
}

/// Packet memory. Clones are the same memory.
#[derive(Debug, Clone)]
pub struct Umem {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    memory: Mapping,
    /// Tells this memory's frames from another's.
    id: u32,
    frame_size: u16,
    /// Whether the kernel has a frame now.
    lent: Box<[AtomicBool]>,
    /// The first socket: the kernel ties the memory to it.
    first: Mutex<Option<OwnedFd>>,
}

impl Umem {
    /// Allocates memory and gives all its frames.
    ///
    /// # Errors
    /// There is not so much memory, or it would be none.
    pub fn new(config: UmemConfig) -> Result<(Self, FramePool), XskError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let frame_size = config.frame_size.bytes();
        let len = usize::from(frame_size).checked_mul(config.frames as usize).filter(|len| *len > 0);
        let len =
            len.ok_or(XskError::Memory { bytes: 0, source: std::io::ErrorKind::InvalidInput.into() })?;
        let memory = Mapping::anonymous(whole_pages(len, config.huge_pages), config.huge_pages)
            .map_err(|source| XskError::Memory { bytes: len, source })?;
        let id = NEXT.fetch_add(1, Relaxed);
        let frames = (0..config.frames).map(|index| Frame::new(id, index, frame_size)).collect();
        let lent = (0..config.frames).map(|_| AtomicBool::new(false)).collect();
        let inner = Inner { memory, id, frame_size, lent, first: Mutex::default() };
        Ok((Self { inner: Arc::new(inner) }, FramePool::new(frames)))
    }

    /// Bytes of a frame.
    #[must_use]
    pub fn frame_size(&self) -> usize {
        usize::from(self.inner.frame_size)
    }

    /// Frames in all, wherever they are.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.inner.lent.len()
    }

    /// Frames that are in the kernel's hands. The others are in pools and handles.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.inner.lent.iter().filter(|lent| lent.load(Relaxed)).count()
    }

    /// Whether a frame is of this memory.
    #[inline]
    #[must_use]
    pub fn owns(&self, frame: &Frame) -> bool {
        frame.umem == self.inner.id
    }

    /// The packet in a frame. Empty for another memory's frame.
    #[inline]
    #[must_use]
    pub fn packet<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let Some(start) = self.offset(frame, frame.start(), frame.len()) else { return &[] };
        let Some(bytes) = self.inner.memory.at(start, frame.len()) else { return &[] };
        // SAFETY: the bytes are inside the mapping, which lives as long as `self`. They belong to `frame`: it
        // is the only handle of its piece (handles are made once, in `new`, and again only in
        // `take_back` for a piece whose handle `lend` consumed), the kernel has it only between those
        // two, and the handle is borrowed shared.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr(), frame.len()) }
    }

    /// The packet in a frame, to be changed.
    #[inline]
    #[must_use]
    pub fn packet_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let (start, len) = (frame.start(), frame.len());
        self.bytes_mut(frame, start, len)
    }

    #[inline]
    fn bytes_mut<'a>(&'a self, frame: &'a mut Frame, start: usize, len: usize) -> &'a mut [u8] {
        let Some(start) = self.offset(frame, start, len) else { return &mut [] };
        let Some(bytes) = self.inner.memory.at(start, len) else { return &mut [] };
        // SAFETY: as in `packet`, with the only handle borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_ptr(), len) }
    }

    /// Where `len` bytes at `start` of a frame lie in the memory, if they are the frame's.
    #[inline]
    fn offset(&self, frame: &Frame, start: usize, len: usize) -> Option<usize> {
        debug_assert!(self.owns(frame), "a frame of another memory");
        let inside = start.checked_add(len)? <= self.frame_size();
        (inside && self.owns(frame)).then(|| frame.index as usize * self.frame_size() + start)
    }

    /// Hands a frame to the kernel: its number as descriptors name it. The frame again where it is another
    /// memory's.
    #[inline]
    pub(super) fn lend(&self, frame: Frame) -> Result<u64, Frame> {
        let Some(offset) = self.offset(&frame, frame.start(), frame.len()) else { return Err(frame) };
        let Some(lent) = self.inner.lent.get(frame.index as usize) else { return Err(frame) };
        lent.store(true, Relaxed);
        Ok(offset as u64)
    }

    /// Takes a frame back that the kernel names, with the packet it may have put there.
    ///
    /// `None` where it was not the kernel's to give, or the packet is not inside: then nothing of ours is
    /// touched.
    #[inline]
    pub(super) fn take_back(&self, address: u64, len: u32) -> Option<Frame> {
        let size = usize::from(self.inner.frame_size);
        let address = usize::try_from(address).ok()?;
        let (index, start) = (address / size, address % size);
        let len = usize::try_from(len).ok().filter(|len| start + len <= size)?;
        let lent = self.inner.lent.get(index)?;
        if !lent.load(Relaxed) {
            return None;
        }
        lent.store(false, Relaxed);
        let frame = Frame::new(self.inner.id, index as u32, self.inner.frame_size);
        Some(frame.with_packet(start as u16, len as u16))
    }

    /// The socket that the kernel knows this memory by, if there is one yet.
    pub(super) fn first(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        sync::lock(&self.inner.first)
    }

    /// Tells the kernel of the memory.
    pub(super) fn register(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let registration = rustix::net::xdp::XdpUmemReg {
            addr: self.inner.memory.address() as u64,
            len: (self.frames() * self.frame_size()) as u64,
            chunk_size: u32::from(self.inner.frame_size),
            headroom: 0,
            flags: rustix::net::xdp::XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        debug_assert!(registration.len <= self.inner.memory.len() as u64);
        rustix::net::sockopt::set_xdp_umem_reg(fd.as_fd(), registration)
    }
}

/// Huge pages are mapped whole.
const fn whole_pages(len: usize, huge: bool) -> usize {
    len.next_multiple_of(if huge { 2 << 20 } else { 4096 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(frames: u32) -> (Umem, FramePool) {
        Umem::new(UmemConfig { frames, ..UmemConfig::default() }).unwrap()
    }

    #[test]
    fn every_frame_is_a_piece_of_its_own() {
        let (umem, mut pool) = memory(8);
        let mut frames: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((frames.len(), umem.frames()), (8, 8));
        for (number, frame) in frames.iter_mut().enumerate() {
            assert!(frame.set_packet(0, 2048));
            umem.packet_mut(frame).fill(number as u8);
        }
        for (number, frame) in frames.iter_mut().enumerate() {
            assert!(umem.packet(frame).iter().all(|byte| usize::from(*byte) == number));
        }
    }

    #[test]
    fn the_kernel_gives_back_only_what_it_was_given() {
        let (umem, mut pool) = memory(4);
        assert!(umem.take_back(0, 0).is_none(), "never lent");
        let address = umem.lend(pool.take().unwrap()).unwrap();
        assert_eq!(umem.lent(), 1);
        assert!(umem.take_back(4 * 2048, 0).is_none(), "outside");
        assert!(umem.take_back(address, 2048).is_none(), "longer than what is left of the frame");
        let frame = umem.take_back(address, 1792).unwrap();
        assert_eq!((frame.start(), frame.len(), umem.lent()), (256, 1792, 0));
        assert!(umem.take_back(address, 0).is_none(), "given back twice");
        pool.put(frame);
    }

    #[test]
    fn another_memorys_frame_is_refused() {
        let ((umem, _), (_, mut others)) = (memory(2), memory(2));
        let frame = others.take().unwrap();
        assert!(!umem.owns(&frame));
        if !cfg!(debug_assertions) {
            assert!(umem.lend(frame).is_err());
        }
    }

    #[test]
    fn frames_fit_the_mtu() {
        assert_eq!(FrameSize::for_packets_of(1514), Some(FrameSize::Small));
        assert_eq!(FrameSize::for_packets_of(3000), Some(FrameSize::Large));
        assert_eq!(FrameSize::for_packets_of(9014), None);
        assert!(Umem::new(UmemConfig { frames: 0, ..UmemConfig::default() }).is_err());
    }
}
