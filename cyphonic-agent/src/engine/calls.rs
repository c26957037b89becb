//! STUN messages at the node's own port: a TRS's calls are the engine's, all others those of the look at the
//! network that is under way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cyphonic_dataplane::udp::StunSink;
use cyphonic_proto::stun::Message;
use tokio::sync::mpsc;

use super::input::Input;
use crate::netcheck::OwnPort;

/// See the module.
pub(super) struct Calls {
    pub(super) looks: Arc<OwnPort>,
    pub(super) inputs: mpsc::Sender<Input>,
}

impl StunSink for Calls {
    fn deliver(&self, from: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]) {
        match Message::decode(datagram) {
            // One that finds the queue full is lost: there will be another.
            Ok(Message::Indication(number)) => drop(self.inputs.try_send(Input::Called { from, number })),
            _ => self.looks.deliver(from, local_ip, datagram),
        }
    }
}
