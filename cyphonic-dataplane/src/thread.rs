//! How the kernel schedules the threads that packets pass: the rings' and the relay's.
//!
//! - [`scheduling`]: whether a thread that a packet wakes waits for its turn.
//! - [`priority`]: its share of the processors. The relay's is as it was: on a host of its own, what it would
//!   outrank are AS and NMS.

pub(crate) mod priority;
pub(crate) mod scheduling;
