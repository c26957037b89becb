//! A ring's threads outrank the applications whose packets they carry.
//!
//! Among equals, an application that sends in bulk keeps its processor until its turn is over, and by then
//! its packets have left the caches: each is fetched from memory again to be sealed. A thread that comes next
//! finds them there. A higher priority is not real time: whoever has waited long enough runs, too. Whether it
//! interrupts is [`scheduling`](super::scheduling)'s.

use rustix::process::nice;

/// Steps of priority (nice(2)) above what the process was started with; each weighs a quarter more.
const STEPS: i32 = 8;

/// Raises the calling thread. Without the right to, it goes on as it was, which costs speed alone.
pub(crate) fn outrank_applications() {
    if let Err(error) = nice(-STEPS) {
        tracing::debug!(%error, "a ring's thread has no more priority than others: that needs CAP_SYS_NICE");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    /// Priorities and capabilities belong to threads: the other tests keep theirs.
    fn raised(may: bool) -> i32 {
        std::thread::spawn(move || {
            if !may {
                caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_NICE).unwrap();
            }
            let before = getpriority_process(None).unwrap();
            outrank_applications();
            before - getpriority_process(None).unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_thread_is_raised_where_that_is_allowed() {
        assert_eq!((raised(true), raised(false)), (STEPS, 0));
    }
}
