//! The wall clock, for certificates and tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::register::UnixSeconds;

/// The time in seconds since 1970.
pub fn unix_now() -> UnixSeconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
