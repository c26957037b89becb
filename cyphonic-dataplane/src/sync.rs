//! Locks that a panic does not close.
//!
//! A thread that panics while it holds a lock poisons it, so that nobody trusts what is behind it. Here
//! everybody may: what a lock of this project guards is a map, a queue, a counter or a handle, and is whole
//! after every statement that changes it, so the worst that a panic leaves is a change that was not made. The
//! panic itself is told by who watches the thread. A value that is broken from one statement to another does
//! not belong behind these.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks, for one.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks, with others that read.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks, to change what others read.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_panicking_thread_held_is_still_there() {
        let held = Arc::new((Mutex::new(1), RwLock::new(2)));
        let panicking = Arc::clone(&held);
        let panicked = std::thread::spawn(move || {
            let (_one, _two) = (lock(&panicking.0), write(&panicking.1));
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        *write(&held.1) += *lock(&held.0);
        assert_eq!(*read(&held.1), 3);
    }
}
