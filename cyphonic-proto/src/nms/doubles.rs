//! Finds out that two machines have one identity, as after an SD card was copied: each displaces the other's
//! connection, and both come back.

/// Which runs of the agent a device's connections are of. 0: not told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Runs {
    current: u64,
    /// Whose connection was displaced by the present one, and by that.
    displaced: [u64; 2],
}

impl Runs {
    /// Those of a connection that displaces the one with these.
    pub(super) fn displaced(self) -> Self {
        let displaced = match self.current {
            0 => self.displaced,
            current => [current, self.displaced[0]],
        };
        Self { current: 0, displaced }
    }

    /// The node tells its run. True if that one had been displaced by another and is back, so that both go on.
    pub(super) fn tell(&mut self, run: u64) -> bool {
        if run == 0 || run == self.current {
            return false;
        }
        self.current = run;
        if self.displaced[0] == run {
            // A newer connection of the same run.
            self.displaced = [self.displaced[1], 0];
            return false;
        }
        self.displaced[1] == run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these connections, each of which displaces the one before, show that there are two machines.
    fn found(runs: &[u64]) -> Vec<bool> {
        let mut known = Runs::default();
        let tell = |run: &u64| {
            known = known.displaced();
            // Registrations are repeated.
            let found = known.tell(*run);
            assert!(!known.tell(*run));
            found
        };
        runs.iter().map(tell).collect()
    }

    #[test]
    fn only_who_comes_back_after_another_is_a_second_machine() {
        assert_eq!(found(&[1, 2, 1, 2]), [false, false, true, true]);
        assert_eq!(found(&[1, 1, 1]), [false; 3], "a node that moves dials anew");
        assert_eq!(found(&[1, 2, 3, 4]), [false; 4], "an agent that is restarted");
        assert_eq!(found(&[1, 2, 2, 1, 1, 2]), [false, false, false, true, false, true]);
        assert_eq!(found(&[1, 2, 3, 2]), [false, false, false, true], "one of the two was restarted");
        assert_eq!(found(&[0, 1, 0, 1, 0]), [false; 5], "an older agent does not tell");
        assert_eq!(found(&[1, 2, 0, 1]), [false, false, false, true], "a connection that told nothing");
    }
}
