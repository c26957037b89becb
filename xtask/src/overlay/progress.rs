//! What a verb says while it runs: a line for each thing done, with the time since the start.

use std::time::{Duration, Instant};

/// The running account.
pub(crate) struct Progress(Instant);

impl Progress {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Something is done.
    pub(crate) fn done(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.elapsed().as_secs_f64());
    }

    /// Something that belongs to it.
    pub(crate) fn detail(&self, what: &str) {
        println!("            {what}");
    }
}
