//! The wall clock, for certificates and tokens, and its times in words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::register::UnixSeconds;

/// The time in seconds since 1970.
pub fn unix_now() -> UnixSeconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time as RFC 3339 writes it.
pub fn rfc3339(seconds: UnixSeconds) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
        // Past the year 9999 the form has no room.
        Some(time) if seconds < 253_402_300_800 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => seconds.to_string(),
    }
}
