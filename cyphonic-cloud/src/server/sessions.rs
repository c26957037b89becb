//! The devices connected to one service, and the exchanges with them.
//!
//! Each connection has tasks that read it and put what arrives into the service's bounded channel; the
//! service's one task owns the machine and this table. A device is let in only if the register (where there
//! is one) still knows it under the key it came with, also when its turn comes.
//!
//! A device has one connection, the newest; but it dials several of our addresses at once and drops all
//! connections but the first to stand. Here any of those may come last. So the machine hears of a connection
//! only when it [speaks](Sessions::introduce): on one that was dropped nothing is ever asked.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cyphonic_proto::stun::Transaction;
use cyphonic_proto::{Channel, ExchangeId, Identity, Message, close};
use cyphonic_transport::{Connection, Responder};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::admission::{Admission, Changes, KeptOut, allowed};
use super::clock::unix_now;
use super::datagrams::{Meter, Verdict};
use super::kept::{Online, Presence};
use super::newest::Newest;
use super::rounds::Rounds;
use super::whereabouts::Whereabouts;
use crate::register::{DeviceRecord, Register, RegisterError, UnixSeconds};
use crate::seldom::{HOURLY, Seldom};

/// Events that wait for a service. When it is full, connections are read more slowly: their senders wait.
const QUEUE: usize = 4_096;

/// What happened on the connections of one service.
pub(super) enum Event {
    /// A device came and was let in.
    Connected(Connection, Admission),
    /// It asks.
    Request(Channel, Message, Responder),
    /// It sent a DATAGRAM.
    Datagram(Channel, Bytes),
    /// It is gone; `closed`: it said so, and did not just vanish.
    Ended {
        /// Which.
        channel: Channel,
        /// Whether the device closed the connection.
        closed: bool,
    },
    /// It answered our request, or will not.
    Answered(ExchangeId, Result<Message, String>),
}

/// Whether a device that was called where it is seen may still be waited for.
pub(super) enum Owes {
    /// It is to be called again.
    Still,
    /// No.
    TooLong,
}

/// Names, and why they were not let in.
type Refusals = Arc<Seldom<(String, String)>>;

/// Tells the operator of a verdict, seldom: who was refused tries all the time.
fn tell_refused(refusals: &Seldom<(String, String)>, fqdn: &str, code: u32, reason: &str) {
    let is_verdict = code == close::NOT_ALLOWED;
    if is_verdict && refusals.is_due((fqdn.to_owned(), reason.to_owned()), unix_now()) {
        tracing::warn!(fqdn, reason, "a device was refused");
    }
}

/// Where connections enter a service.
#[derive(Clone)]
pub(super) struct Entrance {
    events: mpsc::Sender<Event>,
    register: Option<Arc<Register>>,
    refusals: Refusals,
    /// Why devices could not be looked up.
    failures: Arc<Seldom<String>>,
}

impl Entrance {
    /// Of a service that hears what happens by the receiver.
    pub(super) fn new(register: Option<Arc<Register>>) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(QUEUE);
        let refusals = Arc::new(Seldom::new(HOURLY));
        (Self { events, register, refusals, failures: Arc::new(Seldom::ever_more_rarely()) }, receiver)
    }

    /// Lets a device in, or closes its connection.
    pub(super) async fn connected(&self, connection: Connection) {
        match self.admit(&connection).await {
            Ok(admission) => {
                // The service's end is the process's end.
                let _ = self.events.send(Event::Connected(connection, admission)).await;
            }
            Err(kept_out) => {
                let reason = kept_out.reason();
                let fqdn = connection.identity().map(|identity| identity.fqdn.clone()).unwrap_or_default();
                tracing::debug!(fqdn, reason, remote = %connection.remote_address(), "a device was not let in");
                connection.close(kept_out.code(), reason);
                tell_refused(&self.refusals, &fqdn, kept_out.code(), reason);
            }
        }
    }

    async fn admit(&self, connection: &Connection) -> Result<Admission, KeptOut> {
        let since = Instant::now();
        let nobody = KeptOut::NotAllowed("a device certificate is required");
        let identity = connection.identity().cloned().ok_or(nobody)?;
        let Some(register) = self.register.clone() else {
            return Ok(Admission { identity, revision: 0, since });
        };
        let (fqdn, key) = (identity.fqdn.clone(), identity.spki_sha256);
        let not_after = u64::try_from(identity.not_after).unwrap_or(0);
        let look_up = move || {
            let device = register.device(&fqdn)?;
            // A restored register may not know of it, and the device may not log in for weeks. Whether that can be
            // noted decides nothing.
            if let Some(device) = device.as_ref().filter(|device| device.has_key(&key)) {
                let _ = register.note_certificate(device, &key, not_after);
            }
            Ok::<_, RegisterError>(device)
        };
        let device = tokio::task::spawn_blocking(look_up).await;
        let device = match device {
            Ok(Ok(device)) => device.ok_or(KeptOut::NotAllowed("no device has this name"))?,
            Ok(Err(error)) => return Err(self.failed(&error)),
            Err(error) => return Err(self.failed(&error)),
        };
        allowed(&device, &identity).map_err(KeptOut::NotAllowed)?;
        Ok(Admission { identity, revision: device.revision, since })
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> KeptOut {
        let error = error.to_string();
        if self.failures.is_due(error.clone(), unix_now()) {
            tracing::error!(%error, "a device could not be looked up");
        }
        KeptOut::Unavailable("the service failed; its log says why")
    }
}

struct Session {
    connection: Connection,
    admission: Admission,
    whereabouts: Whereabouts,
    readers: Vec<AbortHandle>,
    /// When it came.
    since: UnixSeconds,
    /// When it was found that two machines have the device's identity.
    doubled_at: Option<UnixSeconds>,
    /// Whether the machine knows it.
    introduced: bool,
}

/// The table of one service.
pub(super) struct Sessions {
    events: mpsc::Sender<Event>,
    refusals: Refusals,
    datagrams: bool,
    sessions: BTreeMap<Channel, Session>,
    /// Those of each device.
    of_device: HashMap<String, Vec<Channel>>,
    rounds: Rounds<Channel>,
    changes: Changes,
    /// Those that have not spoken yet.
    silent: Newest<String, Channel>,
    waiting: HashMap<ExchangeId, Responder>,
    asked: HashMap<ExchangeId, AbortHandle>,
    next_channel: u64,
    next_exchange: u64,
    /// Whether who is online has changed since somebody asked.
    others_online: bool,
    /// Of which devices it was said that two machines have their identity, and of which addresses.
    doubles: Seldom<(String, IpAddr)>,
}

impl Sessions {
    /// Of the service behind this entrance; `datagrams`: whether its devices send any.
    pub(super) fn new(entrance: &Entrance, datagrams: bool) -> Self {
        Self {
            events: entrance.events.clone(),
            refusals: Arc::clone(&entrance.refusals),
            datagrams,
            sessions: BTreeMap::new(),
            of_device: HashMap::new(),
            rounds: Rounds::default(),
            changes: Changes::default(),
            silent: Newest::default(),
            waiting: HashMap::new(),
            asked: HashMap::new(),
            next_channel: 0,
            next_exchange: 0,
            others_online: false,
            doubles: Seldom::new(HOURLY),
        }
    }

    /// Takes a connection up and reads it, unless a change of the register has overtaken it. Requests come
    /// one by one and in order; each waits for room in the channel.
    pub(super) fn insert(&mut self, now: Instant, connection: Connection, admission: Admission) {
        if let Err(kept_out) = self.changes.leave_in(now, &admission) {
            let (fqdn, remote, reason) =
                (&admission.identity.fqdn, connection.remote_address(), kept_out.reason());
            tracing::debug!(fqdn, reason, %remote, "a device was not let in");
            connection.close(kept_out.code(), reason);
            return;
        }
        let channel = Channel(self.next_channel);
        self.next_channel += 1;
        let fqdn = admission.identity.fqdn.clone();
        let whereabouts = Whereabouts::new(connection.handshake_address());
        let requests = read_requests(channel, connection.clone(), self.events.clone());
        let mut readers = vec![tokio::spawn(requests).abort_handle()];
        if self.datagrams {
            let datagrams = read_datagrams(channel, connection.clone(), self.events.clone());
            readers.push(tokio::spawn(datagrams).abort_handle());
        }
        self.sessions.insert(
            channel,
            Session {
                connection,
                admission,
                whereabouts,
                readers,
                since: unix_now(),
                doubled_at: None,
                introduced: false,
            },
        );
        self.of_device.entry(fqdn.clone()).or_default().push(channel);
        if let Some(oldest) = self.silent.insert(fqdn, channel) {
            self.close(oldest, "more connections than a device needs, and nothing asked on them");
        }
    }

    /// Whose connection it is and where from, when it speaks for the first time: the machine is to be told.
    pub(super) fn introduce(&mut self, channel: Channel) -> Option<(Identity, Whereabouts)> {
        let session = self.sessions.get_mut(&channel).filter(|session| !session.introduced)?;
        session.introduced = true;
        self.others_online = true;
        let introduced = (session.admission.identity.clone(), session.whereabouts);
        self.silent.remove(&introduced.0.fqdn, |other| *other == channel);
        Some(introduced)
    }

    /// The devices whose connections are in use, if that has changed since it was asked. What comes through
    /// the detour comes from loopback.
    pub(super) fn online(&mut self) -> Option<Online> {
        if !std::mem::take(&mut self.others_online) {
            return None;
        }
        let introduced = self.sessions.values().filter(|session| session.introduced);
        let present = introduced.map(|session| {
            let by_tcp = session.whereabouts.seen().ip().is_loopback();
            (
                session.admission.identity.fqdn.clone(),
                Presence { since: session.since, by_tcp, doubled_at: session.doubled_at },
            )
        });
        Some(Arc::new(present.collect()))
    }

    /// Another machine with a device's identity had displaced this one, which is back.
    pub(super) fn doubled(&mut self, channel: Channel) {
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        let now = unix_now();
        session.doubled_at = Some(now);
        self.others_online = true;
        let (fqdn, remote) = (&session.admission.identity.fqdn, session.connection.remote_address());
        // Of each of the two.
        if self.doubles.is_due((fqdn.clone(), remote.ip()), now) {
            tracing::warn!(
                fqdn,
                %remote,
                "two machines have this device's identity, as after its SD card was copied: each keeps the other from the overlay; \
                 enrol one of them under a name of its own"
            );
        }
    }

    /// Whether the connection is (still) in the table.
    pub(super) fn contains(&self, channel: Channel) -> bool {
        self.sessions.contains_key(&channel)
    }

    /// The local address by which a device reaches us, where the kernel tells.
    pub(super) fn local_ip(&self, channel: Channel) -> Option<IpAddr> {
        self.sessions.get(&channel).and_then(|session| session.connection.local_ip())
    }

    /// Forgets a connection that has ended.
    pub(super) fn remove(&mut self, channel: Channel) -> bool {
        let Some(session) = self.sessions.remove(&channel) else { return false };
        session.readers.iter().for_each(AbortHandle::abort);
        let fqdn = &session.admission.identity.fqdn;
        if let Some(own) = self.of_device.get_mut(fqdn) {
            own.retain(|other| *other != channel);
            if own.is_empty() {
                self.of_device.remove(fqdn);
            }
        }
        if session.introduced {
            self.others_online = true;
        } else {
            self.silent.remove(fqdn, |other| *other == channel);
        }
        true
    }

    /// Closes a connection of a device that the machine does not let in; its end is not reported.
    pub(super) fn refuse(&mut self, channel: Channel, code: u32, reason: &str) {
        if let Some(session) = self.sessions.get(&channel) {
            tell_refused(&self.refusals, &session.admission.identity.fqdn, code, reason);
        }
        self.close_as(channel, code, reason);
    }

    /// Closes a connection of a device that may not be here; its end is not reported.
    pub(super) fn close(&mut self, channel: Channel, reason: &str) {
        self.close_as(channel, close::NOT_ALLOWED, reason);
    }

    /// The same, for whatever reason the code tells.
    pub(super) fn close_as(&mut self, channel: Channel, code: u32, reason: &str) {
        if let Some(session) = self.sessions.get(&channel) {
            tracing::debug!(
                fqdn = session.admission.identity.fqdn,
                reason,
                "a device's connection is closed"
            );
            session.connection.close(code, reason);
        }
        self.remove(channel);
    }

    /// Closes so many connections, and says which; their ends are not reported.
    pub(super) fn close_some(&mut self, most: usize, code: u32, reason: &str) -> Vec<Channel> {
        let some: Vec<Channel> = self.sessions.keys().copied().take(most).collect();
        some.iter().for_each(|channel| self.close_as(*channel, code, reason));
        some
    }

    /// The devices that are to be looked at now, and how long until the next ones are.
    pub(super) fn due(&mut self) -> (Vec<Channel>, Duration) {
        self.rounds.next(&self.sessions)
    }

    /// Closes the connections of those of these devices whose certificates have ended since they came, and
    /// says which: one that has another certificate comes back at once, and to judge those without is for
    /// the handshake.
    pub(super) fn close_expired(&mut self, now: UnixSeconds, channels: &[Channel]) -> Vec<Channel> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let has_ended = |channel: &&Channel| {
            self.sessions.get(channel).is_some_and(|session| session.admission.identity.not_after < now)
        };
        let ended: Vec<Channel> = channels.iter().filter(has_ended).copied().collect();
        for channel in &ended {
            self.close_as(*channel, close::DONE, "the certificate that it came with has ended");
        }
        ended
    }

    /// Names a request that has arrived.
    pub(super) fn expect_answer(&mut self, responder: Responder) -> ExchangeId {
        let exchange = ExchangeId(self.next_exchange);
        self.next_exchange += 1;
        self.waiting.insert(exchange, responder);
        exchange
    }

    /// Answers a request that has arrived.
    pub(super) fn respond(&mut self, exchange: ExchangeId, message: Message) {
        let Some(responder) = self.waiting.remove(&exchange) else { return };
        tokio::spawn(async move {
            if let Err(error) = responder.respond(&message).await {
                tracing::debug!(%error, "an answer could not be sent");
            }
        });
    }

    /// Asks a device.
    pub(super) fn request(&mut self, channel: Channel, exchange: ExchangeId, message: Message) {
        let connection = self.sessions.get(&channel).map(|session| session.connection.clone());
        let events = self.events.clone();
        let ask = async move {
            let answer = match connection {
                Some(connection) => {
                    connection.open_exchange(&message).await.map_err(|error| error.to_string())
                }
                None => Err("the device is gone".to_owned()),
            };
            // The service's end is the process's end.
            let _ = events.send(Event::Answered(exchange, answer)).await;
        };
        self.asked.insert(exchange, tokio::spawn(ask).abort_handle());
    }

    /// Whether somebody still waits for this answer.
    pub(super) fn answered(&mut self, exchange: ExchangeId) -> bool {
        self.asked.remove(&exchange).is_some()
    }

    /// Nobody waits for this answer any more.
    pub(super) fn cancel(&mut self, exchange: ExchangeId) {
        if let Some(asked) = self.asked.remove(&exchange) {
            asked.abort();
        }
    }

    /// Sends a DATAGRAM.
    pub(super) fn send_datagram(&self, channel: Channel, datagram: Bytes) {
        if let Some(session) = self.sessions.get(&channel) {
            session.connection.send_datagram(datagram);
        }
    }

    /// Whether this device is seen at another address than it was, and at which. Its packets come from there,
    /// or somebody repeats them from there.
    pub(super) fn moved(&mut self, channel: Channel) -> Option<SocketAddr> {
        let session = self.sessions.get_mut(&channel)?;
        let remote = session.connection.remote_address();
        session.whereabouts.see(Instant::now(), remote).then_some(remote)
    }

    /// Those of these devices that are seen at another address than they were. QUIC does not tell, so
    /// somebody has to look.
    pub(super) fn all_moved(&mut self, channels: &[Channel]) -> Vec<(Channel, SocketAddr)> {
        channels.iter().filter_map(|channel| Some((*channel, self.moved(*channel)?))).collect()
    }

    /// By which number a device is to be called now, and where.
    pub(super) fn call(
        &mut self,
        now: Instant,
        channel: Channel,
        draw: impl FnOnce() -> Option<Transaction>,
    ) -> Option<(SocketAddr, Transaction)> {
        let session = self.sessions.get_mut(&channel)?;
        let number = session.whereabouts.call(now, draw)?;
        Some((session.whereabouts.seen(), number))
    }

    /// Where a device proves to be by a number that it was called by.
    pub(super) fn prove(&mut self, channel: Channel, number: &[u8]) -> Option<SocketAddr> {
        self.sessions.get_mut(&channel)?.whereabouts.prove(number)
    }

    /// How a device stands that was called: `None` if it owes no proof any more.
    pub(super) fn owes(&self, now: Instant, channel: Channel) -> Option<Owes> {
        let whereabouts = self.sessions.get(&channel)?.whereabouts;
        let away = whereabouts.seen() != whereabouts.proved();
        away.then(|| if whereabouts.is_overdue(now) { Owes::TooLong } else { Owes::Still })
    }

    /// Notes a change of the register, and gives the connections that it does away with.
    pub(super) fn changed(&mut self, now: Instant, device: &DeviceRecord) -> Vec<(Channel, &'static str)> {
        self.changes.note(now, device);
        let own = self.of_device.get(&device.fqdn).into_iter().flatten();
        let outlived = |channel: &Channel| {
            Some((*channel, self.sessions.get(channel)?.admission.outlives(device).err()?))
        };
        own.filter_map(outlived).collect()
    }
}

async fn read_requests(channel: Channel, connection: Connection, events: mpsc::Sender<Event>) {
    let closed = loop {
        match connection.accept_exchange().await {
            Ok((message, responder)) => {
                if events.send(Event::Request(channel, message, responder)).await.is_err() {
                    return;
                }
            }
            Err(error) => break error.is_closed_by_peer(),
        }
    };
    // The service's end is the process's end.
    let _ = events.send(Event::Ended { channel, closed }).await;
}

async fn read_datagrams(channel: Channel, connection: Connection, events: mpsc::Sender<Event>) {
    let meter = Meter::new(Instant::now());
    // Unreliable by contract: rather lost than late.
    let deliver = |datagram| {
        if let Verdict::Drop(dropped) = meter.judge(Instant::now()) {
            if dropped.is_power_of_two() {
                let fqdn = connection.identity().map(|identity| &*identity.fqdn).unwrap_or_default();
                tracing::debug!(fqdn, dropped, "a device sends more DATAGRAMs than its handshakes need");
            }
            return true;
        }
        let sent = events.try_send(Event::Datagram(channel, datagram));
        !matches!(sent, Err(mpsc::error::TrySendError::Closed(_)))
    };
    // How the connection ended is told by the reader of requests.
    let _ = connection.receive_datagrams(deliver).await;
}
