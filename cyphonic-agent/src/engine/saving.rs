//! Writes the node's state to disk beside the engine: a memory card may take seconds for it, and questions and
//! tunnels are not to wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cyphonic_proto::node::CachedState;

/// How long the end waits for what is not written yet.
const PATIENCE: Duration = Duration::from_secs(5);

type Write = dyn Fn(&CachedState) + Send + Sync;

/// A thread that writes. Of several states that wait, the latest is written.
pub(super) struct Saver {
    write: Arc<Write>,
    states: Option<Sender<CachedState>>,
    /// Ends with the thread.
    ended: Receiver<()>,
}

impl Saver {
    pub(super) fn start(write: impl Fn(&CachedState) + Send + Sync + 'static) -> Self {
        let write: Arc<Write> = Arc::new(write);
        let ((states, waiting), (ends, ended)) = (channel::<CachedState>(), channel::<()>());
        let writing = Arc::clone(&write);
        let work = move || {
            let _ends = ends;
            while let Ok(state) = waiting.recv() {
                writing(&waiting.try_iter().last().unwrap_or(state));
            }
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
            Some(_) | None => (self.write)(state),
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if self.states.take().is_some() && self.ended.recv_timeout(PATIENCE) == Err(TIMED_OUT) {
            tracing::warn!("the disk takes long: the node's latest state may not be on it");
        }
    }
}

const TIMED_OUT: std::sync::mpsc::RecvTimeoutError = std::sync::mpsc::RecvTimeoutError::Timeout;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

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
}
