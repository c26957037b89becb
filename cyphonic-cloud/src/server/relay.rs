//! The TRS: one task owns its machine; the port's worker forwards by the map that it fills.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_dataplane::relay::{Leg, RelayMap, RelayMapError, RelayRate, Resets};
use cyphonic_dataplane::udp::{Transmit, UdpPort};
use cyphonic_proto::message::Message;
use cyphonic_proto::stun;
use cyphonic_proto::trs::{Action, NodePath, Trs, TrsConfig, TrsKeys, TrsLimits, WallClock};
use cyphonic_proto::{Channel, ConnectionId, close};
use cyphonic_transport::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::clock::unix_now;
use super::management::sleep_until;
use super::port::Port;
use super::sessions::{Entrance, Event, Owes, Sessions};
use super::watch::Watch;
use super::whereabouts::CALL_AGAIN;
use super::{StartError, kept};
use crate::config::Config;
use crate::pki;
use crate::register::{DeviceRecord, Register};

/// How often the worker's counters tell which legs are in use: well below the machine's idle limit.
const LOOK_FOR_ACTIVITY: Duration = Duration::from_secs(15);

/// So many legs are looked at in one go, a millisecond or two, and then requests have their turn for as long as that
/// takes several times: a million take some seconds.
const LEGS_AT_ONCE: usize = 2_000;
const BETWEEN_LEGS: Duration = Duration::from_millis(10);

/// Where connections to the TRS enter.
#[derive(Clone)]
pub(super) struct RelayServer {
    entrance: Entrance,
}

impl RelayServer {
    pub(super) fn start(
        config: &Config,
        register: Option<Arc<Register>>,
        watch: Option<&Watch>,
        port: &Port,
        keys: TrsKeys,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, StartError> {
        let now = Instant::now();
        let map: Arc<dyn RelayMap> = port.relay();
        let tokens = keys.clone();
        let resets = Resets::new(move |cid| tokens.reset_token(cid));
        let limits = TrsLimits { legs: config.relay.bindings, ..TrsLimits::default() };
        let network_id = config.network.id;
        let trs_config = TrsConfig { network_id, keys, clock: WallClock::new(now, unix_now()), limits };
        let mut trs = Trs::new(trs_config, pki::random()?);
        // What an earlier process left in the kernel goes on forwarding until the nodes claim it.
        trs.handle_adopted(now, map.adopted().into_iter().map(|(cid, _)| cid));
        if let Some(directory) = config.runtime_directory.clone() {
            tasks.spawn(kept::keep(directory, network_id, port.relayed()));
        }
        let (entrance, events) = Entrance::new(register);
        let sessions = Sessions::new(&entrance, true);
        // Without a register at hand nobody tells of changes: a channel that stays silent.
        let (silent, nothing) = mpsc::channel(1);
        let changes = watch.map_or(nothing, Watch::subscribe);
        let rate = config.relay.rate();
        let control = RelayControl {
            trs,
            sessions,
            map,
            rate,
            legs: HashMap::new(),
            unlooked: Vec::new(),
            resets,
            port: port.udp(),
            called: VecDeque::new(),
            to_call: BTreeSet::new(),
        };
        tasks.spawn(control.run(events, changes, silent));
        Ok(Self { entrance })
    }

    /// A connection was accepted. The look at the register must not hold up other connections.
    pub(super) async fn connected(&self, connection: Connection) {
        let entrance = self.entrance.clone();
        tokio::spawn(async move { entrance.connected(connection).await });
    }
}

/// What is in the map, and when it was last seen in use.
struct Entry {
    real_cid: ConnectionId,
    last_seen: Option<Instant>,
}

struct RelayControl {
    trs: Trs,
    sessions: Sessions,
    map: Arc<dyn RelayMap>,
    /// How much each leg may carry.
    rate: RelayRate,
    legs: HashMap<ConnectionId, Entry>,
    /// Those that the present round has yet to come to.
    unlooked: Vec<ConnectionId>,
    /// For nodes that do not know yet that their legs are gone.
    resets: Resets,
    port: Arc<UdpPort>,
    /// Who was called where it is seen, and when to call again, if it has not answered.
    called: VecDeque<(tokio::time::Instant, Channel)>,
    /// Those in it.
    to_call: BTreeSet<Channel>,
}

impl RelayControl {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut changes: mpsc::Receiver<DeviceRecord>,
        _silent: mpsc::Sender<DeviceRecord>,
    ) {
        let mut look_at = tokio::time::Instant::now();
        let mut activity_at = tokio::time::Instant::now() + LOOK_FOR_ACTIVITY;
        // It may have been set since this process began, and a request may be there before the first look.
        self.trs.handle_clock(Instant::now(), unix_now());
        loop {
            let timeout = self.trs.poll_timeout().map(tokio::time::Instant::from_std);
            let call_at = self.called.front().map(|(at, _)| *at);
            tokio::select! {
                Some(event) = events.recv() => self.handle(event),
                Some(device) = changes.recv() => self.device_changed(&device),
                () = sleep_until(timeout) => {
                    let now = Instant::now();
                    // What the worker has seen may keep a leg that would now expire.
                    self.look_for_activity(now, &self.trs.idle(now));
                    self.trs.handle_timeout(now);
                }
                () = sleep_until(call_at) => self.call_again(),
                () = tokio::time::sleep_until(look_at) => look_at = tokio::time::Instant::now() + self.look(),
                () = tokio::time::sleep_until(activity_at) => {
                    activity_at = tokio::time::Instant::now() + self.look_for_some_activity();
                }
            }
            self.act();
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Connected(connection, admission) => self.sessions.insert(now, connection, admission),
            Event::Request(channel, message, responder) => {
                self.meet(now, channel);
                if self.follow(now, channel) {
                    if let Message::ObservationRequest(request) = &message {
                        self.prove(now, channel, &request.proof);
                    }
                    let exchange = self.sessions.expect_answer(responder);
                    self.trs.handle_request(now, channel, exchange, message);
                }
            }
            Event::Datagram(channel, datagram) => {
                // It may overtake the first request: streams and DATAGRAMs are not ordered.
                self.meet(now, channel);
                if self.follow(now, channel) {
                    self.trs.handle_datagram(now, channel, &datagram);
                }
            }
            Event::Ended { channel, closed } => {
                if self.sessions.remove(channel) {
                    match closed {
                        true => self.trs.handle_disconnected(now, channel),
                        false => self.trs.handle_lost(now, channel),
                    }
                }
            }
            // A TRS asks nothing else.
            Event::Answered(..) => {}
        }
    }

    /// Tells the machine of a device that speaks for the first time.
    fn meet(&mut self, now: Instant, channel: Channel) {
        if let Some((identity, whereabouts)) = self.sessions.introduce(channel) {
            let remote = whereabouts.proved();
            tracing::debug!(fqdn = identity.fqdn, %remote, "a device connected to the TRS");
            let path = self.path(channel, remote);
            self.trs.handle_connected(now, channel, identity, path);
        }
    }

    /// Looks whether the device is seen elsewhere; false if the device is gone.
    fn follow(&mut self, now: Instant, channel: Channel) -> bool {
        if let Some(remote) = self.sessions.moved(channel) {
            self.seen_elsewhere(now, channel, remote);
        }
        self.sessions.contains(channel)
    }

    /// Legs follow when the device proves that it is there: until then whoever repeats its packets from
    /// another's address would turn what it receives on that one.
    fn seen_elsewhere(&mut self, now: Instant, channel: Channel, remote: SocketAddr) {
        self.trs.handle_seen(channel, remote);
        if self.call(now, channel) && self.to_call.insert(channel) {
            self.called.push_back((tokio::time::Instant::now() + CALL_AGAIN, channel));
        }
    }

    /// Calls a device where it is seen, if it is to be called: only who receives there can answer, wherever
    /// its connection takes it to be. True if it was called.
    fn call(&mut self, now: Instant, channel: Channel) -> bool {
        // Without random numbers nobody is called by one that can be guessed.
        let draw = || pki::random::<12>().ok();
        let Some((remote, number)) = self.sessions.call(now, channel, draw) else { return false };
        let call = stun::Message::Indication(number).encode();
        let transmit = Transmit { src_ip: self.sessions.local_ip(channel), ..Transmit::new(remote, &call) };
        if let Err(error) = self.port.send(&transmit) {
            tracing::debug!(%error, "a device could not be called where it is seen");
        }
        true
    }

    /// Calls those again that have not answered. Who does not for long is to dial anew, which proves where it is;
    /// its legs wait for it a while.
    fn call_again(&mut self) {
        let (now, at) = (Instant::now(), tokio::time::Instant::now());
        while let Some((_, channel)) = self.called.pop_front_if(|(due, _)| *due <= at) {
            self.to_call.remove(&channel);
            match self.sessions.owes(now, channel) {
                None => {}
                Some(Owes::Still) => {
                    self.call(now, channel);
                    self.to_call.insert(channel);
                    self.called.push_back((at + CALL_AGAIN, channel));
                }
                Some(Owes::TooLong) => {
                    self.sessions.close_as(
                        channel,
                        close::UNAVAILABLE,
                        "where it is seen it does not answer",
                    );
                    self.trs.handle_lost(now, channel);
                }
            }
        }
    }

    /// A device that was called answers: its legs follow.
    fn prove(&mut self, now: Instant, channel: Channel, number: &[u8]) {
        if let Some(remote) = self.sessions.prove(channel, number) {
            let path = self.path(channel, remote);
            tracing::debug!(%remote, "a device has moved: its legs follow");
            self.trs.handle_moved(now, channel, path);
        }
    }

    /// Where a device is, and by which of our addresses it reaches us: its NAT lets in no other.
    fn path(&self, channel: Channel, remote: SocketAddr) -> NodePath {
        NodePath { remote, local: self.sessions.local_ip(channel) }
    }

    fn device_changed(&mut self, device: &DeviceRecord) {
        let now = Instant::now();
        if device.revoked_at.is_some() {
            self.trs.handle_revoked(now, &device.fqdn);
            self.act();
        }
        for (channel, reason) in self.sessions.changed(now, device) {
            self.sessions.close(channel, reason);
            self.trs.handle_disconnected(now, channel);
        }
    }

    /// Looks where the next devices are, whether they may still be here, and what time it is. Returns how
    /// long until it is time for others.
    fn look(&mut self) -> Duration {
        let (channels, pause) = self.sessions.due();
        let (now, unix) = (Instant::now(), unix_now());
        self.trs.handle_clock(now, unix);
        for (channel, remote) in self.sessions.all_moved(&channels) {
            self.seen_elsewhere(now, channel, remote);
        }
        for channel in self.sessions.close_expired(unix, &channels) {
            // Its legs wait for it a while.
            self.trs.handle_lost(now, channel);
        }
        pause
    }

    /// Goes round the legs, some at a time. Returns how long until it is time for others.
    fn look_for_some_activity(&mut self) -> Duration {
        if self.unlooked.is_empty() {
            self.unlooked.extend(self.legs.keys());
        }
        let rest = self.unlooked.len().saturating_sub(LEGS_AT_ONCE);
        let some = self.unlooked.split_off(rest);
        self.look_for_activity(Instant::now(), &some);
        if self.unlooked.is_empty() { LOOK_FOR_ACTIVITY } else { BETWEEN_LEGS }
    }

    fn look_for_activity(&mut self, now: Instant, cids: &[ConnectionId]) {
        for cid in cids {
            let Some(entry) = self.legs.get_mut(cid) else { continue };
            let last_seen = self.map.stats(*cid).and_then(|stats| stats.last_seen);
            if let Some(seen) = last_seen.filter(|_| last_seen != entry.last_seen) {
                entry.last_seen = last_seen;
                self.trs.handle_leg_activity(now, *cid, seen);
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.trs.poll_action() {
            match action {
                Action::Respond { exchange, message } => self.sessions.respond(exchange, message),
                Action::Insert { cid, from, to, real_cid } => self.insert(cid, from, to, real_cid),
                Action::Remove { cid } => self.remove(cid),
                Action::Reset { cid, to } => self.reset(cid, to),
                Action::Forward { channel, datagram } => self.sessions.send_datagram(channel, datagram),
                Action::Close { channel, code, reason } => self.sessions.close_as(channel, code, &reason),
            }
        }
    }

    fn insert(&mut self, cid: ConnectionId, from: NodePath, to: NodePath, real_cid: ConnectionId) {
        let leg = Leg {
            from: from.remote,
            local: from.local,
            to: to.remote,
            source: to.local,
            real_cid,
            rate: self.rate,
        };
        let inserted = match self.legs.get(&cid) {
            Some(entry) if entry.real_cid == real_cid => self.map.replace(cid, leg),
            Some(_) => {
                self.map.remove(cid);
                self.insert_new(cid, leg)
            }
            None => self.insert_new(cid, leg),
        };
        if let Err(error) = inserted {
            // The nodes find their tunnel dead and set up another; the map is as it was.
            tracing::warn!(%error, "a leg could not be bound");
        }
    }

    fn insert_new(&mut self, cid: ConnectionId, leg: Leg) -> Result<(), RelayMapError> {
        self.map.insert(cid, leg)?;
        self.legs.insert(cid, Entry { real_cid: leg.real_cid, last_seen: None });
        Ok(())
    }

    /// Calls a node back. Lost on its way, it is called again when the other end asks again.
    fn reset(&self, cid: ConnectionId, to: NodePath) {
        let Some(reset) = self.resets.unasked(cid) else { return };
        let transmit = Transmit { src_ip: to.local, ..Transmit::new(to.remote, reset.as_bytes()) };
        if let Err(error) = self.port.send(&transmit) {
            tracing::debug!(%error, "a node could not be called back");
        }
    }

    fn remove(&mut self, cid: ConnectionId) {
        self.legs.remove(&cid);
        if let Some(stats) = self.map.remove(cid) {
            tracing::debug!(packets = stats.packets, bytes = stats.bytes, "a leg was unbound");
        }
    }
}
