//! AF_XDP: packets between an interface's XDP program and userspace without the network stack between.
//!
//! Packets lie in frames of one memory that the kernel shares ([`Umem`]). Four rings per queue pass frames to
//! and fro:
//!
//! ```text
//!   FramePool ── refill ──▶ fill ring ──▶ kernel ──▶ receive ring ── recv ──▶ Frame
//!       ▲                                                                        │ opened or sealed in place
//!       └── complete ── completion ring ◀── kernel ◀── transmit ring ◀── push ───┘
//! ```
//!
//! A [`Frame`] is a handle that moves: whoever has it owns the bytes, and it cannot be had twice. Packets
//! received on one interface can be sent on another without a copy where both are open on one memory.
//!
//! **Invariants.** No ring function allocates, locks or calls the system, except [`XskTx::flush`] and the
//! `wake`s, which make a system call a batch. Frames are never made or lost: pools, handles and
//! [`Umem::lent`] add up. Nothing the kernel writes into a ring can make two handles of a frame, or reach
//! outside the memory.

mod error;
mod frame;
pub(crate) mod memory;
mod ring;
mod rx;
mod socket;
mod tx;
mod umem;

pub use error::XskError;
pub use frame::{Frame, FramePool, HEADROOM};
pub use rx::{XskRx, XskStats, XskWatch};
pub use socket::{CopyMode, Xsk, XskConfig};
pub use tx::XskTx;
pub use umem::{FrameSize, Umem, UmemConfig};
