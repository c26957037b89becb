//! The NMS: one task owns its machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_proto::access::OverlayRule;
use cyphonic_proto::message::Message;
use cyphonic_proto::nms::{Action, Nms, NmsConfig, NmsTiming};
use cyphonic_proto::node::Relay;
use cyphonic_proto::standby::{Facts, Standby};
use cyphonic_proto::{Channel, close};
use cyphonic_transport::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::StartError;
use super::clock::unix_now;
use super::kept::{self, Online};
use super::seen::Seen;
use super::sessions::{Entrance, Event, Sessions};
use super::standby::{KeptFacts, Shared};
use super::watch::Watch;
use crate::config::{Config, ServiceAddresses};
use crate::pki;
use crate::register::{DeviceRecord, Register};

/// How often it is tried to reserve set-ups' numbers, where that failed.
const RESERVE_AGAIN: Duration = Duration::from_secs(60);

/// How often a standby that stands by sends nodes away, and how many each time: all at once would find no place
/// at the overlay's own NMS.
const SEND_AWAY: Duration = Duration::from_millis(100);
const SENT_AWAY: usize = 100;

/// Where connections to the NMS enter.
#[derive(Clone)]
pub(super) struct ManagementServer {
    entrance: Entrance,
    shared: Shared,
    is_standby: bool,
    seen: Arc<Seen>,
}

/// Why a standby does not serve.
const STANDS_BY: &str = "this NMS stands by: the overlay's own can be reached from here";

/// An empty file, or one that is just being written, is no reason to open every device to everybody.
#[derive(Debug, thiserror::Error)]
#[error(
    "`access` is gone, and had rules, which stay in force: to restrict nothing, write \
     `access: [{{from: all, at: all, to: all}}]`, or restart the service"
)]
pub struct RulesAreGone;

impl ManagementServer {
    pub(super) fn start(
        config: &Config,
        register: Arc<Register>,
        watch: &mut Watch,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, StartError> {
        let is_standby = config.follows.is_some();
        let facts = if is_standby { kept_facts(config).unwrap_or_default() } else { facts(config) };
        if facts.relays.is_empty() && !is_standby {
            tracing::warn!(
                "no relay is configured: devices that cannot reach each other directly stay apart"
            );
        }
        let first_setup = first_setup(&register, tasks)?;
        let shared = Shared::new(facts.clone(), !is_standby, first_setup);
        let nms_config = NmsConfig {
            network_id: config.network.id,
            prefix: config.network.prefix,
            zone: config.network.zone.clone(),
            relays: facts.relays,
            standbys: facts.standbys,
            access: facts.access,
            devices: Some(watch.take_names()),
            revoked: watch.take_revoked(),
            timing: NmsTiming::default(),
            first_setup,
        };
        let nms = Nms::new(nms_config, pki::random()?, Instant::now());
        let (entrance, events) = Entrance::new(Some(Arc::clone(&register)));
        let public = config.public.clone();
        let sessions = Sessions::new(&entrance, false);
        let (online, told) = tokio::sync::watch::channel(Online::default());
        let seen = Arc::new(Seen::new(register, told));
        if let Some(directory) = config.runtime_directory.clone() {
            let seen = Arc::clone(&seen);
            tasks.spawn(kept::keep(directory, config.network.id, move || seen.attendance()));
        }
        tasks.spawn(Arc::clone(&seen).run());
        let management = Management { nms, sessions, public, online, shared: shared.clone() };
        tasks.spawn(management.run(events, watch.subscribe()));
        Ok(Self { entrance, shared, is_standby, seen })
    }

    /// Who is to be told when it ends.
    pub(super) fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }

    /// What it knows, and what others may tell it.
    pub(super) fn shared(&self) -> Shared {
        self.shared.clone()
    }

    /// Has other rules in force from now on, if they are others, and says whether they are.
    ///
    /// # Errors
    /// There are none any more.
    pub(super) fn restrict(&self, rules: Option<Vec<OverlayRule>>) -> Result<bool, RulesAreGone> {
        // A standby is told them, as the rest.
        if self.is_standby {
            return Ok(false);
        }
        if rules.is_none() && self.shared.facts.borrow().access.is_some() {
            return Err(RulesAreGone);
        }
        Ok(self
            .shared
            .facts
            .send_if_modified(|facts| std::mem::replace(&mut facts.access, rules) != facts.access))
    }

    /// A connection was accepted. The look at the register must not hold up other connections.
    pub(super) async fn connected(&self, connection: Connection) {
        if !*self.shared.serves.borrow() {
            connection.close(close::UNAVAILABLE, STANDS_BY);
            return;
        }
        let entrance = self.entrance.clone();
        tokio::spawn(async move { entrance.connected(connection).await });
    }
}

struct Management {
    nms: Nms,
    sessions: Sessions,
    public: Vec<SocketAddr>,
    /// Who is online, for whoever wants to know.
    online: tokio::sync::watch::Sender<Online>,
    shared: Shared,
}

impl Management {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut changes: mpsc::Receiver<DeviceRecord>) {
        let mut look_at = tokio::time::Instant::now();
        let mut tell_at = tokio::time::Instant::now() + kept::LOOK;
        let (mut facts, mut serves) = (self.shared.facts.subscribe(), self.shared.serves.subscribe());
        let mut elsewhere = self.shared.numbers.elsewhere();
        let mut send_away = tokio::time::interval(SEND_AWAY);
        send_away.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Something may have changed since the machine was made.
        facts.mark_changed();
        serves.mark_changed();
        loop {
            let timeout = self.nms.poll_timeout().map(tokio::time::Instant::from_std);
            tokio::select! {
                Some(event) = events.recv() => self.handle(event),
                Some(device) = changes.recv() => self.device_changed(&device),
                Ok(()) = facts.changed() => {
                    let Facts { relays, standbys, access } = facts.borrow_and_update().clone();
                    self.nms.handle_services(relays, standbys);
                    self.nms.handle_access(Instant::now(), access);
                }
                Ok(()) = elsewhere.changed() => {
                    self.nms.handle_setups(*elsewhere.borrow_and_update());
                }
                Ok(()) = serves.changed() => {
                    // Its numbers are raised first.
                    self.nms.handle_setups(*elsewhere.borrow_and_update());
                    if *serves.borrow_and_update() {
                        self.nms.handle_stands_in(Instant::now());
                    }
                }
                _ = send_away.tick(), if !*serves.borrow() => self.send_away(),
                () = sleep_until(timeout) => self.nms.handle_timeout(Instant::now()),
                () = tokio::time::sleep_until(look_at) => look_at = tokio::time::Instant::now() + self.look(),
                () = tokio::time::sleep_until(tell_at) => tell_at = tokio::time::Instant::now() + self.tell(),
            }
            self.act();
            self.shared.numbers.note(self.nms.next_setup());
        }
    }

    /// Tells who is there. Returns how long until it is to be told again: nobody looks more often, and a million
    /// devices are not gone through while others wait for their set-ups.
    fn tell(&mut self) -> Duration {
        let begun = Instant::now();
        if let Some(online) = self.sessions.online() {
            self.online.send_replace(online);
        }
        kept::pause_after(begun.elapsed())
    }

    /// Sends some of the nodes to the overlay's own NMS.
    fn send_away(&mut self) {
        let now = Instant::now();
        for channel in self.sessions.close_some(SENT_AWAY, close::UNAVAILABLE, STANDS_BY) {
            self.nms.handle_disconnected(now, channel);
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            // It was let in before.
            Event::Connected(connection, _) if !*self.shared.serves.borrow() => {
                connection.close(close::UNAVAILABLE, STANDS_BY);
            }
            Event::Connected(connection, admission) => self.sessions.insert(now, connection, admission),
            Event::Request(channel, message, responder) => {
                if let Some((identity, whereabouts)) = self.sessions.introduce(channel) {
                    let remote = whereabouts.seen();
                    tracing::debug!(fqdn = identity.fqdn, %remote, "a device connected to the NMS");
                    let server = self.server_address(channel, remote);
                    // The register said so when it came; the register's watch may be half a second behind,
                    // but not ahead.
                    self.nms.handle_enrolled(&identity.fqdn);
                    self.nms.handle_connected(now, channel, identity, remote, server);
                    self.act_after(Some(channel));
                }
                if !self.sessions.contains(channel) {
                    return;
                }
                if let Some(remote) = self.sessions.moved(channel) {
                    self.nms.handle_moved(now, channel, remote);
                }
                let exchange = self.sessions.expect_answer(responder);
                self.nms.handle_request(now, channel, exchange, message);
            }
            Event::Answered(exchange, answer) => {
                if !self.sessions.answered(exchange) {
                    return;
                }
                match answer {
                    Ok(message) => self.nms.handle_response(now, exchange, message),
                    Err(reason) => self.nms.handle_exchange_failed(now, exchange, &reason),
                }
            }
            Event::Ended { channel, .. } => {
                if self.sessions.remove(channel) {
                    self.nms.handle_disconnected(now, channel);
                }
            }
            // Nobody reads DATAGRAMs of these connections.
            Event::Datagram(..) => {}
        }
    }

    fn device_changed(&mut self, device: &DeviceRecord) {
        let now = Instant::now();
        if device.revoked_at.is_some() {
            self.nms.handle_revoked(now, &device.fqdn);
        } else {
            self.nms.handle_enrolled(&device.fqdn);
        }
        self.act();
        // Also the one whose name another device has taken over.
        for (channel, reason) in self.sessions.changed(now, device) {
            self.sessions.close(channel, reason);
            self.nms.handle_disconnected(now, channel);
            if device.revoked_at.is_none() {
                self.nms.handle_replaced(now, &device.fqdn);
            }
        }
    }

    /// Looks where the next devices are, and whether they may still be here. Returns how long until it is
    /// time for others.
    fn look(&mut self) -> Duration {
        let (channels, pause) = self.sessions.due();
        let now = Instant::now();
        for (channel, remote) in self.sessions.all_moved(&channels) {
            self.nms.handle_moved(now, channel, remote);
        }
        for channel in self.sessions.close_expired(unix_now(), &channels) {
            self.nms.handle_disconnected(now, channel);
        }
        pause
    }

    fn act(&mut self) {
        self.act_after(None);
    }

    /// After one has come: if it is closed at once, it is not let in.
    fn act_after(&mut self, newcomer: Option<Channel>) {
        while let Some(action) = self.nms.poll_action() {
            match action {
                Action::Respond { exchange, mut message } => {
                    if let Message::RegistrationResponse(response) = &mut message {
                        response.time = unix_now();
                    }
                    self.sessions.respond(exchange, message);
                }
                Action::Request { channel, exchange, message } => {
                    self.sessions.request(channel, exchange, message);
                }
                Action::CancelRequest { exchange } => self.sessions.cancel(exchange),
                Action::Close { channel, code, reason } if newcomer == Some(channel) => {
                    self.sessions.refuse(channel, code, &reason);
                }
                Action::Close { channel, code, reason } => self.sessions.close_as(channel, code, &reason),
                Action::Doubled { channel } => self.sessions.doubled(channel),
            }
        }
    }

    /// By which of our addresses a device reached us: two different ones tell its NAT's behaviour. Behind a
    /// port forwarding it is the public address of the family; where the kernel tells none, likewise.
    fn server_address(&self, channel: Channel, remote: SocketAddr) -> SocketAddr {
        let public = self.public.iter().find(|public| public.is_ipv4() == remote.is_ipv4());
        match (self.sessions.local_ip(channel), public) {
            (Some(ip), Some(public)) if self.public.iter().all(|p| p.ip() != ip) => *public,
            (Some(ip), Some(public)) => SocketAddr::new(ip, public.port()),
            (Some(ip), None) => SocketAddr::new(ip, crate::config::DEFAULT_PORT),
            (None, Some(public)) => *public,
            (None, None) => SocketAddr::new(remote.ip(), crate::config::DEFAULT_PORT),
        }
    }
}

/// What the configuration says of the overlay.
fn facts(config: &Config) -> Facts {
    let named = |service: &ServiceAddresses| (config.service_fqdn(&service.name), service.addresses.clone());
    let relays = config.relays.iter().map(named).map(|(name, addresses)| Relay { name, addresses });
    let standbys = config.standbys.iter().map(named).map(|(name, addresses)| Standby { name, addresses });
    Facts { relays: relays.collect(), standbys: standbys.collect(), access: config.access.clone() }
}

/// What a standby was told of it before.
pub(super) fn kept_facts(config: &Config) -> Option<Facts> {
    config.register.as_deref().and_then(|register| KeptFacts::beside(register).read())
}

/// The first number of this run's set-ups. A register that cannot be written, as on a full disk, keeps nobody
/// from being let in.
fn first_setup(register: &Arc<Register>, tasks: &mut JoinSet<()>) -> Result<u64, StartError> {
    let now = unix_now();
    let error = match register.reserve_setups(now) {
        Ok(first) => return Ok(first),
        Err(error) => error,
    };
    let first = register.unreserved_setups(now)?.ok_or(StartError::Unreserved(error.to_string()))?;
    tracing::error!(
        %error,
        "the register cannot be written: no device enrols or is revoked. Set-ups' numbers go by the clock alone; is its disk full or read-only?"
    );
    tasks.spawn(reserve_later(Arc::clone(register), first));
    Ok(first)
}

/// Reserves the numbers of this run as soon as the register can be written. Never ends.
async fn reserve_later(register: Arc<Register>, first: u64) {
    loop {
        tokio::time::sleep(RESERVE_AGAIN).await;
        let register = Arc::clone(&register);
        let reserving = tokio::task::spawn_blocking(move || register.reserve_setups_of(first));
        if matches!(reserving.await, Ok(Ok(()))) {
            tracing::info!("the register can be written again");
            return std::future::pending().await;
        }
    }
}

/// Sleeps until then; for ever without a time.
pub(super) async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn numbers_that_could_not_be_reserved_are_as_soon_as_they_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let register = Arc::new(Register::create(&path).unwrap());
        let other = rusqlite::Connection::open(&path).unwrap();
        let full = "CREATE TRIGGER full BEFORE INSERT ON numbers BEGIN SELECT RAISE(ABORT, 'disk full'); END";
        other.execute_batch(full).unwrap();
        let mut tasks = JoinSet::new();
        let first = first_setup(&register, &mut tasks).unwrap();
        tokio::time::sleep(10 * RESERVE_AGAIN).await;
        assert!(register.unreserved_setups(unix_now()).unwrap() >= Some(first), "nothing is reserved");

        other.execute_batch("DROP TRIGGER full").unwrap();
        tokio::time::sleep(2 * RESERVE_AGAIN).await;
        assert_eq!(
            register.unreserved_setups(unix_now()).unwrap(),
            None,
            "a next run goes by what is reserved"
        );
        assert!(tasks.try_join_next().is_none(), "a service that ends ends the cloud");
    }
}
