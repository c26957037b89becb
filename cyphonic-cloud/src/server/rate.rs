//! How often something may happen: a token bucket that keeps the time at which it is full again. Pure.

use std::time::Duration;

/// Takes one out of an account that gets back `rate` a second, and may be ahead of that by `burst`.
pub(super) fn spend(paid_until: &mut Duration, now: Duration, rate: u32, burst: Duration) -> bool {
    let next = (*paid_until).max(now) + Duration::from_secs(1) / rate;
    let within = next <= now + burst;
    if within {
        *paid_until = next;
    }
    within
}
