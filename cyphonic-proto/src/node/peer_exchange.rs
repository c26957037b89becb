//! The peers' own handshake: TunnelRequest and TunnelResponse, and the keys that follow from them.

use super::{
    Action, Node, PeerVia, ResolveError, Service,
    peers::Retry,
    setup::{Setup, Stage},
    tunnels::Install,
};
use crate::{
    ConnectionId,
    id::{PeerConnectionId, SetupId},
    identity::Identity,
    message::{Message, Refusal, RefusalCode, TunnelRequest, TunnelResponse, field},
    tunnel::{self, Exporter, Suite, TunnelContext, TunnelSecrets},
    version,
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// When a peer that was too early should ask again.
const NOT_YET: Duration = Duration::from_millis(100);

/// What both ends agreed on.
struct Agreed {
    peer_cid: ConnectionId,
    wire_cid: ConnectionId,
    remote: SocketAddr,
    suite: Suite,
    inner_mtu: u16,
    secrets: TunnelSecrets,
}

impl Node {
    /// A peer dialled us.
    pub(super) fn peer_asked(
        &mut self,
        now: Instant,
        connection: PeerConnectionId,
        via: &PeerVia,
        identity: &Identity,
        message: Message,
        exporter: &dyn Exporter,
    ) {
        let answer = match message {
            Message::TunnelRequest(request) => self.accept_request(now, via, identity, &request, exporter),
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("a peer does not answer {}", other.name())))
            }
        };
        let message = answer.map_or_else(Message::from, Message::TunnelResponse);
        self.act(Action::RespondPeer { connection, message });
    }

    /// The peer we dialled answered.
    pub(super) fn peer_answered(
        &mut self,
        now: Instant,
        id: SetupId,
        via: &PeerVia,
        identity: &Identity,
        message: Message,
        exporter: &dyn Exporter,
    ) {
        let dialling = |setup: &&mut Setup| setup.stage == Stage::Dialling;
        let Some(setup) = self.setups.get_mut(&id).filter(dialling) else { return };
        let agreed = match (check_peer(setup, via, identity, self.config.identity.network_id), message) {
            (Err(refusal), _) => {
                // The dial is over for the peer, not for the shell: it is told to give up with the set-up.
                let what = refusal.reason;
                return self.setup_failed(now, id, ResolveError::CertificateMismatch { what }, Retry::No);
            }
            (Ok(()), Message::Refusal(refusal)) => {
                setup.stage = Stage::Redialling;
                return self.peer_refused(now, id, &refusal);
            }
            (Ok(()), Message::TunnelResponse(response)) => {
                setup.stage = Stage::Redialling;
                self.agree_as_dialler(id, via, identity, &response, exporter)
            }
            (Ok(()), other) => {
                setup.stage = Stage::Redialling;
                Err(Refusal::new(RefusalCode::Malformed, format!("the peer answered with {}", other.name())))
            }
        };
        match agreed {
            Ok(agreed) => self.finish(now, id, agreed, true),
            Err(refusal) => {
                let what = refusal.reason;
                self.setup_failed(now, id, ResolveError::Protocol { what }, Retry::Later);
            }
        }
    }

    fn peer_refused(&mut self, now: Instant, id: SetupId, refusal: &Refusal) {
        if refusal.retry_after().is_some() {
            // Its own RouteDirection has not arrived yet.
            return self.redial_later(now, id);
        }
        let reason = refusal.shown_reason();
        self.setup_failed(now, id, ResolveError::PeerRefused { reason }, Retry::Later);
    }

    /// Nothing changes unless every check passes.
    fn accept_request(
        &mut self,
        now: Instant,
        via: &PeerVia,
        identity: &Identity,
        request: &TunnelRequest,
        exporter: &dyn Exporter,
    ) -> Result<TunnelResponse, Refusal> {
        let spoken = version::negotiate(request.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        let id = field::setup_id(&request.setup_id)?;
        let listening = |setup: &&Setup| setup.stage == Stage::Listening && !setup.dial;
        let setup = self.setups.get(&id).filter(listening).ok_or_else(not_directed)?;
        check_peer(setup, via, identity, self.config.identity.network_id)?;
        let agreed = self.agree_as_listener(setup, via, identity, request, exporter)?;
        let response = TunnelResponse {
            setup_id: id.to_vec(),
            protocol_version: spoken,
            data_connection_id: setup.cid.as_bytes().to_vec(),
            inner_mtu: u32::from(agreed.inner_mtu),
            suite: agreed.suite.number(),
            relay_connection_id: setup
                .own_leg
                .as_ref()
                .map(|leg| leg.cid.as_bytes().to_vec())
                .unwrap_or_default(),
        };
        self.finish(now, id, agreed, false);
        Ok(response)
    }

    fn agree_as_listener(
        &self,
        setup: &Setup,
        via: &PeerVia,
        identity: &Identity,
        request: &TunnelRequest,
        exporter: &dyn Exporter,
    ) -> Result<Agreed, Refusal> {
        let peer_cid = field::data_connection_id(&request.data_connection_id, "data_connection_id")?;
        let peer_leg = match setup.relay {
            Some(_) => Some(field::data_connection_id(&request.relay_connection_id, "relay_connection_id")?),
            None => None,
        };
        let suite = Suite::choose(&request.suites, &self.config.suites)
            .ok_or_else(|| Refusal::new(RefusalCode::Version, "the two ends share no AEAD suite"))?;
        self.agree(
            setup,
            via,
            identity,
            exporter,
            Terms { peer_cid, peer_leg, suite, inner_mtu: request.inner_mtu },
        )
    }

    fn agree_as_dialler(
        &self,
        id: SetupId,
        via: &PeerVia,
        identity: &Identity,
        response: &TunnelResponse,
        exporter: &dyn Exporter,
    ) -> Result<Agreed, Refusal> {
        let setup = self.setups.get(&id).ok_or_else(not_directed)?;
        version::negotiate(response.protocol_version)
            .map_err(|mismatch| Refusal::new(RefusalCode::Version, mismatch))?;
        if field::setup_id(&response.setup_id)? != id {
            return Err(field::BadField("setup_id").into());
        }
        let leg = setup.peer_leg.map(|leg| leg.as_bytes().to_vec()).unwrap_or_default();
        if setup.relay.is_some() && response.relay_connection_id != leg {
            return Err(field::BadField("relay_connection_id").into());
        }
        let peer_cid = field::data_connection_id(&response.data_connection_id, "data_connection_id")?;
        let suite = Suite::from_number(response.suite).filter(|suite| self.config.suites.contains(suite));
        let suite = suite.ok_or(field::BadField("suite"))?;
        let terms = Terms { peer_cid, peer_leg: setup.peer_leg, suite, inner_mtu: response.inner_mtu };
        self.agree(setup, via, identity, exporter, terms)
    }

    fn agree(
        &self,
        setup: &Setup,
        via: &PeerVia,
        identity: &Identity,
        exporter: &dyn Exporter,
        terms: Terms,
    ) -> Result<Agreed, Refusal> {
        let Terms { peer_cid, peer_leg, suite, inner_mtu } = terms;
        let theirs = u16::try_from(inner_mtu).unwrap_or(u16::MAX);
        if usize::from(theirs) < cyphonic_common::limits::MIN_INNER_MTU {
            return Err(field::BadField("inner_mtu").into());
        }
        let remote = match via {
            PeerVia::Direct(addresses) => addresses.first().copied().map(crate::message::endpoint::canonical),
            PeerVia::Relay { trs, .. } => self.remote_of(&Service::Trs(trs.clone())),
        };
        let remote = remote.ok_or_else(|| Refusal::new(RefusalCode::Internal, "the path has no address"))?;
        let context = TunnelContext {
            setup: setup.id,
            tunnel_key: &setup.key,
            own_spki_sha256: &self.config.identity.spki_sha256,
            peer_spki_sha256: &identity.spki_sha256,
            is_dialler: setup.dial,
            suite,
        };
        let secrets = tunnel::derive(exporter, &context);
        let secrets = secrets.map_err(|error| Refusal::new(RefusalCode::Internal, error))?;
        let inner_mtu = theirs.min(self.config.inner_mtu);
        Ok(Agreed { peer_cid, wire_cid: peer_leg.unwrap_or(peer_cid), remote, suite, inner_mtu, secrets })
    }

    fn finish(&mut self, now: Instant, id: SetupId, agreed: Agreed, confirmed: bool) {
        let Some(setup) = self.drop_setup(id, "complete") else { return };
        let Agreed { peer_cid, wire_cid, remote, suite, inner_mtu, secrets } = agreed;
        let TunnelSecrets { send, recv } = secrets;
        let install =
            Install { remote_cid: peer_cid, wire_cid, remote, suite, inner_mtu, send, recv, confirmed };
        self.install(now, setup, install);
    }
}

/// What the peer's message says.
struct Terms {
    peer_cid: ConnectionId,
    peer_leg: Option<ConnectionId>,
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

/// The set-up is not known: not yet perhaps, as the NMS's word to this end may travel longer than the peer's.
fn not_directed() -> Refusal {
    Refusal::retry(RefusalCode::NotAllowed, "this node was not directed to this set-up", NOT_YET)
}
