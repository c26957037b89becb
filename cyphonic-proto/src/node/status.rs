//! A node's state for people.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::action::{ResolveError, Service};
use super::peers::Peer;
use super::services::Slot;
use super::tunnels::Tunnel;
use super::{Node, PathStatus};
use crate::id::TunnelId;
use crate::message::RouteKind;
use crate::nat::{self, Family, NatFinding};

/// A snapshot of everything a node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node's name.
    pub fqdn: String,
    /// The node's virtual address.
    pub virtual_address: Ipv6Addr,
    /// The overlay's zone.
    pub zone: String,
    /// The node's own addresses.
    pub addresses: Vec<SocketAddr>,
    /// Whether the AS accepted the node in this run.
    pub logged_in: bool,
    /// Whether the NMS accepted the node's present connection.
    pub registered: bool,
    /// Whether the NMS that it turns to is a standby.
    pub is_at_standby: bool,
    /// How long the node's first registration took, from its first word to a service: the paper's start-up
    /// (Fig. 6).
    pub start_up: Option<Duration>,
    /// Whether the network passes no UDP, as far as the node knows: then services are reached by TCP.
    pub udp_blocked: bool,
    /// Every service that the node wants a connection to.
    pub services: Vec<ServiceStatus>,
    /// What servers saw: (server, observed).
    pub observations: Vec<(SocketAddr, SocketAddr)>,
    /// The NAT on IPv4.
    pub nat_v4: NatFinding,
    /// The NAT on IPv6.
    pub nat_v6: NatFinding,
    /// The relays that the NMS named, nearest first.
    pub relays: Vec<String>,
    /// Every peer that the node has or seeks a tunnel with, or failed to reach.
    pub peers: Vec<PeerStatus>,
}

/// A connection to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Which.
    pub service: Service,
    /// Its name in its certificate; empty while that is not known.
    pub name: String,
    /// How it stands.
    pub state: ServiceState,
    /// The address connected to.
    pub remote: Option<SocketAddr>,
    /// Since when it is in this state.
    pub since: Instant,
    /// Failures in a row.
    pub failures: u32,
    /// The last failure.
    pub last_error: Option<String>,
    /// The TCP address that the connection goes through, where UDP does not reach the service; `remote` is
    /// then a local address that stands for it.
    pub through: Option<SocketAddr>,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// Not needed now.
    Unwanted,
    /// Being opened.
    Connecting,
    /// Open.
    Connected,
    /// Failed; to be opened again at this time.
    Waiting {
        /// When.
        until: Instant,
    },
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name, as far as it is known.
    pub fqdn: Option<String>,
    /// Its virtual address.
    pub address: Ipv6Addr,
    /// How it stands.
    pub state: PeerState,
    /// The present tunnel's route.
    pub route: Option<RouteKind>,
    /// Why this route and no better one.
    pub reason: String,
    /// Where packets go.
    pub remote: Option<SocketAddr>,
    /// The TRS, where relayed.
    pub relay: Option<String>,
    /// Its tunnels, newest first.
    pub tunnels: Vec<TunnelStatus>,
    /// Since when it is in this state.
    pub since: Instant,
    /// Why the last set-up failed.
    pub last_error: Option<String>,
    /// Routes that failed and are not tried again for a while.
    pub failed_routes: Vec<RouteKind>,
}

/// How a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// A set-up is under way, and no tunnel stands.
    Connecting,
    /// A tunnel stands.
    Connected,
    /// No tunnel, and none is wanted.
    Idle,
    /// The last set-up found it not connected.
    Offline,
    /// The last set-up failed otherwise.
    Failed,
}

/// A tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The tunnel.
    pub id: TunnelId,
    /// How its packets travel now.
    pub route: RouteKind,
    /// The path they take.
    pub path: PathStatus,
    /// Whether this end asked for it.
    pub initiator: bool,
    /// When it was installed.
    pub since: Instant,
    /// When it will be taken down because a newer one replaced it.
    pub retires_at: Option<Instant>,
    /// Challenges without an answer.
    pub unanswered: u32,
    /// When the peer was heard last.
    pub heard: Option<Instant>,
    /// Whether its relay is gone and waited for.
    pub relay_away: bool,
    /// What its path carries: bytes of outer IP packet.
    pub path_mtu: u32,
    /// The largest inner packet that applications are to send.
    pub inner_mtu: u16,
    /// Whether the search for both is over.
    pub path_known: bool,
}

impl Node {
    /// A snapshot for people.
    pub fn status(&self) -> NodeStatus {
        let finding =
            |family| nat::find(family, &self.registration.addresses, &self.registration.observations);
        NodeStatus {
            fqdn: self.config.identity.fqdn.clone(),
            virtual_address: self.own,
            zone: self.config.zone.clone(),
            addresses: self.registration.addresses.clone(),
            logged_in: self.registration.logged_in,
            udp_blocked: self.registration.known.udp_blocked,
            registered: self.registration.registered,
            is_at_standby: self.is_at_standby(),
            start_up: self.registration.start_up,
            services: self.services.iter().map(|(service, slot)| service_status(service, slot)).collect(),
            observations: self.registration.observations.clone(),
            nat_v4: finding(Family::V4),
            nat_v6: finding(Family::V6),
            relays: self.registration.known.relays.iter().map(|relay| relay.name.clone()).collect(),
            peers: self.peers.iter().map(|(address, peer)| self.peer_status(*address, peer)).collect(),
        }
    }

    fn peer_status(&self, address: Ipv6Addr, peer: &Peer) -> PeerStatus {
        let current = peer.tunnels.first().and_then(|id| self.tunnels.get(id));
        let state = if current.is_some() {
            PeerState::Connected
        } else if peer.is_sought() {
            PeerState::Connecting
        } else {
            match peer.last_error {
                Some(ResolveError::Offline { .. }) => PeerState::Offline,
                Some(_) => PeerState::Failed,
                None => PeerState::Idle,
            }
        };
        PeerStatus {
            fqdn: peer.fqdn.clone(),
            address,
            state,
            route: current.map(Tunnel::route),
            reason: current.map(|tunnel| tunnel.reason.clone()).unwrap_or_default(),
            remote: current.map(|tunnel| tunnel.remote),
            relay: current.filter(|tunnel| tunnel.paths.is_relayed()).and_then(|tunnel| tunnel.relay.clone()),
            tunnels: peer.tunnels.iter().filter_map(|id| self.tunnel_status(*id)).collect(),
            since: peer.since,
            last_error: peer.last_error.as_ref().map(ToString::to_string),
            failed_routes: peer.failures.routes().collect(),
        }
    }

    /// Whether the host has IPv4; without any network, it is taken to be as it was.
    fn has_ipv4(&self) -> bool {
        let addresses = &self.registration.addresses;
        addresses.is_empty() || addresses.iter().any(SocketAddr::is_ipv4)
    }

    fn tunnel_status(&self, id: TunnelId) -> Option<TunnelStatus> {
        let tunnel = self.tunnels.get(&id)?;
        Some(TunnelStatus {
            id,
            route: tunnel.route(),
            path: tunnel.path_status(),
            initiator: tunnel.initiator,
            since: tunnel.since,
            retires_at: tunnel.retires_at,
            unanswered: tunnel.challenge.map_or(0, |challenge| challenge.sent),
            relay_away: tunnel.is_away(),
            heard: tunnel.last_rx,
            path_mtu: tunnel.outer_mtu(self.has_ipv4()),
            inner_mtu: tunnel.mtu.inner,
            path_known: tunnel.search.is_complete(),
        })
    }
}

fn service_status(service: &Service, slot: &Slot) -> ServiceStatus {
    ServiceStatus {
        service: service.clone(),
        name: slot.name.clone(),
        state: slot.state,
        remote: slot.remote,
        since: slot.since,
        failures: slot.backoff.failures(),
        last_error: slot.last_error.clone(),
        through: slot.way.through(),
    }
}
