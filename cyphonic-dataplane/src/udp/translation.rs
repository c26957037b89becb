//! The translator (NAT64) between this host and IPv4, as the port's sends and receives look at it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use cyphonic_common::Nat64Prefix;

use crate::sync;

/// The prefix in use, shared by the sockets of a port. It changes when the host changes networks and is read
/// with every call to send or receive, so reading takes no lock: where there is none, one load of a word that
/// nobody writes.
#[derive(Debug, Default)]
pub(super) struct Translation {
    /// Even while the words belong together.
    version: AtomicU32,
    words: [AtomicU64; 2],
    writing: Mutex<()>,
}

impl Translation {
    #[inline]
    pub(super) fn get(&self) -> Option<Nat64Prefix> {
        // A prefix's second word is never zero.
        if self.words[1].load(Ordering::Relaxed) == 0 { None } else { self.read() }
    }

    #[cold]
    fn read(&self) -> Option<Nat64Prefix> {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let words = [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)];
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return Nat64Prefix::from_words(words);
            }
            std::hint::spin_loop();
        }
    }

    pub(super) fn set(&self, prefix: Option<Nat64Prefix>) {
        let _one_at_a_time = sync::lock(&self.writing);
        let [high, low] = prefix.map_or([0; 2], Nat64Prefix::to_words);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.words[0].store(high, Ordering::Relaxed);
        self.words[1].store(low, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reader_sees_half_of_one_prefix_and_half_of_another() {
        let prefix = |text: &str, length| Nat64Prefix::new(text.parse().unwrap(), length);
        let prefixes =
            [prefix("64:ff9b::", 96), prefix("2001:db8:1:2:0:3::", 96), prefix("2001:db8::", 32), None];
        let translation = Translation::default();
        std::thread::scope(|scope| {
            // The readers end it, so that each has read while somebody wrote, however late it was given a
            // processor.
            let readers = [(); 2].map(|()| {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        let read = translation.get();
                        assert!(prefixes.contains(&read), "{read:?}");
                    }
                })
            });
            let mut next = prefixes.iter().cycle();
            while !readers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                translation.set(*next.next().unwrap());
            }
        });
        translation.set(None);
        assert_eq!(translation.get(), None);
    }
}
