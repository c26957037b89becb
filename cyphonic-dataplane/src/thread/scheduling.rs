//! Whether a thread, when a packet wakes it, waits for its turn or interrupts whoever has the processor.
//!
//! Whoever sends a packet is usually about to sleep until the answer comes. A thread that takes the processor
//! from it at once gains nothing, and leaves a processor that seems to have more to do: whom the packet wakes
//! next is then put on another one, which had halted, and whose caches are cold. So threads that packets pass
//! let the other finish (`SCHED_BATCH`, sched(7)), and find more packets when they come. That is wrong beside
//! those who compute without end: their turn takes milliseconds. The kernel tells each thread how long it has
//! waited for a processor; one that waits longer than it works interrupts for a while (`SCHED_OTHER`), and
//! then tries again.
//!
//! Its share of the processors is the same in both ways: that is [`priority`](super::priority)'s.

#![expect(unsafe_code, reason = "the policy is set by a system call that no library has")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// What the kernel counts of the calling thread: ns on a processor, ns waited for one, turns
/// (`CONFIG_SCHED_INFO`).
const COUNTS: &str = "/proc/thread-self/schedstat";
/// Rests between two looks at them: one or two a packet while packets come one by one.
const RESTS: u32 = 32;
/// Waits of this length, on average, are no reason to interrupt anybody.
const SHORT: Duration = Duration::from_micros(200);
/// For how long others are interrupted, the first time. Twice as long each time that they would still be
/// waited for.
const FIRST_HOLD: Duration = Duration::from_millis(100);
const LONGEST_HOLD: Duration = Duration::from_secs(64);

/// How a woken thread comes to a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Policy {
    /// After whoever has it.
    Waits,
    /// At once, where its share allows it.
    Interrupts,
}

/// What the kernel has counted of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    ran: Duration,
    waited: Duration,
    turns: u32,
}

/// How the calling thread is scheduled, until it is dropped. See the module.
#[derive(Debug)]
pub(crate) struct Scheduling {
    /// `None` where the kernel does not count: the thread interrupts, as threads do.
    counts: Option<File>,
    judge: Judge,
    rests: u32,
}

impl Scheduling {
    /// That of the calling thread, which must be the one to [`rest`](Self::rest).
    pub(crate) fn of_this_thread() -> Self {
        Self::try_new().unwrap_or_else(|error| {
            tracing::debug!(%error, "this thread does not wait for its turn");
            Self { counts: None, judge: Judge::new(Counts::default(), Instant::now()), rests: 0 }
        })
    }

    fn try_new() -> io::Result<Self> {
        if policy()? != libc::SCHED_OTHER {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "somebody has chosen a scheduling policy for it",
            ));
        }
        let file = File::open(COUNTS)?;
        let judge = Judge::new(read(&file)?, Instant::now());
        set(judge.policy)?;
        Ok(Self { counts: Some(file), judge, rests: 0 })
    }

    /// Before a rest, when nothing is left to do.
    #[inline]
    pub(crate) fn rest(&mut self) {
        self.rests += 1;
        if self.rests >= RESTS {
            self.rests = 0;
            self.look();
        }
    }

    fn look(&mut self) {
        let Some(file) = &self.counts else { return };
        let before = self.judge.policy;
        let result = read(file).and_then(|counts| {
            let policy = self.judge.look(counts, Instant::now());
            if policy == before { Ok(()) } else { set(policy) }
        });
        if let Err(error) = result {
            tracing::debug!(%error, "this thread stays scheduled as it is");
            self.counts = None;
        }
    }
}

/// The thread is left as it was found: whoever runs there next would otherwise take the policy for somebody's
/// choice.
impl Drop for Scheduling {
    fn drop(&mut self) {
        if self.counts.is_some()
            && let Err(error) = set(Policy::Interrupts)
        {
            tracing::debug!(%error, "this thread goes on waiting for its turn");
        }
    }
}

/// Decides by what was counted, at given times.
#[derive(Debug)]
struct Judge {
    policy: Policy,
    /// When it began.
    since: Instant,
    /// What had been counted when it was looked at last.
    last: Counts,
    hold: Duration,
}

impl Judge {
    const fn new(counts: Counts, now: Instant) -> Self {
        Self { policy: Policy::Waits, since: now, last: counts, hold: FIRST_HOLD }
    }

    fn look(&mut self, counts: Counts, now: Instant) -> Policy {
        let lasted = now.saturating_duration_since(self.since);
        match self.policy {
            Policy::Waits if counts.is_kept_waiting_since(&self.last) => self.begin(Policy::Interrupts, now),
            // What kept it waiting is over; the next time has another reason, and need not last.
            Policy::Waits if lasted > self.hold => self.hold = FIRST_HOLD,
            Policy::Interrupts if lasted >= self.hold => {
                self.hold = (self.hold * 2).min(LONGEST_HOLD);
                self.begin(Policy::Waits, now);
            }
            _ => {}
        }
        self.last = counts;
        self.policy
    }

    fn begin(&mut self, policy: Policy, now: Instant) {
        (self.policy, self.since) = (policy, now);
    }
}

impl Counts {
    fn is_kept_waiting_since(&self, last: &Self) -> bool {
        let (ran, waited) = (self.ran.saturating_sub(last.ran), self.waited.saturating_sub(last.waited));
        waited > ran && waited > SHORT * self.turns.wrapping_sub(last.turns)
    }

    /// Three numbers, in one line.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let (ran, waited, turns) = (next()?, next()?, next()?);
        Some(Self {
            ran: Duration::from_nanos(ran),
            waited: Duration::from_nanos(waited),
            turns: turns as u32,
        })
    }
}

fn read(file: &File) -> io::Result<Counts> {
    let mut text = [0; 64];
    let len = file.read_at(&mut text, 0)?;
    let text = text.get(..len).and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(Counts::parse)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{COUNTS} has not three numbers")))
}

const THIS_THREAD: libc::pid_t = 0;

/// The calling thread's policy, one of `SCHED_*`.
pub(crate) fn policy() -> io::Result<libc::c_int> {
    // SAFETY: the call takes a number, and reads and writes no memory.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, THIS_THREAD) };
    if policy < 0 { Err(io::Error::last_os_error()) } else { Ok(policy as libc::c_int) }
}

/// Sets the calling thread's policy. Anyone may change between these two; the priority stays as it is.
fn set(policy: Policy) -> io::Result<()> {
    let number = match policy {
        Policy::Waits => libc::SCHED_BATCH,
        Policy::Interrupts => libc::SCHED_OTHER,
    };
    set_number(number)
}

fn set_number(number: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameters, which outlive the call, and nothing else.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, THIS_THREAD, number, &raw const parameters) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

    use super::*;

    fn micros(ran: u64, waited: u64, turns: u32) -> Counts {
        Counts { ran: Duration::from_micros(ran), waited: Duration::from_micros(waited), turns }
    }

    /// The policies of a thread of which the same is counted between any two looks, which are a first hold
    /// apart.
    fn policies(each: Counts, looks: u32) -> Vec<Policy> {
        let (mut judge, mut counts) = (Judge::new(Counts::default(), Instant::now()), Counts::default());
        let start = Instant::now();
        (1..=looks)
            .map(|look| {
                counts.ran += each.ran;
                counts.waited += each.waited;
                counts.turns += each.turns;
                judge.look(counts, start + FIRST_HOLD * look)
            })
            .collect()
    }

    #[test]
    fn a_thread_that_is_not_kept_waiting_waits_for_its_turn() {
        // Packets one by one on an idle machine, a stream on a busy one, and waits that are long only beside
        // what was done.
        for each in [micros(800, 160, 32), micros(16_000, 7_000, 32), micros(160, 1_500, 32), micros(0, 0, 0)]
        {
            assert!(policies(each, 100).iter().all(|policy| *policy == Policy::Waits), "{each:?}");
        }
    }

    #[test]
    fn one_that_is_kept_waiting_interrupts_and_tries_again_less_and_less_often() {
        let policies = policies(micros(900, 24_000, 32), 200);
        let tries: Vec<usize> = (0..200).filter(|look| policies[*look] == Policy::Waits).collect();
        assert_eq!(tries, [1, 4, 9, 18, 35, 68, 133]);
    }

    #[test]
    fn after_a_long_quiet_time_it_begins_anew() {
        let start = Instant::now();
        let mut judge = Judge::new(Counts::default(), start);
        let mut counts = Counts::default();
        let mut look = |holds, waits: bool| {
            counts.waited += Duration::from_millis(if waits { 10 } else { 0 });
            counts.turns += 32;
            judge.look(counts, start + FIRST_HOLD * holds);
            judge.hold
        };
        assert_eq!(look(1, true), FIRST_HOLD);
        assert_eq!(look(2, false), FIRST_HOLD * 2);
        assert_eq!(look(3, true), FIRST_HOLD * 2);
        assert_eq!(look(5, false), FIRST_HOLD * 4);
        assert_eq!(look(10, false), FIRST_HOLD);
    }

    #[test]
    fn where_looks_are_rare_the_hold_grows_as_well() {
        let start = Instant::now();
        let (mut judge, mut counts) = (Judge::new(Counts::default(), start), Counts::default());
        for look in 1..=40 {
            counts.waited += Duration::from_millis(30);
            counts.turns += 32;
            judge.look(counts, start + Duration::from_secs(16) * look);
        }
        assert_eq!(judge.hold, LONGEST_HOLD);
    }

    #[test]
    fn counts_are_three_numbers() {
        assert_eq!(Counts::parse("1000 2000 3\n"), Some(micros(1, 2, 3)));
        for wrong in ["", "1 2", "1 x 3", "-1 2 3"] {
            assert_eq!(Counts::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_policy_that_somebody_has_chosen_stays() {
        let others = std::thread::spawn(|| {
            set_number(libc::SCHED_IDLE).unwrap();
            let mut scheduling = Scheduling::of_this_thread();
            (0..=RESTS).for_each(|_| scheduling.rest());
            policy().unwrap()
        });
        assert_eq!(others.join().unwrap(), libc::SCHED_IDLE);
    }

    #[test]
    fn a_thread_is_left_as_it_was_found() {
        let policies = std::thread::spawn(|| {
            let during = || (Scheduling::of_this_thread(), policy().unwrap()).1;
            [during(), policy().unwrap(), during()]
        });
        assert_eq!(policies.join().unwrap(), [libc::SCHED_BATCH, libc::SCHED_OTHER, libc::SCHED_BATCH]);
    }

    #[test]
    fn beside_one_who_computes_without_end_the_kernel_is_asked_to_interrupt_it() {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let polite = scope.spawn(|| {
                let mut here = CpuSet::new();
                here.set(sched_getcpu());
                sched_setaffinity(None, &here).unwrap();
                let mut scheduling = Scheduling::of_this_thread();
                assert_eq!(policy().unwrap(), libc::SCHED_BATCH);
                // It is started by this thread, so on this processor alone.
                let busy = std::thread::Builder::new().spawn_scoped(scope, || {
                    while !over.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
                let rests = (0..10_000).take_while(|_| {
                    std::thread::sleep(Duration::from_micros(100));
                    scheduling.rest();
                    scheduling.judge.policy == Policy::Waits
                });
                let rests = rests.count();
                over.store(true, Relaxed);
                busy.unwrap().join().unwrap();
                (rests, policy().unwrap())
            });
            let (rests, after) = polite.join().unwrap();
            assert_eq!(after, libc::SCHED_OTHER, "after {rests} rests");
        });
    }
}
