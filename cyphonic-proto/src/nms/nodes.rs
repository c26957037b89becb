//! The connected nodes and what they told of their networks.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use cyphonic_common::Account;

use super::doubles::Runs;
use super::{Action, Nms};
use crate::address::Prefix;
use crate::id::Channel;
use crate::identity::{Identity, Role};
use crate::message::{
    MAX_ASKED_FOR, Message, PeerPlace, Refusal, RefusalCode, RegistrationRequest, RegistrationResponse,
    RelayLatency, endpoint, field,
};
use crate::netcheck::Findings;
use crate::route::{NodeNetwork, candidates};
use crate::standby::Standby;
use crate::{close, name, nat, version};

/// A connected node.
pub(super) struct Node {
    pub(super) fqdn: String,
    pub(super) address: Ipv6Addr,
    /// Our address and the node's, as this connection shows them.
    pub(super) seen: (SocketAddr, SocketAddr),
    pub(super) registration: Option<Registration>,
    /// Set-ups in progress that it takes part in, in either role.
    pub(super) setups: usize,
    pub(super) asked: Asked,
    runs: Runs,
}

/// What a device has asked for lately, by the time since the NMS started.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked {
    /// By DirectionRequests.
    pub(super) directions: Account,
    /// By RegistrationRequests: who asks for many peers may still tell that it has moved.
    registrations: Account,
}

/// What devices had asked for that have left, until all of it has come back: it is theirs again when they
/// connect anew.
#[derive(Default)]
pub(super) struct Left {
    asked: BTreeMap<String, (Instant, Asked)>,
    /// The same, the first to be forgotten first.
    until: VecDeque<(Instant, String)>,
}

impl Left {
    fn keep(&mut self, now: Instant, until: Instant, fqdn: &str, asked: Asked) {
        while let Some((at, fqdn)) = self.until.pop_front_if(|(at, _)| *at <= now) {
            // It may have left again since.
            if self.asked.get(&fqdn).is_some_and(|(until, _)| *until == at) {
                self.asked.remove(&fqdn);
            }
        }
        self.asked.insert(fqdn.to_owned(), (until, asked));
        self.until.push_back((until, fqdn.to_owned()));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.asked.len()
    }

    fn take(&mut self, fqdn: &str) -> Asked {
        self.asked.remove(fqdn).map(|(_, asked)| asked).unwrap_or_default()
    }
}

/// What a node told.
#[derive(Clone, Default)]
pub(super) struct Registration {
    /// Where the node was seen when it told this.
    told_from: Option<SocketAddr>,
    addresses: Vec<SocketAddr>,
    observations: Vec<(SocketAddr, SocketAddr)>,
    udp_blocked: bool,
    findings: Findings,
    relay_latencies: BTreeMap<String, Duration>,
    pinned_relay: Option<String>,
    /// Whom it looks for since a move, and until when that counts.
    peers: Vec<Ipv6Addr>,
    peers_until: Option<Instant>,
}

impl Registration {
    /// What is told, as far as it can be believed: of relays only those that this network has.
    fn from_wire(
        told_from: SocketAddr,
        request: &RegistrationRequest,
        overlay: Prefix,
        relays: &[crate::node::Relay],
    ) -> Self {
        let latency = |told: &RelayLatency| {
            let known = relays.iter().find(|relay| relay.name == told.name)?;
            Some((known.name.clone(), Duration::from_micros(u64::from(told.rtt_us))))
        };
        let findings = request.findings.as_ref().map(|told| Findings::from_wire(told, overlay));
        Self {
            told_from: Some(told_from),
            addresses: endpoint::peers_from_wire(&request.addresses, overlay),
            observations: endpoint::observations_from_wire(&request.observations, overlay),
            udp_blocked: request.udp_blocked,
            findings: findings.unwrap_or_default(),
            relay_latencies: request.relay_latencies.iter().take(MAX_LATENCIES).filter_map(latency).collect(),
            pinned_relay: name::canonical(&request.pinned_relay).ok(),
            peers: request
                .peers
                .iter()
                .take(MAX_ASKED_FOR)
                .filter_map(|peer| field::virtual_address(peer, "peers").ok())
                .collect(),
            peers_until: None,
        }
    }
}

/// Who has moved looks for others that move at the same time. By then both know, or have another tunnel.
const LOOKS_FOR: Duration = Duration::from_secs(10);

/// Most relays whose latencies are taken on.
const MAX_LATENCIES: usize = 64;

impl Node {
    /// What is known of the node's network, what this connection shows included.
    pub(super) fn network(&self, overlay: Prefix) -> NodeNetwork {
        let Registration {
            told_from,
            addresses,
            mut observations,
            udp_blocked,
            findings,
            relay_latencies,
            pinned_relay,
            peers: _,
            peers_until: _,
        } = self.registration.clone().unwrap_or_default();
        let outdated = |seen| told_from.is_some_and(|told| nat::is_outdated(told, self.seen.1, seen));
        observations.retain(|(server, seen)| *server != self.seen.0 && !outdated(*seen));
        if endpoint::is_candidate(self.seen.1.ip(), overlay) {
            observations.insert(0, self.seen);
        }
        let fqdn = self.fqdn.clone();
        NodeNetwork { fqdn, addresses, observations, udp_blocked, findings, relay_latencies, pinned_relay }
    }
}

impl Nms {
    pub(super) fn admit(
        &mut self,
        now: Instant,
        channel: Channel,
        identity: Identity,
        seen: (SocketAddr, SocketAddr),
    ) {
        let address = match self.welcome(&identity) {
            Ok(address) => address,
            Err((code, reason)) => {
                self.actions.push_back(Action::Close { channel, code, reason: reason.into() });
                return;
            }
        };
        let fqdn = identity.fqdn;
        let mut runs = Runs::default();
        if let Some(old) = self.channels.insert(fqdn.clone(), channel) {
            runs = self.nodes.get(&old).map_or(runs, |old| old.runs.displaced());
            self.forget(now, old, "replaced by a newer connection of the same device");
            let reason = "replaced by a newer connection of the same device".into();
            self.actions.push_back(Action::Close { channel: old, code: close::NOT_ALLOWED, reason });
        }
        self.names.insert(address, fqdn.clone());
        let asked = self.left.take(&fqdn);
        let node = Node { fqdn, address, seen, registration: None, setups: 0, asked, runs };
        self.nodes.insert(channel, node);
        self.counters.connected += 1;
    }

    pub(super) fn register(
        &mut self,
        now: Instant,
        channel: Channel,
        request: &RegistrationRequest,
    ) -> Result<Message, Refusal> {
        let spoken = version::negotiate(request.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        self.charge(now, channel, |asked| &mut asked.registrations)?;
        let overlay = self.config.prefix;
        let node = self.nodes.get_mut(&channel).ok_or_else(not_connected)?;
        let mut registration = Registration::from_wire(node.seen.1, request, overlay, &self.config.relays);
        registration.peers_until = Some(now + LOOKS_FOR);
        let is_new = node.registration.replace(registration).is_none();
        let (address, observed, fqdn) = (node.address, node.seen.1, node.fqdn.clone());
        if node.runs.tell(request.run) {
            self.actions.push_back(Action::Doubled { channel });
        }
        self.counters.registrations += 1;
        self.responder_moved(channel);
        if is_new {
            self.tell_newcomer_of_revocations(now, channel);
        }
        Ok(Message::RegistrationResponse(RegistrationResponse {
            virtual_address: address.octets().to_vec(),
            prefix: overlay.address().octets().to_vec(),
            prefix_length: u32::from(Prefix::LENGTH),
            zone: self.config.zone.clone(),
            relays: self.config.relays.iter().map(crate::node::Relay::to_wire).collect(),
            observed: Some(endpoint::to_wire(observed)),
            protocol_version: spoken,
            // The shell's to tell: this machine has no such clock.
            time: 0,
            access: self.access_at(&fqdn),
            standbys: self.config.standbys.iter().map(Standby::to_wire).collect(),
            peers: self.peer_places(now, channel),
        }))
    }

    /// Of the peers that a node has named after a move: where those are that have named it in turn. Two that move at
    /// once cannot tell each other, and nobody learns where somebody is who has not asked for him.
    fn peer_places(&self, now: Instant, channel: Channel) -> Vec<PeerPlace> {
        let asked = |node: &Node, other: &Node| {
            node.registration.as_ref().is_some_and(|told| {
                told.peers.contains(&other.address) && told.peers_until.is_some_and(|until| now < until)
            })
        };
        let Some(node) = self.nodes.get(&channel) else { return Vec::new() };
        let named = node.registration.iter().flat_map(|told| &told.peers);
        let connected = named.filter_map(|peer| self.nodes.get(self.channels.get(self.names.get(peer)?)?));
        let mutual = connected.filter(|peer| peer.address != node.address && asked(peer, node));
        mutual
            .map(|peer| PeerPlace {
                virtual_address: peer.address.octets().to_vec(),
                endpoints: endpoint::list_to_wire(&candidates(&peer.network(self.config.prefix))),
            })
            .collect()
    }

    /// Takes one request from the node's allowance of its kind.
    pub(super) fn charge(
        &mut self,
        now: Instant,
        channel: Channel,
        of_kind: fn(&mut Asked) -> &mut Account,
    ) -> Result<(), Refusal> {
        let timing = &self.config.timing;
        let (most, rate) = (timing.burst, timing.per_second);
        let node = self.nodes.get_mut(&channel).ok_or_else(not_connected)?;
        let every = Duration::from_secs(1) / rate.max(1);
        let since = now.saturating_duration_since(self.started);
        if !of_kind(&mut node.asked).spend(since, every, every * most) {
            let reason = format!("more than {rate} requests per second");
            return Err(Refusal::retry(RefusalCode::TooMany, reason, Duration::from_secs(1)));
        }
        Ok(())
    }

    /// Drops a connection's state, ends its set-ups, and returns its name.
    pub(super) fn forget(&mut self, now: Instant, channel: Channel, why: &str) -> Option<String> {
        let node = self.nodes.remove(&channel)?;
        let timing = &self.config.timing;
        let until = now + Duration::from_secs(1) / timing.per_second.max(1) * timing.burst;
        self.left.keep(now, until, &node.fqdn, node.asked);
        let concerned = |pending: &&super::Pending| pending.concerns(channel);
        let setups: Vec<_> = self.pending.values().filter(concerned).map(|pending| pending.setup).collect();
        for setup in setups {
            self.participant_left(setup, channel, why);
        }
        Some(node.fqdn)
    }

    /// Its address, or with which code and why it is not let in.
    fn welcome(&self, identity: &Identity) -> Result<Ipv6Addr, (u32, &'static str)> {
        let not_allowed = |reason| (close::NOT_ALLOWED, reason);
        let ours = identity.role == Role::Device && identity.network_id == self.config.network_id;
        let address =
            identity.virtual_address.filter(|address| ours && self.config.prefix.contains(*address));
        let address = address.ok_or(not_allowed("only devices of this network may connect"))?;
        if !name::is_below(&identity.fqdn, &self.config.zone) {
            return Err(not_allowed("the certificate's name is not in this network's zone"));
        }
        if self.is_enrolled(&identity.fqdn) == Some(false) {
            return Err(not_allowed(
                "the device is not in the register: it was revoked, or never enrolled here",
            ));
        }
        let full =
            self.nodes.len() >= self.config.timing.nodes && !self.channels.contains_key(&identity.fqdn);
        if full {
            return Err((close::UNAVAILABLE, "the NMS has all the nodes it can take"));
        }
        Ok(address)
    }
}

pub(super) fn not_connected() -> Refusal {
    Refusal::new(RefusalCode::NotAllowed, "the connection was replaced or closed")
}
