//! Frames: the pieces of packet memory, each with exactly one owner.

/// A piece of packet memory that is ours at the moment, and where in it a packet lies.
///
/// A handle is neither copied nor made anew: it is moved into a socket, and comes back out of one. Whoever
/// drops it loses the frame until the [`Umem`](super::Umem) is gone; give it to a [`FramePool`] instead.
#[must_use = "a frame that is dropped is lost: put it back into a pool"]
#[derive(Debug)]
pub struct Frame {
    /// The memory it belongs to.
    pub(super) umem: u32,
    pub(super) index: u32,
    size: u16,
    start: u16,
    len: u16,
}

/// Where packets begin in frames that came out of a [`FramePool`]: as far in as the kernel puts them
/// (`XDP_PACKET_HEADROOM`), so there is the same room for headers before every packet.
pub const HEADROOM: usize = 256;

impl Frame {
    pub(super) const fn new(umem: u32, index: u32, size: u16) -> Self {
        Self { umem, index, size, start: HEADROOM as u16, len: 0 }
    }

    /// With a packet that is known to lie inside the frame.
    pub(super) const fn with_packet(self, start: u16, len: u16) -> Self {
        Self { start, len, ..self }
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size as usize
    }

    /// Bytes before the packet.
    #[must_use]
    pub const fn start(&self) -> usize {
        self.start as usize
    }

    /// Bytes of the packet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the packet has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says where the packet lies. False, and nothing changes, where that is not inside the frame.
    #[must_use]
    pub const fn set_packet(&mut self, start: usize, len: usize) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        if end > self.size() {
            return false;
        }
        // Both are at most the size, which is a `u16`.
        self.start = start as u16;
        self.len = len as u16;
        true
    }

    /// As it comes out of a pool: empty, with the usual headroom.
    pub const fn reset(&mut self) {
        self.start = HEADROOM as u16;
        self.len = 0;
    }
}

/// Free frames, in the hands of one worker.
#[derive(Debug)]
pub struct FramePool {
    frames: Vec<Frame>,
}

impl FramePool {
    pub(super) const fn new(frames: Vec<Frame>) -> Self {
        Self { frames }
    }

    /// A free frame, empty and with [`HEADROOM`] before the packet.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    /// Gives a frame back.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        frame.reset();
        self.frames.push(frame);
    }

    /// Free frames.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes up to `count` frames out, for another worker.
    pub fn split(&mut self, count: usize) -> Self {
        let kept = self.frames.len().saturating_sub(count);
        let mut frames = self.frames.split_off(kept);
        // A pool never grows beyond what it may get back, so giving back does not allocate.
        frames.reserve(self.frames.capacity().saturating_sub(frames.len()));
        Self { frames }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_packet_never_leaves_its_frame(
            moves in proptest::collection::vec((any::<usize>(), any::<u16>(), any::<bool>()), 0..50),
        ) {
            let mut frame = Frame::new(0, 0, 2048);
            for (wide, narrow, far) in moves {
                let (before, narrow) = ((frame.start(), frame.len()), usize::from(narrow) % 2400);
                let moved = if far { frame.set_packet(wide, narrow) } else { frame.set_packet(narrow, wide % 2400) };
                prop_assert!(frame.start() + frame.len() <= 2048);
                prop_assert!(moved || before == (frame.start(), frame.len()));
            }
        }
    }

    #[test]
    fn a_pool_gives_frames_as_new() {
        let mut pool = FramePool::new((0..4).map(|index| Frame::new(0, index, 2048)).collect());
        let mut frame = pool.take().unwrap();
        assert!(frame.set_packet(0, 2048) && !frame.set_packet(0, 2049) && !frame.set_packet(1, 2048));
        pool.put(frame);
        let mut other = pool.split(3);
        assert_eq!((pool.len(), other.len()), (1, 3));
        let frame = other.take().unwrap();
        assert_eq!((frame.start(), frame.len(), frame.size()), (HEADROOM, 0, 2048));
        other.put(frame);
    }
}
