//! An Ethernet frame in an XDP program.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use cyphonic_common::Buffer;
use cyphonic_common::relay::Frame;

/// Offsets at and beyond this are refused: the verifier wants to know that they are small.
const MAX_OFFSET: usize = 0x7fff;

/// The linear bytes of the frame a program was called for. A program that is not loaded for fragmented frames
/// is never called for one, so these are all bytes.
pub struct XdpFrame {
    ctx: *mut xdp_md,
    data: usize,
    end: usize,
}

impl XdpFrame {
    /// The frame of a program's context.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx, data: ctx.data(), end: ctx.data_end() }
    }

    /// Where `N` bytes at `offset` lie, if the frame has them.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        if offset >= MAX_OFFSET {
            return None;
        }
        let start = self.data + offset;
        if start + N > self.end {
            return None;
        }
        Some(start as *mut [u8; N])
    }
}

impl Buffer for XdpFrame {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.data
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.at::<N>(offset)?;
        // SAFETY: `at` has compared the end of the `N` bytes with the frame's, and the verifier checks that
        // it did. The program alone has the frame while it runs, and no reference into it lives on.
        Some(unsafe { bytes.read() })
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let to = self.at::<N>(offset)?;
        // SAFETY: as in `read`, and XDP frames may be written.
        unsafe { to.write(bytes) };
        Some(())
    }

    #[inline(always)]
    fn shift_head(&mut self, shift: i32) -> Option<()> {
        // SAFETY: the context is the one the kernel called the program with. The helper moves the frame's
        // start or fails without doing so; all pointers into the frame are made anew below.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, shift) };
        if result != 0 {
            return None;
        }
        // SAFETY: the context outlives the program, and the verifier turns these two loads into the frame's
        // new bounds.
        let (data, end) = unsafe { ((*self.ctx).data, (*self.ctx).data_end) };
        (self.data, self.end) = (data as usize, end as usize);
        Some(())
    }
}
