//! Whether a standby stands by or in.

use std::time::{Duration, Instant};

/// For so long a standby has heard nothing of the NMS when it stands in: shorter than a node's dial of one that
/// does not answer, or who turns to the standby at once would find it standing by.
pub const STANDS_IN_AFTER: Duration = Duration::from_secs(4);

/// A standby's.
#[derive(Clone, Copy, Debug)]
pub struct Stance {
    heard: Instant,
    /// Whether it has a whole copy, of this run or one before.
    has_copy: bool,
    stands_in: bool,
}

impl Stance {
    /// Of a standby that starts, with or without a copy of what the NMS knows.
    pub fn new(now: Instant, has_copy: bool) -> Self {
        Self { heard: now, has_copy, stands_in: false }
    }

    /// Whether it serves nodes.
    pub fn stands_in(&self) -> bool {
        self.stands_in
    }

    /// Whether it could.
    pub fn has_copy(&self) -> bool {
        self.has_copy
    }

    /// The NMS answered: it serves itself, whatever the copy has by now.
    pub fn heard(&mut self, now: Instant) {
        (self.heard, self.stands_in) = (now, false);
    }

    /// The standby asks again what was answered before, after work of its own, which is no silence of the NMS.
    pub fn asks(&mut self, now: Instant) {
        if !self.stands_in {
            self.heard = now;
        }
    }

    /// The copy has everything.
    pub fn has_all(&mut self) {
        self.has_copy = true;
    }

    /// The NMS is there, and does not want to be followed: what was copied counts no more.
    pub fn dismissed(&mut self) {
        (self.has_copy, self.stands_in) = (false, false);
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.has_copy && !self.stands_in).then(|| self.heard + STANDS_IN_AFTER)
    }

    /// Stands in, if it is time to.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.stands_in = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn it_stands_in_after_a_while_of_silence_and_by_as_soon_as_it_hears() {
        let start = start();
        let mut stance = Stance::new(start, false);
        stance.handle_timeout(start + 3600 * SECOND);
        assert!(!stance.stands_in() && stance.poll_timeout().is_none(), "it would let nobody in");
        stance.heard(start + 3600 * SECOND);
        stance.handle_timeout(start + 7200 * SECOND);
        assert!(!stance.stands_in(), "it has half of a copy");
        stance.heard(start + 7200 * SECOND);
        stance.has_all();
        let due = stance.poll_timeout().unwrap();
        assert_eq!(due, start + 7200 * SECOND + STANDS_IN_AFTER);
        stance.handle_timeout(due - SECOND);
        assert!(!stance.stands_in());
        stance.handle_timeout(due);
        assert!(stance.stands_in() && stance.poll_timeout().is_none());
        stance.heard(due + SECOND);
        assert!(!stance.stands_in(), "the other serves, though what has changed meanwhile is not copied yet");
        assert_eq!(stance.poll_timeout(), Some(due + SECOND + STANDS_IN_AFTER));
        // Its disk was slow.
        stance.asks(due + 3 * SECOND);
        assert_eq!(stance.poll_timeout(), Some(due + 3 * SECOND + STANDS_IN_AFTER));
        stance.handle_timeout(due + 3 * SECOND + STANDS_IN_AFTER);
        stance.asks(due + 8 * SECOND);
        assert!(stance.stands_in(), "a question is no answer");
    }

    #[test]
    fn one_that_the_nms_does_not_want_stands_in_no_more() {
        let start = start();
        let mut stance = Stance::new(start, true);
        stance.handle_timeout(start + STANDS_IN_AFTER);
        assert!(stance.stands_in());
        stance.dismissed();
        stance.handle_timeout(start + 3600 * SECOND);
        assert!(!stance.stands_in() && !stance.has_copy());
    }

    #[test]
    fn one_that_starts_while_the_nms_is_away_stands_in_with_the_copy_of_its_last_run() {
        let start = start();
        let mut stance = Stance::new(start, true);
        stance.handle_timeout(start + STANDS_IN_AFTER);
        assert!(stance.stands_in());
    }
}
