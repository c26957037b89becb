//! A certificate authority in memory, and hosts on loopback.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cyphonic_dataplane::udp::{RecvBatch, SignallingSink, UdpPort};
use cyphonic_proto::address::{self, Prefix};
use cyphonic_proto::identity::{Identity, NetworkId, Role};
use cyphonic_transport::{Credentials, ServerTls, Transport};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The overlay's prefix in these tests.
pub(crate) const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 1, 0, 0, 0, 0, 0);

/// Root and intermediate of one overlay.
pub(crate) struct Authority {
    pub(crate) network: NetworkId,
    pub(crate) root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(network: u8) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = ca_params().self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(ca_params(), root_key);
        let key = KeyPair::generate().unwrap();
        let intermediate = ca_params().signed_by(&key, &root_issuer).unwrap();
        Self {
            network: NetworkId([network; 16]),
            root: root.der().clone(),
            intermediate: intermediate.der().clone(),
            issuer: Issuer::new(ca_params(), key),
        }
    }

    /// Keys and certificate of one holder.
    pub(crate) fn issue(&self, role: Role, fqdn: &str) -> Credentials {
        self.issue_with(role, fqdn, |_| {})
    }

    /// The same, of which something more is said.
    pub(crate) fn issue_with(
        &self,
        role: Role,
        fqdn: &str,
        say: impl FnOnce(&mut CertificateParams),
    ) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![fqdn.to_owned()]).unwrap();
        say(&mut params);
        let uri = Ia5String::try_from(Identity::uri(self.network, role)).unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        if role == Role::Device {
            let address = address::virtual_address(Prefix::of(PREFIX), self.network, fqdn);
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V6(address)));
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Credentials {
            chain: vec![leaf.der().clone(), self.intermediate.clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            root: self.root.clone(),
            network: self.network,
        }
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A process on loopback: a port, its receive loop, and QUIC over it.
pub(crate) struct Host {
    pub(crate) transport: Arc<Transport>,
    pub(crate) address: SocketAddr,
    port: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Host {
    pub(crate) fn start(server: Option<(ServerTls, NetworkId)>) -> Self {
        let port = Arc::new(UdpPort::bind_to("127.0.0.1:0".parse().unwrap()).unwrap());
        let transport = Arc::new(Transport::start(port.clone(), server).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = std::thread::spawn({
            let (port, mux, stop) = (port.clone(), transport.mux(), stop.clone());
            move || receive(&port, mux.as_ref(), &stop)
        });
        Self { transport, address: port.local_addr(), port, stop, worker: Some(worker) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }
}

fn receive(port: &UdpPort, sink: &dyn SignallingSink, stop: &AtomicBool) {
    let mut batch = RecvBatch::new(8);
    while !stop.load(Ordering::Relaxed) {
        port.wait(Some(Duration::from_millis(200))).unwrap();
        while port.recv_batch(&mut batch).is_ok() {
            for m in batch.messages_mut() {
                sink.deliver(m.from, m.local_ip, m.ecn, m.payload, m.stride);
            }
        }
    }
}

/// Forwards datagrams on loopback between one client and a server that can be exchanged behind its back, as a
/// process is that crashed and was started again.
pub(crate) struct Exchange {
    pub(crate) address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
}

impl Exchange {
    pub(crate) fn to(server: SocketAddr) -> Self {
        Self::narrow(server, usize::MAX)
    }

    /// One that loses datagrams of more than `carries` bytes.
    pub(crate) fn narrow(server: SocketAddr, carries: usize) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, server) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(server)));
        let current = Arc::downgrade(&server);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        std::thread::spawn(move || {
            let (mut buffer, mut client, mut servers) = ([0; 2048], None, Vec::new());
            while let Some(current) = current.upgrade().map(|server| *server.lock().unwrap()) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if !servers.contains(&current) {
                    servers.push(current);
                }
                let to = match from {
                    // The old one is dead.
                    from if from == current => client,
                    from if servers.contains(&from) => None,
                    from => {
                        client = Some(from);
                        Some(current)
                    }
                };
                if let Some(to) = to.filter(|_| length <= carries) {
                    socket.send_to(&buffer[..length], to).unwrap();
                }
            }
        });
        Self { address, server }
    }

    pub(crate) fn switch(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }
}
