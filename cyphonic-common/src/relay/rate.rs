//! How much one leg may carry.
//!
//! A virtual scheduling algorithm (a leaky bucket as a meter, ITU-T I.371): each byte costs time, and a
//! packet passes while the time that all bytes together have cost is at most the burst ahead of the clock. It
//! needs one word of state and no timer.

/// Bits behind the binary point of [`RelayRate::cost`].
const FRACTION: u32 = 16;
/// The slowest rate that can be expressed, in bytes per second. A tunnel below it would not carry an
/// interactive session.
pub const MIN_BYTES_PER_SECOND: u64 = 16_384;
/// The least burst, in nanoseconds at full rate: the program's clock moves in steps of up to 20 ms, and
/// what a step brings must not be lost.
const MIN_BURST_NS: u64 = 30_000_000;
/// The least burst, in bytes: two packets of Ethernet's size, or a slow leg would carry none of them.
const MIN_BURST_BYTES: u64 = 3_000;

/// A leg's rate limit. All zero is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RelayRate {
    /// What one byte costs, in 2⁻¹⁶ ns.
    cost: u32,
    /// How far ahead of the clock the leg may be, in nanoseconds.
    burst_ns: u32,
}

impl RelayRate {
    /// No limit.
    pub const UNLIMITED: Self = Self { cost: 0, burst_ns: 0 };

    /// `bytes_per_second` of UDP payload, and `burst_bytes` at once. A rate of 0 is unlimited; other rates
    /// are raised to [`MIN_BYTES_PER_SECOND`], and bursts to what 30 ms carry or 3,000 bytes, whichever
    /// is more.
    #[must_use]
    pub const fn new(bytes_per_second: u64, burst_bytes: u64) -> Self {
        if bytes_per_second == 0 {
            return Self::UNLIMITED;
        }
        let rate =
            if bytes_per_second < MIN_BYTES_PER_SECOND { MIN_BYTES_PER_SECOND } else { bytes_per_second };
        let cost = (1_000_000_000u64 << FRACTION) / rate;
        let cost = if cost == 0 { 1 } else { cost };
        let burst_bytes = if burst_bytes < MIN_BURST_BYTES { MIN_BURST_BYTES } else { burst_bytes };
        let burst = burst_bytes.saturating_mul(cost) >> FRACTION;
        let burst = if burst < MIN_BURST_NS { MIN_BURST_NS } else { burst };
        Self { cost: cost as u32, burst_ns: if burst > u32::MAX as u64 { u32::MAX } else { burst as u32 } }
    }

    /// Whether every packet passes.
    #[inline(always)]
    pub const fn is_unlimited(&self) -> bool {
        self.cost == 0
    }

    /// Whether a packet of `bytes` may pass at `now_ns`, when all before it have cost time until
    /// `*paid_until_ns`. If so it is charged.
    #[inline(always)]
    pub const fn spend(&self, paid_until_ns: &mut u64, now_ns: u64, bytes: u64) -> bool {
        if self.is_unlimited() {
            return true;
        }
        let start = if *paid_until_ns > now_ns { *paid_until_ns } else { now_ns };
        let end = start.saturating_add(bytes.saturating_mul(self.cost as u64) >> FRACTION);
        if end.wrapping_sub(now_ns) > self.burst_ns as u64 {
            return false;
        }
        *paid_until_ns = end;
        true
    }
}

const _: () = assert!(size_of::<RelayRate>() == 8 && align_of::<RelayRate>() == 4);
const _: () = assert!((1_000_000_000u64 << FRACTION) / MIN_BYTES_PER_SECOND <= u32::MAX as u64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unlimited_passes_everything_and_keeps_no_state() {
        let mut paid = 0;
        assert!(RelayRate::new(0, 0).is_unlimited());
        assert!((0..1000).all(|_| RelayRate::UNLIMITED.spend(&mut paid, 0, u64::MAX)));
        assert_eq!(paid, 0);
    }

    #[test]
    fn the_slowest_leg_carries_the_largest_packets_of_ethernet() {
        let (limit, mut paid) = (RelayRate::new(1, 0), 0);
        // 1,500 bytes are 92 ms at 16,384 bytes a second.
        assert!((0..100u64).all(|n| limit.spend(&mut paid, n * 92_000_000, 1_500)));
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_rate_and_burst_passes(
            rate in MIN_BYTES_PER_SECOND..2_000_000_000, burst in 0u64..10_000_000, step_ns in 0u64..200_000,
            size in 29u64..1500,
        ) {
            let limit = RelayRate::new(rate, burst);
            let (mut paid, mut passed, mut now) = (0, 0u64, 1_000);
            let start = now;
            for _ in 0..5_000 {
                if limit.spend(&mut paid, now, size) { passed += size; }
                now += step_ns;
            }
            let seconds = (now - start) as f64 / 1e9 + f64::from(limit.burst_ns) / 1e9;
            // Costs are rounded down by less than 1 ns a packet, and by 2⁻¹⁶ ns a byte.
            let slack = 1.0 + rate as f64 / 1e9 / size as f64 + rate as f64 / 6e13;
            prop_assert!(passed as f64 <= seconds * rate as f64 * slack + size as f64);
        }

        #[test]
        fn a_sender_within_its_rate_loses_nothing(rate in MIN_BYTES_PER_SECOND..2_000_000_000, size in 29u64..1500) {
            let limit = RelayRate::new(rate, 0);
            let (mut paid, mut now) = (0, 0);
            for _ in 0..2_000 {
                // As the program's clock shows it at its worst.
                prop_assert!(limit.spend(&mut paid, now / 20_000_000 * 20_000_000, size));
                now += size * 1_000_000_000 / rate + 1;
            }
        }
    }
}
