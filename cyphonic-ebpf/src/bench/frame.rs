//! Bytes of a frame, where they lie.

use aya_ebpf::programs::XdpContext;

/// A pointer to a `T` in the frame, if all of it is inside.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

/// Reads plain bytes or words.
#[inline(always)]
pub(crate) fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let from = at::<T>(ctx, offset)?;
    // SAFETY: `at` has compared with the frame's end, which the verifier checks again. Callers read integers
    // and arrays of them, of which any bytes are a value; words only at offset 0, where the driver aligns
    // the frame.
    Some(unsafe { *from })
}

/// Writes plain bytes or words.
#[inline(always)]
pub(crate) fn write<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let to = at::<T>(ctx, offset)?;
    // SAFETY: as in `read`; a program has its frame to itself.
    unsafe { *to = value };
    Some(())
}
