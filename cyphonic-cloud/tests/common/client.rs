//! A device's side of the network: a real port, a real endpoint.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cyphonic_common::ConnectionId;
use cyphonic_dataplane::relay::{Leg, RelayMap, UserspaceRelay};
use cyphonic_dataplane::udp::{Transmit, UdpPort};
use cyphonic_proto::message::{EnrolResponse, Message, RegistrationRequest, RegistrationResponse, endpoint};
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_proto::{NetworkId, Role, version};
use cyphonic_transport::{ClientTls, Clock, Connection, DialError, ServerTls, Transport, enrol as enrolment};

use crate::common::{Device, Overlay, enrolled};

/// A port with its receiving thread.
pub struct Client {
    pub transport: Transport,
    pub relay: Arc<UserspaceRelay>,
    udp: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Client {
    pub fn open() -> Self {
        Self::start(None)
    }

    /// One that also accepts connections.
    pub fn serving(tls: ServerTls, network: NetworkId) -> Self {
        Self::start(Some((tls, network)))
    }

    fn start(server: Option<(ServerTls, NetworkId)>) -> Self {
        let udp = Arc::new(UdpPort::bind(0).unwrap());
        let transport = Transport::start(Arc::clone(&udp), server).unwrap();
        let (mux, stop) = (transport.mux(), Arc::new(AtomicBool::new(false)));
        let (port, stopped) = (Arc::clone(&udp), Arc::clone(&stop));
        let relay = Arc::new(UserspaceRelay::new(4));
        let working = Arc::clone(&relay);
        let worker = std::thread::spawn(move || working.run(port, mux, stopped).unwrap());
        Self { transport, relay, udp, stop, worker: Some(worker) }
    }

    pub fn port(&self) -> u16 {
        self.udp.local_port()
    }

    /// Sends tunnel data from the port that all connections use.
    pub fn send(&self, to: SocketAddr, packet: &[u8]) {
        self.udp.send(&Transmit::new(to, packet)).unwrap();
    }

    /// Gives what arrives with this connection ID from `from` to a plain socket.
    pub fn capture(&self, cid: ConnectionId, from: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let leg = Leg::new(from, socket.local_addr().unwrap(), cid);
        self.relay.insert(cid, leg).unwrap();
        socket
    }

    pub async fn connect(
        &self,
        overlay: &Overlay,
        member: &Member,
        role: Role,
    ) -> Result<Connection, DialError> {
        let name = match role {
            Role::As => "as",
            Role::Nms => "nms",
            Role::Trs => "trs1",
            Role::Device => unreachable!("a service is dialled"),
        };
        self.connect_at(overlay, member, role, name, overlay.address).await
    }

    /// The same to a service of this short name at another address.
    pub async fn connect_at(
        &self,
        overlay: &Overlay,
        member: &Member,
        role: Role,
        name: &str,
        address: SocketAddr,
    ) -> Result<Connection, DialError> {
        let name = format!("{name}.svc.cyphonic.internal");
        let tls = ClientTls::new(member.device.credentials(&member.answer, overlay));
        self.transport.connect_service(&tls, &[address], &name, role).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.udp.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// An enrolled device.
pub struct Member {
    pub device: Device,
    pub answer: EnrolResponse,
}

/// Enrols over the network.
pub async fn enrol(overlay: &Overlay, token: &EnrolmentToken) -> Member {
    let device = Device::new();
    let connection =
        enrolment::connect(&[overlay.address], *token.root_sha256(), &Clock::new(0)).await.unwrap();
    let answer = connection.open_exchange(&device.enrol_request(token)).await.unwrap();
    connection.close(0, "done");
    Member { answer: enrolled(answer), device }
}

/// Registers at an NMS.
pub async fn register(connection: &Connection) -> Result<RegistrationResponse, String> {
    // Somewhere: what comes from loopback is told to nobody.
    let addresses = vec![endpoint::to_wire(([203, 0, 113, 7], 7000).into())];
    let request = RegistrationRequest { protocol_version: version::CURRENT, addresses, ..Default::default() };
    match connection.open_exchange(&Message::RegistrationRequest(request)).await {
        Ok(Message::RegistrationResponse(response)) => Ok(response),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

pub fn login_request() -> Message {
    Message::LoginRequest(cyphonic_proto::message::LoginRequest {
        protocol_version: version::CURRENT,
        software_version: "0.1.0".into(),
    })
}
