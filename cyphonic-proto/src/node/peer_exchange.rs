//! The peers' own handshake: TunnelOffer, TunnelRequest and TunnelResponse, and the keys that follow from
//! them.
//!
//! ```text
//!   dialler                                        listener
//!      ── first packets of the handshake ──────────▶  (offers)
//!      ◀────────── its part of the handshake, TunnelOffer ──
//!   knows the listener: installs, answers
//!      ── its certificate, TunnelRequest, data ────▶  knows the dialler: installs
//!      ◀─────────────────────────────── TunnelResponse ──
//! ```
//!
//! So the dialler's tunnel stands one round trip after its first packet. Each end installs only when the
//! handshake is complete as it sees it, with the other's certificate verified: the exporter gives nothing
//! before (RFC 8446 §7.5). Data that overtakes the TunnelRequest is held by the ring
//! ([`Action::ExpectTunnel`]).

use std::net::SocketAddr;
use std::time::Instant;

use super::offers::EarlyRequest;
use super::peers::Retry;
use super::setups::{Setup, Stage};
use super::tunnels::Install;
use super::{Action, Node, PeerVia, ResolveError, Service, Timer};
use crate::id::{PeerConnectionId, SetupId};
use crate::identity::Identity;
use crate::message::{
    Message, Refusal, RefusalCode, TunnelOffer, TunnelRequest, TunnelResponse, endpoint, field,
};
use crate::tunnel::{Exported, Exporter, Suite, TunnelContext, TunnelSecrets};
use crate::{ConnectionId, version};

/// After so many tunnels in a row that a peer took part in setting up and then refused, no other is begun by itself.
const MOST_REFUSALS: u32 = 3;

/// Whoever is at the other end of a connection between peers, once that has proved who it is.
pub struct ProvedPeer<'a> {
    /// The one address that it is at, or comes from.
    pub via: PeerVia,
    /// What its chain, which is verified to the network's root, says of it.
    pub identity: &'a Identity,
    /// The connection's keying material.
    pub exporter: &'a dyn Exporter,
}

/// What both ends agreed on.
pub(super) struct Agreed {
    peer_cid: ConnectionId,
    remote: SocketAddr,
    suite: Suite,
    inner_mtu: u16,
    secrets: TunnelSecrets,
}

impl Node {
    /// The peer that was dialled is at the other end, and this is its TunnelOffer.
    pub fn handle_peer_offer(&mut self, now: Instant, id: SetupId, peer: ProvedPeer<'_>, message: Message) {
        let dialling = |setup: &&Setup| setup.is_dialling();
        let Some(setup) = self.setups.get(&id).filter(dialling) else { return };
        if let Err(refusal) = check_peer(setup, &peer.via, peer.identity, self.config.identity.network_id) {
            let what = refusal.reason;
            return self.setup_failed(now, id, ResolveError::CertificateMismatch { what }, Retry::No);
        }
        let agreed = match message {
            Message::TunnelOffer(offer) => self.agree_as_dialler(setup, &peer, &offer),
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("the peer began with {}", other.name())))
            }
        };
        match agreed {
            Ok(agreed) => self.agreed(now, id, agreed, None),
            Err(refusal) => {
                let what = refusal.reason;
                self.setup_failed(now, id, ResolveError::Protocol { what }, Retry::Later);
            }
        }
    }

    /// The peer's answer to what [`Action::AskPeer`] sent. That none came need not be reported: whether the
    /// tunnel lives shows by itself.
    pub fn handle_peer_response(&mut self, now: Instant, id: SetupId, message: Message) {
        let refused = match message {
            Message::TunnelResponse(response) => self.check_response(id, &response).err(),
            Message::Refusal(refusal) => Some(refusal),
            other => {
                Some(Refusal::new(RefusalCode::Malformed, format!("the peer answered with {}", other.name())))
            }
        };
        let tunnel = self.tunnels.iter().find(|(_, tunnel)| tunnel.setup == id).map(|(tunnel, _)| *tunnel);
        let (Some(refusal), Some(tunnel)) = (refused, tunnel) else { return };
        let Some(tunnel) = self.remove_tunnel(now, tunnel, None) else { return };
        let reason = format!("the peer did not take the tunnel: {}", refusal.shown_reason());
        self.set_up_anew(now, tunnel.peer, ResolveError::PeerRefused { reason });
    }

    /// The first request on a connection that was offered a tunnel. Answered by [`Action::RespondPeer`],
    /// perhaps later.
    pub fn handle_peer_request(
        &mut self,
        now: Instant,
        connection: PeerConnectionId,
        peer: ProvedPeer<'_>,
        message: Message,
    ) {
        let taken = match message {
            Message::TunnelRequest(request) => self.read_request(peer, request),
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("a peer does not answer {}", other.name())))
            }
        };
        match taken {
            Ok(_) if !self.offers.contains_key(&connection) => {
                self.answer_peer(connection, not_directed().into())
            }
            Ok(early) => self.take_request(now, connection, early),
            Err(refusal) => self.refuse_peer(connection, refusal),
        }
    }

    /// Goes on with a request as far as the NMS's word allows.
    pub(super) fn take_request(&mut self, now: Instant, connection: PeerConnectionId, early: EarlyRequest) {
        let id = early.setup;
        let agreed = match self.setups.get(&id) {
            Some(setup) if setup.is_listening() => self.agree_as_listener(setup, &early),
            // Not directed to it yet, perhaps: the NMS's word may travel longer than the peer's.
            None if !self.is_over(id) => {
                if let Some(offer) = self.offers.get_mut(&connection) {
                    offer.early = Some(early);
                }
                return;
            }
            _ => Err(not_directed()),
        };
        match agreed {
            Ok(agreed) => self.agreed(now, id, agreed, Some(connection)),
            Err(refusal) => self.refuse_peer(connection, refusal),
        }
    }

    /// Whether a set-up has come to its end here, with a tunnel or without.
    fn is_over(&self, id: SetupId) -> bool {
        self.ended.contains(&id) || self.tunnels.values().any(|tunnel| tunnel.setup == id)
    }

    /// Both ends know what they need of each other; the tunnel stands as soon as this end's leg does.
    fn agreed(&mut self, now: Instant, id: SetupId, agreed: Agreed, connection: Option<PeerConnectionId>) {
        let offered = connection.and_then(|connection| self.offers.get(&connection)).map(|offer| offer.cid);
        let Some(setup) = self.setups.get_mut(&id) else { return };
        setup.cid = offered.unwrap_or(setup.cid);
        setup.stage = Stage::Agreed(agreed, connection);
        self.complete(now, id);
    }

    /// Installs what both ends agreed on, once nothing is missing.
    pub(super) fn complete(&mut self, now: Instant, id: SetupId) {
        let ready = |setup: &Setup| setup.is_agreed() && setup.is_bound();
        if !self.setups.get(&id).is_some_and(ready) {
            return;
        }
        let Some(mut setup) = self.take_setup(id) else { return };
        let stage = std::mem::replace(&mut setup.stage, Stage::Listening);
        let Stage::Agreed(agreed, connection) = stage else { return };
        if let Some(connection) = connection {
            self.take_offer(connection);
        }
        let Agreed { peer_cid, remote, suite, inner_mtu, secrets } = agreed;
        let TunnelSecrets { send, recv } = secrets;
        let leg = setup.relay.as_ref().and_then(|own| own.leg.as_ref());
        let wire_cid = leg.map_or(peer_cid, |leg| leg.peer_cid);
        let (dial, cid) = (setup.dial, setup.cid);
        let install =
            Install { remote_cid: peer_cid, wire_cid, remote, suite, inner_mtu, send, recv, confirmed: dial };
        self.install(now, setup, install);
        if dial {
            let request = Message::TunnelRequest(self.request_of(id, cid, suite));
            self.act(Action::AskPeer { setup: id, request });
        } else if let Some(connection) = connection {
            let response = TunnelResponse { setup_id: id.to_vec(), protocol_version: version::CURRENT };
            self.answer_peer(connection, Message::TunnelResponse(response));
        }
    }

    fn request_of(&self, id: SetupId, cid: ConnectionId, suite: Suite) -> TunnelRequest {
        TunnelRequest {
            setup_id: id.to_vec(),
            protocol_version: version::CURRENT,
            data_connection_id: cid.as_bytes().to_vec(),
            inner_mtu: u32::from(self.config.inner_mtu),
            suite: suite.number(),
        }
    }

    /// The tunnel was refused after all: others may wait for the peer, and held packets with them. A peer that
    /// refuses whatever it offers is left in peace, until somebody asks for it.
    fn set_up_anew(&mut self, now: Instant, address: std::net::Ipv6Addr, error: ResolveError) {
        let until = now + super::peers::WANTED;
        let stays = self.has_lasting_tunnel(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.last_error = Some(error.clone());
        peer.refusals = peer.refusals.saturating_add(1);
        if !stays && peer.attempt.is_none() && peer.refusals < MOST_REFUSALS {
            peer.wanted = true;
            self.timers.set(Timer::Wanted(address), until);
            self.attempt_failed(now, address, error, Retry::Later);
        }
    }

    fn check_response(&self, id: SetupId, response: &TunnelResponse) -> Result<(), Refusal> {
        version::negotiate(response.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        let same = field::setup_id(&response.setup_id)? == id;
        same.then_some(()).ok_or_else(|| field::BadField("setup_id").into())
    }

    /// Checks what does not depend on the set-up, and has the keying material exported while the connection
    /// lives.
    fn read_request(&self, peer: ProvedPeer<'_>, request: TunnelRequest) -> Result<EarlyRequest, Refusal> {
        version::negotiate(request.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        let setup = field::setup_id(&request.setup_id)?;
        field::data_connection_id(&request.data_connection_id, "data_connection_id")?;
        let suite = self.own_suite(request.suite)?;
        let exported = self.export(setup, &peer, suite, false)?;
        Ok(EarlyRequest { setup, via: peer.via, identity: peer.identity.clone(), request, exported })
    }

    fn agree_as_listener(&self, setup: &Setup, early: &EarlyRequest) -> Result<Agreed, Refusal> {
        if setup.dial {
            return Err(not_directed());
        }
        let EarlyRequest { via, identity, request, exported, .. } = early;
        check_peer(setup, via, identity, self.config.identity.network_id)?;
        let peer_cid = field::data_connection_id(&request.data_connection_id, "data_connection_id")?;
        let suite = self.own_suite(request.suite)?;
        self.agree(setup, via, exported, Terms { peer_cid, suite, inner_mtu: request.inner_mtu })
    }

    fn agree_as_dialler(
        &self,
        setup: &Setup,
        peer: &ProvedPeer<'_>,
        offer: &TunnelOffer,
    ) -> Result<Agreed, Refusal> {
        version::negotiate(offer.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        let peer_cid = field::data_connection_id(&offer.data_connection_id, "data_connection_id")?;
        let suite = Suite::choose(&self.config.suites, &offer.suites)
            .ok_or_else(|| Refusal::new(RefusalCode::Version, "the two ends share no AEAD suite"))?;
        let exported = self.export(setup.id, peer, suite, true)?;
        self.agree(setup, &peer.via, &exported, Terms { peer_cid, suite, inner_mtu: offer.inner_mtu })
    }

    fn agree(
        &self,
        setup: &Setup,
        via: &PeerVia,
        exported: &Exported,
        terms: Terms,
    ) -> Result<Agreed, Refusal> {
        let Terms { peer_cid, suite, inner_mtu } = terms;
        let theirs = u16::try_from(inner_mtu).unwrap_or(u16::MAX);
        if usize::from(theirs) < cyphonic_common::limits::MIN_INNER_MTU {
            return Err(field::BadField("inner_mtu").into());
        }
        let remote = match via {
            PeerVia::Direct(addresses) => addresses.first().copied().map(endpoint::canonical),
            PeerVia::Relay { trs, .. } => self.remote_of(&Service::Trs(trs.clone())),
        };
        let remote = remote.ok_or_else(|| Refusal::new(RefusalCode::Internal, "the path has no address"))?;
        let secrets = exported.secrets(&setup.key);
        let secrets = secrets.map_err(|error| Refusal::new(RefusalCode::Internal, error))?;
        Ok(Agreed { peer_cid, remote, suite, inner_mtu: theirs.min(self.config.inner_mtu), secrets })
    }

    fn export(
        &self,
        setup: SetupId,
        peer: &ProvedPeer<'_>,
        suite: Suite,
        is_dialler: bool,
    ) -> Result<Exported, Refusal> {
        let context = TunnelContext {
            setup,
            own_spki_sha256: &self.config.identity.spki_sha256,
            peer_spki_sha256: &peer.identity.spki_sha256,
            is_dialler,
            suite,
        };
        Exported::new(peer.exporter, &context).map_err(|error| Refusal::new(RefusalCode::Internal, error))
    }

    fn own_suite(&self, number: u32) -> Result<Suite, Refusal> {
        let suite = Suite::from_number(number).filter(|suite| self.config.suites.contains(suite));
        suite.ok_or_else(|| field::BadField("suite").into())
    }
}

/// What the peer's message says.
struct Terms {
    peer_cid: ConnectionId,
    suite: Suite,
    inner_mtu: u32,
}

/// Whether the one at the other end is the peer of the set-up, on the way that was directed.
fn check_peer(
    setup: &Setup,
    via: &PeerVia,
    identity: &Identity,
    network: crate::NetworkId,
) -> Result<(), Refusal> {
    if !identity.is_device(network, &setup.fqdn, setup.peer) {
        let reason = format!("its certificate is of {}, this set-up is with {}", identity.fqdn, setup.fqdn);
        return Err(Refusal::new(RefusalCode::NotAllowed, reason));
    }
    if !setup.came_as_directed(via) {
        return Err(Refusal::new(
            RefusalCode::NotAllowed,
            "the connection did not come by the directed route",
        ));
    }
    Ok(())
}

/// The set-up is not known, and the NMS's word of it did not come in time either.
pub(super) fn not_directed() -> Refusal {
    Refusal::new(RefusalCode::NotAllowed, "this node was not directed to this set-up")
}
