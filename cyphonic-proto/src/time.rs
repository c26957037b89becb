//! What time it is, for a device that may not know.
//!
//! A board without a battery starts with the time of its last shutdown, of its image, or 1970. Certificates
//! end, so it needs the time before it may believe anybody; and it has the time only from others. The way out
//! (decision 0024):
//!
//! - The time is never before the *floor*: when the device's own certificate begins. The AS signed that, and
//!   it is on disk.
//! - Until a service has told the time, the system's clock counts, if it is not before the floor.
//! - An AS or NMS whose certificate is not valid by that clock may be heard all the same, if there is a
//!   moment, not before the floor, at which its whole chain is valid. What it is asked first is answered with
//!   the time. That is believed only if its chain is valid then; otherwise the answer is none.
//! - From then on the time is what was told and what has passed since on a clock that nobody sets
//!   (CLOCK_BOOTTIME). It follows the AS's later words, and an NMS's only as long as no AS has spoken: an NMS
//!   must not make devices accept certificates that have ended.
//! - Once told, the time is a floor too: whoever has a certificate that has ended by it is not heard.
//!
//! Nothing here reads a clock: both of the device's come in as a [`Reading`].

use std::time::Duration;

use thiserror::Error;

/// Seconds since 1970, without leap seconds.
pub type UnixSeconds = u64;

/// What the device's clocks say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Since the host started, sleep included: nobody sets this one.
    pub since_boot: Duration,
    /// The system's clock. Anybody may have set it, or nobody.
    pub system: UnixSeconds,
}

/// From when to when a certificate is valid, or every certificate of a chain; both seconds still count (RFC
/// 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: UnixSeconds,
    /// Last second.
    pub not_after: UnixSeconds,
}

impl Validity {
    /// Of what is always valid.
    pub const ALWAYS: Self = Self { not_before: 0, not_after: UnixSeconds::MAX };

    /// Of these times, of which those before 1970 count as 1970.
    pub fn of(not_before: i64, not_after: i64) -> Self {
        let unsigned = |time: i64| u64::try_from(time).unwrap_or_default();
        Self { not_before: unsigned(not_before), not_after: unsigned(not_after) }
    }

    /// While both are valid. It may be never.
    pub fn and(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }

    /// Whether it is valid then.
    pub fn contains(self, time: UnixSeconds) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }
}

/// Who tells the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// A Node Management Service: it steers nodes, and signs nothing.
    Nms,
    /// An Authentication Service: devices believe its certificates anyway.
    As,
}

/// Why a service's word is not taken, and nothing else that it says with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TimeError {
    /// It proved itself with a certificate that is not valid by the time that it tells.
    #[error(
        "its certificate is not valid at the time that it tells: is the cloud's clock right, and does its certificate need \
         to be renewed?"
    )]
    SelfContradiction,
    /// Its certificate is not valid now.
    #[error("its certificate is not valid now")]
    NotValid,
    /// It is of a version that does not tell the time, and its certificate is not valid by the system's
    /// clock.
    #[error(
        "its certificate is not valid by this device's clock, and it does not tell the time: is the clock right?"
    )]
    NotTold,
}

/// The time, as far as the device knows it.
#[derive(Clone, Debug)]
pub struct TrustedTime {
    floor: UnixSeconds,
    told: Option<Told>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    by: Witness,
    time: UnixSeconds,
    since_boot: Duration,
}

impl Told {
    fn now(self, reading: Reading) -> UnixSeconds {
        self.time.saturating_add(reading.since_boot.saturating_sub(self.since_boot).as_secs())
    }
}

impl TrustedTime {
    /// It is `floor` or later.
    pub fn new(floor: UnixSeconds) -> Self {
        Self { floor, told: None }
    }

    /// It is `floor` or later: so says the certificate in use, as it does at the next start. It is earlier
    /// than the one before where that was made by a clock that was ahead.
    pub fn set_floor(&mut self, floor: UnixSeconds) {
        self.floor = floor;
    }

    /// Whether a service has told it.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// The best that is known.
    pub fn now(&self, reading: Reading) -> UnixSeconds {
        self.told.map_or(reading.system, |told| told.now(reading)).max(self.floor)
    }

    /// At which time to judge the chain of a service that will tell the time: now, or, where the chain is not
    /// valid now but may be valid at a time that is as possible, then. A chain that is valid at no such
    /// time is judged, and refused, as of now.
    pub fn judge_at(&self, chain: Validity, reading: Reading) -> UnixSeconds {
        let now = self.now(reading);
        let least = self.told.map_or(0, |told| told.now(reading)).max(self.floor);
        let possible = least.max(chain.not_before);
        if !chain.contains(now) && chain.contains(possible) { possible } else { now }
    }

    /// Takes a service's word for the time; 0 where it tells none. Returns whether the time is known from now
    /// on and was not before.
    ///
    /// # Errors
    /// When the service's certificates do not allow to believe it, in this or in anything else. Nothing was
    /// learned then.
    pub fn hear(
        &mut self,
        by: Witness,
        time: UnixSeconds,
        chain: Validity,
        reading: Reading,
    ) -> Result<bool, TimeError> {
        if time == 0 {
            let error = if self.is_told() { TimeError::NotValid } else { TimeError::NotTold };
            return if chain.contains(self.now(reading)) { Ok(false) } else { Err(error) };
        }
        if let Some(known) = self.told {
            // A chain that has ended cannot turn the time back to when it was valid.
            let now = self.now(reading);
            if chain.not_after < now {
                return Err(TimeError::NotValid);
            }
            if known.by > by {
                return if chain.contains(now) { Ok(false) } else { Err(TimeError::NotValid) };
            }
        }
        // One whose clock is behind the floor is in error, and does no harm.
        if !chain.contains(time.max(self.floor)) {
            return Err(TimeError::SelfContradiction);
        }
        let first = self.told.is_none();
        self.told = Some(Told { by, time, since_boot: reading.since_boot });
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;
    const YEAR: u64 = 365 * DAY;
    /// When the tests play: 2026.
    const NOW: u64 = 56 * YEAR;
    /// When the device's certificate was issued.
    const FLOOR: u64 = NOW - 60 * DAY;

    /// Of a service: two years, half of which have passed.
    const SERVICE: Validity = Validity { not_before: NOW - YEAR, not_after: NOW + YEAR };
    /// Of one that has ended, though after the device's own certificate began.
    const ENDED: Validity = Validity { not_before: NOW - 2 * YEAR, not_after: NOW - DAY };
    /// Of one that ended before.
    const LONG_ENDED: Validity = Validity { not_before: NOW - 2 * YEAR, not_after: FLOOR - DAY };

    fn at(since_boot: u64, system: u64) -> Reading {
        Reading { since_boot: Duration::from_secs(since_boot), system }
    }

    /// What a device's clock may say when it starts.
    const CLOCKS: [u64; 6] = [0, NOW - 30 * YEAR, FLOOR - 1, NOW, NOW + 2 * YEAR, NOW + 20 * YEAR];

    #[test]
    fn until_it_is_told_it_is_the_systems_but_not_before_the_floor() {
        let time = TrustedTime::new(FLOOR);
        assert!(!time.is_told());
        for (system, now) in [(0, FLOOR), (FLOOR - 1, FLOOR), (NOW, NOW), (NOW + 20 * YEAR, NOW + 20 * YEAR)]
        {
            assert_eq!(time.now(at(1, system)), now);
        }
    }

    #[test]
    fn any_clock_recovers_with_the_first_word_of_a_service() {
        for system in CLOCKS {
            for by in [Witness::Nms, Witness::As] {
                let mut time = TrustedTime::new(FLOOR);
                let judged = time.judge_at(SERVICE, at(5, system));
                assert!(SERVICE.contains(judged) && judged >= FLOOR, "{judged} with the clock at {system}");
                assert_eq!(time.hear(by, NOW, SERVICE, at(5, system)), Ok(true));
                // Whatever happens to the system's clock.
                for system in CLOCKS {
                    assert_eq!(time.now(at(5 + 90, system)), NOW + 90);
                }
                assert!(time.is_told());
                assert_eq!(time.hear(by, NOW + 90, SERVICE, at(95, system)), Ok(false), "nothing new");
            }
        }
    }

    #[test]
    fn who_was_over_before_the_floor_is_never_heard() {
        for system in CLOCKS {
            let time = TrustedTime::new(FLOOR);
            assert_eq!(time.judge_at(LONG_ENDED, at(0, system)), time.now(at(0, system)));
            assert!(!LONG_ENDED.contains(time.now(at(0, system))));
        }
    }

    #[test]
    fn who_has_ended_is_not_heard_once_the_time_is_known() {
        for system in CLOCKS {
            let mut time = TrustedTime::new(FLOOR);
            time.hear(Witness::As, NOW, SERVICE, at(0, system)).unwrap();
            assert_eq!(time.judge_at(ENDED, at(9, system)), NOW + 9);
            // Nor is one that was let in before.
            for by in [Witness::Nms, Witness::As] {
                assert!(time.hear(by, NOW, ENDED, at(9, system)).is_err());
                assert!(time.hear(by, 0, ENDED, at(9, system)).is_err());
            }
            assert_eq!(time.now(at(9, system)), NOW + 9);
        }
    }

    #[test]
    fn a_service_tells_no_time_at_which_it_is_not_valid_itself() {
        let mut time = TrustedTime::new(FLOOR);
        for told in [SERVICE.not_after + 1, NOW + 20 * YEAR, u64::MAX] {
            let heard = time.hear(Witness::As, told, SERVICE, at(0, NOW));
            assert_eq!(heard, Err(TimeError::SelfContradiction));
        }
        assert!(!time.is_told());
        // One that is behind is held to the floor.
        assert_eq!(time.hear(Witness::As, 1, SERVICE, at(0, 0)), Ok(true));
        assert_eq!(time.now(at(3, 0)), FLOOR);
    }

    #[test]
    fn an_as_corrects_an_nms_and_itself_and_is_corrected_by_no_nms() {
        let mut time = TrustedTime::new(FLOOR);
        time.hear(Witness::Nms, NOW + 90 * DAY, SERVICE, at(0, 0)).unwrap();
        assert_eq!(time.now(at(0, 0)), NOW + 90 * DAY);
        assert_eq!(time.hear(Witness::As, NOW, SERVICE, at(1, 0)), Ok(false));
        assert_eq!(time.now(at(1, 0)), NOW);
        for told in [NOW + 90 * DAY, NOW - 30 * DAY] {
            assert_eq!(time.hear(Witness::Nms, told, SERVICE, at(2, 0)), Ok(false));
            assert_eq!(time.now(at(2, 0)), NOW + 1);
        }
        assert_eq!(time.hear(Witness::As, NOW - DAY, SERVICE, at(3, 0)), Ok(false));
        assert_eq!(time.now(at(3, 0)), NOW - DAY);
    }

    #[test]
    fn a_service_that_begins_later_shows_that_the_time_known_is_old() {
        let mut time = TrustedTime::new(FLOOR);
        // Somebody with a key whose certificate has ended was here first.
        time.hear(Witness::As, NOW - 30 * DAY, ENDED, at(0, 0)).unwrap();
        let renewed = Validity { not_before: NOW - 7 * DAY, ..SERVICE };
        assert_eq!(time.judge_at(renewed, at(1, 0)), renewed.not_before);
        time.hear(Witness::As, NOW, renewed, at(1, 0)).unwrap();
        assert_eq!(time.now(at(1, 0)), NOW);
        // From then on that one is not let in.
        assert!(!ENDED.contains(time.judge_at(ENDED, at(2, 0))));
    }

    #[test]
    fn old_services_that_tell_no_time_are_believed_by_the_systems_clock() {
        let mut time = TrustedTime::new(FLOOR);
        assert_eq!(time.hear(Witness::As, 0, SERVICE, at(0, NOW)), Ok(false));
        assert_eq!(time.hear(Witness::As, 0, SERVICE, at(0, NOW + 20 * YEAR)), Err(TimeError::NotTold));
        assert!(!time.is_told());
        // A clock that is set in the meantime counts at once.
        assert_eq!(time.hear(Witness::As, 0, SERVICE, at(9, NOW)), Ok(false));
    }

    #[test]
    fn the_floor_is_that_of_the_certificate_in_use() {
        let mut time = TrustedTime::new(FLOOR);
        time.set_floor(FLOOR + DAY);
        assert_eq!(time.now(at(0, 0)), FLOOR + DAY);
        time.set_floor(FLOOR);
        assert_eq!(time.now(at(0, 0)), FLOOR);
        time.set_floor(NOW);
        assert_eq!(time.now(at(0, 0)), NOW);
    }

    proptest! {
        /// Whatever is said, by whomever: nothing below the floor, no overflow, and a chain is let in beside the known time
        /// only if it may be valid.
        #[test]
        fn nothing_is_possible_before_the_floor(
            floor: u64,
            words in prop::collection::vec((any::<bool>(), any::<u64>(), any::<(u64, u64)>(), any::<(u32, u64)>()), 0..12),
        ) {
            let mut time = TrustedTime::new(floor);
            for (by_as, told, (not_before, not_after), (since_boot, system)) in words {
                let by = if by_as { Witness::As } else { Witness::Nms };
                let (chain, reading) = (Validity { not_before, not_after }, at(since_boot.into(), system));
                let judged = time.judge_at(chain, reading);
                prop_assert!(judged >= floor);
                prop_assert!(judged == time.now(reading) || chain.contains(judged));
                let before = time.now(reading);
                if time.hear(by, told, chain, reading).is_err() {
                    prop_assert_eq!(time.now(reading), before);
                } else {
                    prop_assert!(chain.contains(time.now(reading)));
                }
                prop_assert!(time.now(reading) >= floor);
            }
        }
    }
}
