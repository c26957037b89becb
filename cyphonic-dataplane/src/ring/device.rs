//! The virtual interface as the two workers see it. Which kind it is, is decided when they are compiled.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::counters::Counters;
use crate::gso::{Slot, VnetHeader};

/// Where the sending worker's packets come from. Its descriptor is readable when there are some.
pub(super) trait Source: AsFd + Send + 'static {
    /// How often [`Source::check`] is asked while nothing comes, where waiting alone does not tell of the
    /// end.
    const CHECK_INTERVAL: Option<Duration>;

    /// The next packet, which stays where it is until the next call; `None` for one that is cut short.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none. Any other error is the end.
    fn read(&mut self) -> io::Result<Option<(VnetHeader, &[u8])>>;

    /// Whether packets can still come.
    ///
    /// # Errors
    /// The interface is gone.
    fn check(&self) -> io::Result<()>;
}

/// Where the receiving worker's packets go. Only that worker writes to the interface.
pub(super) trait Delivery: Send + 'static {
    /// Takes an inner packet of the batch, which has been checked. `slot` says where it lies.
    fn push(&mut self, slot: Slot, packet: &[u8], counters: &Counters);

    /// Hands what was taken to the host, in order for each flow. `bytes` has what a slot names.
    fn flush<'b>(&mut self, bytes: impl Fn(Slot) -> &'b [u8], counters: &Counters);

    /// Whether the host has yet to take some of what was handed to it: another flush may help, after this
    /// time.
    fn behind(&mut self) -> Option<Duration> {
        None
    }

    /// Hands one packet of the ring's own to the host, at once.
    fn deliver(&mut self, packet: &[u8], counters: &Counters);
}
