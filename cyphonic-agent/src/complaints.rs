//! What the log is told of failures that repeat for as long as their cause lasts: a cloud that is away for a
//! night, a device without a network. An SD card has better uses, and so has who reads.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A failure that goes on is told again after this time: who reads the last hours of a log finds it.
const AGAIN: Duration = Duration::from_secs(3_600);

/// What of each matter has been told, and when.
#[derive(Debug)]
pub(crate) struct Complaints<K> {
    told: HashMap<K, (String, Instant)>,
}

impl<K> Default for Complaints<K> {
    fn default() -> Self {
        Self { told: HashMap::new() }
    }
}

impl<K: Eq + Hash> Complaints<K> {
    /// Whether a failure is to be told: the first of its matter, another reason than the last, or the same
    /// after an hour.
    pub(crate) fn is_news(&mut self, now: Instant, matter: K, reason: &str) -> bool {
        let known = self.told.get(&matter);
        if known.is_some_and(|(last, at)| last == reason && now.saturating_duration_since(*at) < AGAIN) {
            return false;
        }
        self.told.insert(matter, (reason.to_owned(), now));
        true
    }

    /// The matter is settled: its next failure is told. True if there was one before.
    pub(crate) fn settle(&mut self, matter: &K) -> bool {
        self.told.remove(matter).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_goes_on_is_told_once_and_then_every_hour() {
        let (begun, mut complaints) = (Instant::now(), Complaints::default());
        // Every ten seconds of a day.
        let told = |complaints: &mut Complaints<&str>, matter| {
            (0..8_640)
                .filter(|n| complaints.is_news(begun + Duration::from_secs(10 * n), matter, "timed out"))
                .count()
        };
        assert_eq!(told(&mut complaints, "nms"), 24);
        assert_eq!(told(&mut complaints, "as"), 24, "matters do not hide each other");
    }

    #[test]
    fn another_reason_is_news_and_so_is_the_same_after_success() {
        let (now, mut complaints) = (Instant::now(), Complaints::default());
        assert!(complaints.is_news(now, "nms", "timed out"));
        assert!(complaints.is_news(now, "nms", "refused"));
        assert!(!complaints.is_news(now, "nms", "refused"));
        assert!(complaints.settle(&"nms") && !complaints.settle(&"nms"));
        assert!(complaints.is_news(now, "nms", "refused"));
    }
}
