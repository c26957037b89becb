//! Requests under way: repeated, answered once, given up (RFC 8489 §6.2.1, with less patience).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::stun::{Message, Request, Success, Transaction};

/// When a request is sent, counted from its first time. RFC 8489 would go on for 40 s: a service that is
/// silent for two seconds is of no use for telling how a NAT behaves.
const SENDS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(900)];

/// When it is given up.
const PATIENCE: Duration = Duration::from_millis(1_800);

/// A socket of the node's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Socket {
    /// The node's own port.
    Own,
    /// A fresh port, about which others are asked.
    Test,
    /// A fresh port that asks on behalf of others (RESPONSE-PORT).
    Asker,
    /// A fresh port that stays idle for the time of this place in [`super::IDLE_TIMES`].
    Idle(u8),
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From which socket.
    pub socket: Socket,
    /// Where to.
    pub to: SocketAddr,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// A request to make.
#[derive(Clone, Debug)]
pub(super) struct Question<K> {
    /// What it is asked for.
    pub(super) kind: K,
    /// Which socket sends it.
    pub(super) socket: Socket,
    /// Which socket the answer comes to.
    pub(super) hears: Socket,
    /// Where it goes to.
    pub(super) to: SocketAddr,
    /// Where the answer comes from.
    pub(super) from: SocketAddr,
    /// Its parameters, without transaction.
    pub(super) request: Request,
}

struct Pending<K> {
    question: Question<K>,
    first: Instant,
    sends: usize,
}

/// An answered question.
#[derive(Debug)]
pub(super) struct Answered<K> {
    pub(super) question: Question<K>,
    /// What the server says; nothing where the request itself came back.
    pub(super) success: Option<Success>,
    /// The round trip, where it is certain which of the requests was answered.
    pub(super) took: Option<Duration>,
}

/// All requests under way.
pub(super) struct Transactions<K> {
    rng: StdRng,
    pending: BTreeMap<Transaction, Pending<K>>,
    out: VecDeque<Transmit>,
}

impl<K: Clone> Transactions<K> {
    /// `seed` must be unpredictable: whoever guesses a transaction can answer it.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { rng: StdRng::from_seed(seed), pending: BTreeMap::new(), out: VecDeque::new() }
    }

    pub(super) fn ask(&mut self, now: Instant, mut question: Question<K>) {
        question.request.transaction = self.rng.random();
        let transaction = question.request.transaction;
        self.out.push_back(transmit(&question));
        self.pending.insert(transaction, Pending { question, first: now, sends: 1 });
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().map(Pending::due).min()
    }

    /// Repeats what is due, and returns what is given up.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Question<K>> {
        let mut given_up = Vec::new();
        for (transaction, pending) in &mut self.pending {
            if pending.due() > now {
                continue;
            }
            if pending.sends >= SENDS.len() {
                given_up.push(*transaction);
                continue;
            }
            pending.sends += 1;
            self.out.push_back(transmit(&pending.question));
        }
        given_up.iter().filter_map(|gone| self.pending.remove(gone)).map(|gone| gone.question).collect()
    }

    /// The question that a datagram answers. One that came to another socket, or from elsewhere, answers
    /// none.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        socket: Socket,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Option<Answered<K>> {
        let message = Message::decode(datagram).ok()?;
        let (transaction, success) = match message {
            Message::Success(success) => (success.transaction, Some(success)),
            Message::Request(request) => (request.transaction, None),
            // What a server cannot do is found out by waiting: refusals come over the same lossy path.
            Message::Failure(_) | Message::Indication(_) => return None,
        };
        let question = &self.pending.get(&transaction)?.question;
        // A request that comes back went round a NAT, whose outer address it comes from.
        let expected = question.hears == socket && (success.is_none() || question.from == from);
        if !expected {
            return None;
        }
        let Pending { question, first, sends } = self.pending.remove(&transaction)?;
        let took = (sends == 1).then(|| now.saturating_duration_since(first));
        Some(Answered { question, success, took })
    }

    pub(super) fn any(&self, which: impl Fn(&K) -> bool) -> bool {
        self.pending.values().any(|pending| which(&pending.question.kind))
    }
}

impl<K> Pending<K> {
    fn due(&self) -> Instant {
        self.first + SENDS.get(self.sends).copied().unwrap_or(PATIENCE)
    }
}

fn transmit<K>(question: &Question<K>) -> Transmit {
    let payload = Message::Request(question.request.clone()).encode();
    Transmit { socket: question.socket, to: question.to, payload }
}
