//! The requests that wait for their turn: so many in all, and of each asker a share. Pure.

use std::sync::{Arc, Mutex};

use cyphonic_dataplane::sync::lock;
use cyphonic_transport::quota::{Key, Quota};

/// A queue of requests. In what order they are worked on is others' business.
pub(super) struct Queue<K: Key> {
    waiting: Mutex<Quota<K>>,
}

impl<K: Key + Clone> Queue<K> {
    /// With room for this many.
    pub(super) fn new(in_all: usize) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::new(Quota::new(in_all)) })
    }

    /// A place for a request of this asker, who has `share` of them at most.
    pub(super) fn enter(self: &Arc<Self>, asker: &K, share: usize) -> Option<Place<K>> {
        let mut waiting = lock(&self.waiting);
        waiting.has_room(asker, share).then(|| {
            waiting.add(asker.clone());
            Place { queue: Arc::clone(self), asker: asker.clone() }
        })
    }
}

/// A place in the queue, until it is dropped.
pub(super) struct Place<K: Key> {
    queue: Arc<Queue<K>>,
    asker: K,
}

impl<K: Key> Drop for Place<K> {
    fn drop(&mut self) {
        lock(&self.queue.waiting).remove(&self.asker);
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::KeyHash;

    use super::*;

    #[test]
    fn one_asker_takes_its_share_only_and_every_place_is_given_back() {
        let [a, b, c] = [1, 2, 3].map(|n| KeyHash([n; 32]));
        let queue = Queue::new(10);
        let mut places: Vec<_> = (0..100).filter_map(|_| queue.enter(&a, 4)).collect();
        assert_eq!(places.len(), 4);
        places.extend((0..100).filter_map(|_| queue.enter(&b, 4)));
        places.extend((0..100).filter_map(|_| queue.enter(&c, 4)));
        assert_eq!(places.len(), 10, "the queue is full");
        places.truncate(3);
        assert!(queue.enter(&a, 4).is_some());
        drop(places);
        assert_eq!(lock(&queue.waiting).total(), 0);
    }
}
