//! This end's leg at the relay.

use std::time::Instant;

use super::{Setup, Stage};
use crate::ConnectionId;
use crate::id::SetupId;
use crate::message::{BindingRequest, Message};
use crate::node::exchanges::Purpose;
use crate::node::peers::Retry;
use crate::node::registration::unexpected;
use crate::node::relay_legs::OwnLeg;
use crate::node::{Node, ResolveError, Service};

impl Node {
    /// The relay is connected: set-ups that waited for it go on.
    pub(in crate::node) fn bind_waiting(&mut self, now: Instant, trs: &str) {
        let waiting = |setup: &&Setup| matches!(setup.stage, Stage::Connecting) && setup.uses(trs);
        for setup in self.setups.values().filter(waiting).map(|setup| setup.id).collect::<Vec<_>>() {
            self.bind(now, setup);
        }
    }

    /// Asks for this end's leg, and goes on without waiting for it.
    pub(super) fn bind(&mut self, now: Instant, id: SetupId) {
        let Some(setup) = self.setups.get(&id) else { return };
        let Some(own) = &setup.relay else { return };
        let service = Service::Trs(own.relay.name.clone());
        let request = BindingRequest {
            setup_id: id.to_vec(),
            peer_fqdn: setup.fqdn.clone(),
            data_connection_id: bytes(setup.cid),
            context: own.context,
        };
        let exchange =
            self.request(now, service, Purpose::Binding { setup: id }, Message::BindingRequest(request));
        if let Some(own) = self.setups.get_mut(&id).and_then(|setup| setup.relay.as_mut()) {
            own.binding = Some(exchange);
        }
        self.meet(now, id);
    }

    pub(in crate::node) fn binding_answered(
        &mut self,
        now: Instant,
        setup: SetupId,
        answer: Result<Message, String>,
    ) {
        let Some(own) = self.setups.get_mut(&setup).and_then(|setup| setup.relay.as_mut()) else { return };
        own.binding = None;
        let leg = match answer {
            Ok(Message::BindingResponse(response)) => {
                OwnLeg::from_wire(&response, own.context).map_err(|bad| format!("BindingResponse: {bad}"))
            }
            other => Err(unexpected("TRS", other)),
        };
        match leg {
            Ok(leg) => self.bound(now, setup, leg),
            Err(reason) => {
                let reason = format!("no leg at the relay: {reason}");
                self.setup_failed(now, setup, ResolveError::PeerRefused { reason }, Retry::Later);
            }
        }
    }

    fn bound(&mut self, now: Instant, id: SetupId, leg: OwnLeg) {
        let Some(own) = self.setups.get_mut(&id).and_then(|setup| setup.relay.as_mut()) else { return };
        own.leg = Some(leg);
        self.confirm(id);
        self.complete(now, id);
    }
}

fn bytes(cid: ConnectionId) -> Vec<u8> {
    cid.as_bytes().to_vec()
}
