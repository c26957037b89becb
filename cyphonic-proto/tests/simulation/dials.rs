//! Handshakes between devices, in flights of one packet each.

use std::time::Duration;

use cyphonic_proto::identity::sha256;
use cyphonic_proto::node::{PeerVia, ProvedPeer, Service};
use cyphonic_proto::tunnel::{ExportError, Exporter};
use cyphonic_proto::{Identity, Message, PeerConnectionId, SetupId, relayed};

use crate::world::{Event, Flight, Packet, World, identity};

/// One dial of a peer: the network knows what both ends said.
pub(crate) struct Dial {
    pub(crate) device: &'static str,
    pub(crate) life: u32,
    pub(crate) setup: SetupId,
    pub(crate) via: PeerVia,
    /// Who listens, in which of its lives, and how the dialler's packets come there.
    pub(crate) listener: Option<(&'static str, u32, PeerVia)>,
    pub(crate) offer: Option<Vec<u8>>,
    /// The offer has reached the dialler.
    pub(crate) offered: bool,
    pub(crate) request: Option<Vec<u8>>,
    /// The request has reached the listener.
    pub(crate) asked: bool,
    pub(crate) answer: Option<Vec<u8>>,
    pub(crate) claims: Option<Identity>,
    pub(crate) tries: u32,
}

impl Dial {
    pub(crate) fn setup(&self) -> SetupId {
        self.setup
    }

    pub(crate) fn via(&self) -> PeerVia {
        self.via.clone()
    }
}

/// Both ends' TLS exporter.
pub(crate) struct Shared(pub(crate) u64);

impl Exporter for Shared {
    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExportError> {
        Ok(sha256(&[&self.0.to_be_bytes(), label, context].concat()))
    }
}

impl World {
    pub(crate) fn dial(&mut self, device: &'static str, setup: SetupId, via: PeerVia) {
        let (id, life) = (self.fresh(), self.hosts[device].life);
        let dial = Dial {
            device,
            life,
            setup,
            via,
            listener: None,
            offer: None,
            offered: false,
            request: None,
            asked: false,
            answer: None,
            claims: None,
            tries: 0,
        };
        self.dials.insert(id, dial);
        self.transmit_dial(id);
    }

    pub(crate) fn dial_of(&self, device: &str, setup: SetupId) -> Option<u64> {
        let life = self.hosts[device].life;
        let fits = |dial: &Dial| dial.device == device && dial.life == life && dial.setup == setup;
        self.dials.iter().find(|(_, dial)| fits(dial)).map(|(id, _)| *id)
    }

    pub(crate) fn ask_peer(&mut self, device: &'static str, setup: SetupId, request: &Message) {
        let (id, bytes) = (self.dial_of(device, setup).unwrap(), self.pack(request));
        let dial = self.dials.get_mut(&id).unwrap();
        (dial.request, dial.tries) = (Some(bytes), 0);
        self.transmit_dial(id);
    }

    pub(crate) fn cancel_dial(&mut self, device: &'static str, setup: SetupId) {
        let Some(id) = self.dial_of(device, setup) else { return };
        self.end_dial(id);
    }

    pub(crate) fn offer_peer(&mut self, connection: PeerConnectionId, offer: &Message) {
        let bytes = self.pack(offer);
        self.dials.get_mut(&connection.0).unwrap().offer = Some(bytes);
    }

    pub(crate) fn close_peer(&mut self, connection: PeerConnectionId) {
        // The dialler's own time is up too, or soon will be.
        if let Some(dial) = self.dials.get_mut(&connection.0) {
            dial.offer = None;
        }
    }

    pub(crate) fn respond_peer(&mut self, connection: PeerConnectionId, message: &Message) {
        let bytes = self.pack(message);
        if let Some(dial) = self.dials.get_mut(&connection.0) {
            assert!(dial.answer.replace(bytes).is_none(), "one request, two answers");
            self.transmit_to_dialler(Flight::Response, connection.0);
        }
    }

    pub(crate) fn end_dial(&mut self, id: u64) {
        let Some(Dial { listener: Some((device, life, _)), .. }) = self.dials.remove(&id) else { return };
        let delay = self.reliable_delay();
        self.schedule(delay, Event::PeerLeft { device, life, dial: id });
    }

    /// Sends, or repeats, what the dialler has to say.
    pub(crate) fn transmit_dial(&mut self, id: u64) {
        let Some(dial) = self.dials.get_mut(&id) else { return };
        let flight = match (&dial.request, dial.offered) {
            (Some(_), _) => Flight::Request,
            (None, false) => Flight::Hello,
            // The node has not made up its mind.
            (None, true) => return,
        };
        dial.tries += 1;
        let (device, life, via, tries) = (dial.device, dial.life, dial.via.clone(), dial.tries);
        if self.hosts[device].life != life || tries > 8 {
            return self.end_dial(id);
        }
        self.transmit(device, &via, flight, id);
        self.schedule(Duration::from_millis(100) * tries, Event::Retransmit { dial: id });
    }

    pub(crate) fn transmit_to_dialler(&mut self, flight: Flight, id: u64) {
        if let Some((device, _, via)) = self.dials.get(&id).and_then(|dial| dial.listener.clone()) {
            self.transmit(device, &via, flight, id);
        }
    }

    pub(crate) fn transmit(&mut self, device: &'static str, via: &PeerVia, flight: Flight, id: u64) {
        match via {
            PeerVia::Direct(remotes) => {
                remotes.iter().for_each(|to| self.send(device, *to, Packet::Peers(flight, id)))
            }
            PeerVia::Relay { trs, context } => {
                if let Some(channel) = self.channel(device, &Service::Trs(trs.clone())) {
                    let packet = [&[flight as u8], id.to_be_bytes().as_slice()].concat();
                    let bytes = relayed::encode(*context, &packet).unwrap().to_vec();
                    self.unreliable(&Event::FrameToTrs { channel, bytes });
                }
            }
        }
    }

    /// A packet of a handshake between peers has arrived.
    pub(crate) fn flight(&mut self, name: &'static str, flight: Flight, id: u64, via: PeerVia) {
        match flight {
            Flight::Hello => self.hear_hello(name, id, via),
            Flight::Offer => self.hear_offer(name, id, via),
            Flight::Request => self.hear_request(name, id, via),
            Flight::Response => self.hear_response(name, id),
        }
    }

    pub(crate) fn hear_hello(&mut self, name: &'static str, id: u64, via: PeerVia) {
        let life = self.hosts[name].life;
        let Some(dial) = self.dials.get_mut(&id) else { return };
        let known = dial.listener.get_or_insert_with(|| (name, life, via.clone()));
        if known.0 != name || known.1 != life {
            return;
        }
        if dial.offer.is_none() {
            let connection = PeerConnectionId(id);
            self.with_node(name, life, |node, now| node.handle_peer_arrived(now, connection, via));
        }
        match self.dials.get_mut(&id) {
            Some(dial) if dial.offer.is_some() => self.transmit_to_dialler(Flight::Offer, id),
            Some(dial) => dial.listener = None,
            None => {}
        }
    }

    pub(crate) fn hear_offer(&mut self, name: &'static str, id: u64, via: PeerVia) {
        let Some(dial) = self.dials.get_mut(&id).filter(|dial| dial.device == name && !dial.offered) else {
            return;
        };
        let (Some((listener, ..)), Some(offer)) = (&dial.listener, &dial.offer) else { return };
        let (identity, offer) = (identity(listener), offer.clone());
        dial.offered = true;
        let (life, setup, message) = (dial.life, dial.setup, Self::unpack(&offer));
        self.with_node(name, life, |node, now| {
            let peer = ProvedPeer { via, identity: &identity, exporter: &Shared(id) };
            node.handle_peer_offer(now, setup, peer, message);
        });
    }

    pub(crate) fn hear_request(&mut self, name: &'static str, id: u64, via: PeerVia) {
        let Some(dial) = self.dials.get_mut(&id) else { return };
        let (Some((listener, life, _)), Some(request)) = (dial.listener.clone(), dial.request.clone()) else {
            return;
        };
        if listener != name {
            return;
        }
        if std::mem::replace(&mut dial.asked, true) {
            if dial.answer.is_some() {
                self.transmit_to_dialler(Flight::Response, id);
            }
            return;
        }
        let claims = dial.claims.clone().unwrap_or_else(|| identity(dial.device));
        let message = Self::unpack(&request);
        self.with_node(name, life, |node, now| {
            let peer = ProvedPeer { via, identity: &claims, exporter: &Shared(id) };
            node.handle_peer_request(now, PeerConnectionId(id), peer, message);
        });
    }

    pub(crate) fn hear_response(&mut self, name: &'static str, id: u64) {
        let Some(dial) = self.dials.get(&id).filter(|dial| dial.device == name) else { return };
        let Some(answer) = dial.answer.clone() else { return };
        let (life, setup, message) = (dial.life, dial.setup, Self::unpack(&answer));
        self.with_node(name, life, |node, now| node.handle_peer_response(now, setup, message));
        self.end_dial(id);
    }
}
