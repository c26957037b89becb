//! A RouteDirection, checked: what of it a set-up is made of.

use std::net::SocketAddr;
use std::time::Duration;

use super::{OwnRelay, Request, Setup, Stage};
use crate::message::{Refusal, RefusalCode, RouteDirection, RouteKind, bounded, endpoint, field};
use crate::node::{Node, Relay, config};
use crate::{address, name, relayed};

impl Node {
    /// Checks a RouteDirection. Who the peer is follows from its name alone, so the NMS cannot give one
    /// device's name another's address.
    pub(super) fn setup_of(&mut self, mut direction: RouteDirection) -> Result<Setup, Refusal> {
        let key = direction.take_tunnel_key().ok_or(field::BadField("tunnel_key"))?;
        let id = field::setup_id(&direction.setup_id)?;
        if self.setups.contains_key(&id) {
            return Err(Refusal::new(RefusalCode::Malformed, "this set-up is in progress already"));
        }
        if self.tunnels.values().any(|tunnel| tunnel.setup == id) {
            return Err(Refusal::new(RefusalCode::Malformed, "this set-up is complete already"));
        }
        if self.setups.len() >= config::MAX_SETUPS {
            let wait = Duration::from_secs(1);
            return Err(Refusal::retry(
                RefusalCode::TooMany,
                "too many set-ups in progress at this node",
                wait,
            ));
        }
        let fqdn = name::canonical_in_zone(&direction.peer_fqdn, &self.config.zone)
            .map_err(|_| field::BadField("peer_fqdn"))?;
        let peer = field::virtual_address(&direction.peer_virtual_address, "peer_virtual_address")?;
        let expected = address::virtual_address(self.prefix, self.config.identity.network_id, &fqdn);
        if peer != expected || peer == self.own {
            return Err(field::BadField("peer_virtual_address").into());
        }
        let route = self.route_of(&direction)?;
        Ok(Setup {
            id,
            peer,
            fqdn,
            kind: direction.kind(),
            reason: bounded(&direction.reason),
            initiator: direction.initiator,
            dial: direction.dial,
            key,
            endpoints: route.endpoints,
            relay: route.relay.map(|relay| OwnRelay {
                relay,
                context: self.fresh_context(),
                binding: None,
                leg: None,
            }),
            cid: self.fresh_cid(),
            stage: Stage::Connecting,
            request: Request::None,
        })
    }

    fn route_of(&self, direction: &RouteDirection) -> Result<RouteFields, Refusal> {
        let initiator_dials = match direction.kind() {
            RouteKind::Direct | RouteKind::HolePunch | RouteKind::Relay => true,
            RouteKind::ResponderInitiated => false,
            RouteKind::Unspecified => return Err(field::BadField("kind").into()),
        };
        if direction.dial != (direction.initiator == initiator_dials) {
            return Err(field::BadField("dial").into());
        }
        let endpoints = endpoint::peers_from_wire(&direction.peer_endpoints, self.prefix);
        if direction.kind() == RouteKind::Relay {
            let relay = direction.relay.as_ref().and_then(Relay::from_wire);
            return Ok(RouteFields { endpoints, relay: Some(relay.ok_or(field::BadField("relay"))?) });
        }
        if direction.dial && endpoints.is_empty() {
            return Err(field::BadField("peer_endpoints").into());
        }
        Ok(RouteFields { endpoints, relay: None })
    }

    /// A number for a leg's DATAGRAMs that none of this node's legs has, at whatever relay.
    fn fresh_context(&mut self) -> u64 {
        loop {
            let context = self.next_context;
            self.next_context =
                if context == relayed::MAX_CONTEXT { relayed::MIN_CONTEXT } else { context + 1 };
            let setups = self.setups.values().filter_map(|setup| setup.relay.as_ref());
            let legs = self.tunnels.values().filter_map(|tunnel| tunnel.leg.as_ref());
            let mut used = setups.map(|own| own.context).chain(legs.map(|leg| leg.context));
            if !used.any(|used| used == context) {
                return context;
            }
        }
    }
}

struct RouteFields {
    endpoints: Vec<SocketAddr>,
    relay: Option<Relay>,
}
