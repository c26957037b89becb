//! Writes the node's state to disk beside the engine: a memory card may take seconds for it, and questions and
//! tunnels are not to wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cyphonic_proto::node::CachedState;

/// How long the end waits for what is not written yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says whether the state is on disk now.
type Write = dyn Fn(&CachedState) -> bool + Send + Sync;

/// When a write that failed is tried again: what was told may not be told once more, and may be stricter than what is on
/// disk.
#[derive(Debug, Clone, Copy)]
struct Again {
    first: Duration,
    longest: Duration,
}

const AGAIN: Again = Again { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };

/// A thread that writes. Of several states that wait, the latest is written.
pub(super) struct Saver {
    write: Arc<Write>,
    states: Option<Sender<CachedState>>,
    /// Ends with the thread.
    ended: Receiver<()>,
}

impl Saver {
    pub(super) fn start(write: impl Fn(&CachedState) -> bool + Send + Sync + 'static) -> Self {
        Self::start_with(write, AGAIN)
    }

    fn start_with(write: impl Fn(&CachedState) -> bool + Send + Sync + 'static, again: Again) -> Self {
        let write: Arc<Write> = Arc::new(write);
        let ((states, waiting), (ends, ended)) = (channel::<CachedState>(), channel::<()>());
        let writing = Arc::clone(&write);
        let work = move || {
            let _ends = ends;
            write_all(&waiting, &*writing, again);
        };
        let started = std::thread::Builder::new().name("cyphonic-state".to_owned()).spawn(work);
        if let Err(error) = &started {
            tracing::warn!(%error, "the node's state is written by the engine itself");
        }
        Self { write, states: started.is_ok().then_some(states), ended }
    }

    pub(super) fn save(&self, state: &CachedState) {
        match &self.states {
            Some(states) if states.send(state.clone()).is_ok() => {}
            Some(_) | None => drop((self.write)(state)),
        }
    }
}

/// Until nobody sends any more; what is not on disk then is tried once again.
fn write_all(waiting: &Receiver<CachedState>, write: &Write, again: Again) {
    let (mut unsaved, mut wait) = (None, again.first);
    loop {
        let come = match unsaved {
            None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => waiting.recv_timeout(wait),
        };
        let is_last = come == Err(RecvTimeoutError::Disconnected);
        if let Ok(state) = come {
            unsaved = Some(waiting.try_iter().last().unwrap_or(state));
        }
        match &unsaved {
            Some(state) if write(state) => (unsaved, wait) = (None, again.first),
            Some(_) => wait = wait.saturating_mul(2).min(again.longest),
            None => {}
        }
        if is_last {
            return;
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if self.states.take().is_some() && self.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!("the disk takes long: the node's latest state may not be on it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn state(name: &str) -> CachedState {
        CachedState { nms_name: name.to_owned(), ..CachedState::default() }
    }

    #[test]
    fn nobody_waits_for_the_disk_and_the_latest_state_is_on_it_in_the_end() {
        let (begun, begins) = channel();
        let (release, released) = channel::<()>();
        let (released, written) = (Mutex::new(released), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&written);
        let saver = Saver::start(move |state| {
            begun.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
            noted.lock().unwrap().push(state.nms_name.clone());
            true
        });
        saver.save(&state("a"));
        begins.recv().unwrap();
        for name in ["b", "c", "d"] {
            saver.save(&state(name));
        }
        assert!(written.lock().unwrap().is_empty(), "the disk is slow");
        release.send(()).unwrap();
        release.send(()).unwrap();
        drop(saver);
        assert_eq!(*written.lock().unwrap(), ["a", "d"]);
    }

    #[test]
    fn what_a_disk_did_not_take_is_written_when_it_does() {
        let (tried, tries) = channel();
        let takes = Arc::new(AtomicBool::new(false));
        let disk = Arc::clone(&takes);
        let again = Again { first: Duration::from_millis(1), longest: Duration::from_millis(4) };
        let write = move |state: &CachedState| {
            let took = disk.load(Ordering::SeqCst);
            tried.send((state.nms_name.clone(), took)).unwrap();
            took
        };
        let saver = Saver::start_with(write, again);
        saver.save(&state("a"));
        for _ in 0..3 {
            assert_eq!(tries.recv().unwrap(), ("a".into(), false), "again and again");
        }
        saver.save(&state("b"));
        takes.store(true, Ordering::SeqCst);
        let written = tries.iter().find(|(_, took)| *took).unwrap();
        // `b` at once, or after one more of `a`.
        let last = if written.0 == "a" { tries.recv().unwrap() } else { written };
        assert_eq!(last, ("b".into(), true));
        drop(saver);
        assert_eq!(tries.try_iter().count(), 0, "what is on disk is not written again");
    }

    #[test]
    fn what_is_not_on_disk_is_tried_once_more_at_the_end() {
        let (tried, tries) = channel();
        let saver = Saver::start(move |state| {
            tried.send(state.nms_name.clone()).unwrap();
            false
        });
        saver.save(&state("a"));
        assert_eq!(tries.recv().unwrap(), "a");
        drop(saver);
        assert_eq!(tries.try_iter().collect::<Vec<_>>(), ["a"]);
    }
}
