//! What the demo says while it runs: a line for each thing done, with the time since the start.

use std::time::{Duration, Instant};

/// The running account.
pub(super) struct Progress(Instant);

impl Progress {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Something is done.
    pub(super) fn done(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.elapsed().as_secs_f64());
    }

    /// Something that belongs to it.
    pub(super) fn detail(&self, what: &str) {
        println!("            {what}");
    }
}
