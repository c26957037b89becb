//! A device at the TRS.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use cyphonic_cloud::server::unix_now;
use cyphonic_common::ConnectionId;
use cyphonic_proto::message::{BindingRequest, BindingResponse, Message};
use cyphonic_proto::{Role, relayed};
use cyphonic_transport::Connection;

use crate::client::{Client, enrol};
use crate::common::Overlay;

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const SETUP: [u8; 16] = [9; 16];

/// See the module.
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) connection: Connection,
    pub(crate) fqdn: String,
    pub(crate) cid: ConnectionId,
}

impl Node {
    pub(crate) async fn join(overlay: &Overlay, name: &str, random: u8) -> Self {
        Self::join_by(overlay, name, random, overlay.address).await
    }

    /// One that reaches the TRS at this address.
    pub(crate) async fn join_by(overlay: &Overlay, name: &str, random: u8, trs: SocketAddr) -> Self {
        let member = enrol(overlay, &overlay.token(name, unix_now())).await;
        let client = Client::open();
        let connection = client.connect_at(overlay, &member, Role::Trs, "trs1", trs).await.unwrap();
        let cid = ConnectionId::from_random_data([random; 8]);
        Self { client, connection, fqdn: member.answer.fqdn, cid }
    }

    /// What prefixes the DATAGRAMs of its leg.
    pub(crate) fn context(&self) -> u64 {
        relayed::MIN_CONTEXT + u64::from(self.cid.as_bytes()[7])
    }

    pub(crate) async fn ask(&self, peer: &str, setup: [u8; 16], context: u64) -> Message {
        let request = BindingRequest {
            setup_id: setup.to_vec(),
            peer_fqdn: peer.to_owned(),
            data_connection_id: self.cid.as_bytes().to_vec(),
            context,
        };
        self.connection.open_exchange(&Message::BindingRequest(request)).await.unwrap()
    }

    pub(crate) async fn bind(&self, peer: &Self) -> BindingResponse {
        match self.ask(&peer.fqdn, SETUP, self.context()).await {
            Message::BindingResponse(response) => response,
            other => panic!("not bound: {other:?}"),
        }
    }
}

/// A tunnel data packet in form; the relay cannot read more of it.
pub(crate) fn data_packet(wire_cid: &[u8], content: &[u8]) -> Vec<u8> {
    [&[0x43][..], wire_cid, &[0, 0, 0, 1], content].concat()
}

/// Sends until it arrives: loopback may lose a datagram when the machine is busy.
pub(crate) fn deliver(from: &Client, overlay: &Overlay, packet: &[u8], at: &UdpSocket) -> Vec<u8> {
    let deadline = Instant::now() + SOON;
    let mut buffer = [0; 2048];
    loop {
        from.send(overlay.address, packet);
        if let Ok(length) = at.recv(&mut buffer) {
            return buffer[..length].to_vec();
        }
        assert!(Instant::now() < deadline, "nothing arrived");
    }
}
