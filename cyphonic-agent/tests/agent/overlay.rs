//! An overlay on loopback: the engine with a real port and transport against a real cloud. Only the ring is
//! left out: no packet is sent here.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cyphonic_agent::control::report::{InterfaceReport, RingReport, ServiceKind, ServiceState};
use cyphonic_agent::control::{Backend, StatusReport};
use cyphonic_agent::engine::{
    self, Access, EngineHandle, EngineParts, Inbox, Kernel, KernelFigures, RenewalParts, Surroundings,
};
use cyphonic_agent::state::{DeviceIdentity, StateDir};
use cyphonic_cloud::authentication::{ManagementService, Service};
use cyphonic_cloud::config::Config;
use cyphonic_cloud::installation::{self, Plan};
use cyphonic_cloud::pki::{self, Authority};
use cyphonic_cloud::register::{NewToken, Register};
use cyphonic_common::ConnectionId;
use cyphonic_dataplane::relay::UserspaceRelay;
use cyphonic_dataplane::ring::{
    Control, EncapRing, Path as RingPath, Permissions, RingCounters, RingError, RingKind, TunnelId,
    TunnelInstall, TunnelStats,
};
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::identity::{Identity, Role, sha256};
use cyphonic_proto::message::{EnrolRequest, RenewRequest};
use cyphonic_proto::node::{NodeConfig, Timing};
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_proto::tunnel::Suite;
use cyphonic_proto::{Message, NetworkId, alpn, version};
use cyphonic_transport::{Clock, Credentials, ServerTls, Transport};
use rcgen::CertificateParams;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::oneshot;

pub(crate) const ZONE: &str = "cyphonic.internal";
pub(crate) const DAY: u64 = 86_400;

/// Generous: the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An overlay whose services are on one loopback port.
pub(crate) struct Overlay {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) address: SocketAddr,
}

impl Overlay {
    pub(crate) fn found() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let plan = Plan {
            directory: dir.path().to_owned(),
            zone: ZONE.into(),
            listen: vec![address],
            public: vec![address],
            relays: Vec::new(),
        };
        let installed = installation::init(&plan, now()).unwrap();
        Self { dir, config: Config::load(&installed.config).unwrap(), address }
    }

    pub(crate) fn authority(&self, name: &str) -> Authority {
        let file = |end: &str| self.dir.path().join("pki").join(format!("{name}.{end}"));
        Authority::load(&file("crt"), &file("key")).unwrap()
    }

    pub(crate) fn register(&self) -> Register {
        Register::open(self.config.register.as_deref().unwrap()).unwrap()
    }

    pub(crate) fn token(&self, name: &str, at: u64, replaces: bool) -> EnrolmentToken {
        let token = EnrolmentToken::new(pki::random().unwrap(), sha256(&self.root()));
        let (secret_hash, name) = (token.secret_hash(), format!("{name}.{ZONE}"));
        let new = NewToken { secret_hash, name, expires_at: at + 3600, replaces, uses: 1 };
        self.register().create_token(&new, at).unwrap();
        token
    }

    /// A token for so many devices, of names like this.
    pub(crate) fn token_for_many(&self, pattern: &str, uses: u32) -> EnrolmentToken {
        let token = EnrolmentToken::new(pki::random().unwrap(), sha256(&self.root()));
        let (secret_hash, name) = (token.secret_hash(), format!("{pattern}.{ZONE}"));
        let new = NewToken { secret_hash, name, expires_at: now() + 3600, replaces: false, uses };
        self.register().create_token(&new, now()).unwrap();
        token
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        pki::read_certificates(&self.config.root).unwrap().remove(0)
    }

    /// Enrols a device at the AS of an earlier day: certificates live 90 days.
    pub(crate) fn enrol(&self, name: &str, days_ago: u64, state: &Path) -> Device {
        let token = self.token(name, now() - days_ago * DAY, false);
        self.enrol_by(&token, days_ago, state)
    }

    /// The same by a token.
    pub(crate) fn enrol_by(&self, token: &EnrolmentToken, days_ago: u64, state: &Path) -> Device {
        let then = now() - days_ago * DAY;
        let state = StateDir::open(state).unwrap();
        let key = state.key_or_generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let request = Message::EnrolRequest(EnrolRequest {
            token_secret: token.secret().to_vec(),
            csr,
            protocol_version: version::CURRENT,
            name: String::new(),
        });
        let answer = self.authentication().answer(None, self.address, &request, then);
        let Message::EnrolResponse(answer) = answer else { panic!("not enrolled: {answer:?}") };
        let chain = answer.certificate_chain.into_iter().map(CertificateDer::from).collect();
        let identity = DeviceIdentity::new(&key, chain, self.root()).unwrap();
        state.save_identity(&identity).unwrap();
        Device { state, identity, network: self.config.network.id }
    }

    /// Renews a device's certificate at an AS whose clock is ahead.
    pub(crate) fn renew(&self, device: &mut Device, days_ahead: u64) {
        let key = device.state.key_or_generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let request = Message::RenewRequest(RenewRequest { csr });
        let then = now() + days_ahead * DAY;
        let answer = self.authentication().answer(Some(&device.parsed()), self.address, &request, then);
        let Message::RenewResponse(answer) = answer else { panic!("not renewed: {answer:?}") };
        let chain = answer.certificate_chain.into_iter().map(CertificateDer::from).collect();
        let renewed = DeviceIdentity::new(&key, chain, self.root()).unwrap();
        device.state.save_renewed(&renewed, &device.identity).unwrap();
        device.identity = renewed;
    }

    /// The AS, without its sockets.
    fn authentication(&self) -> Service {
        let management = ManagementService { name: format!("nms.svc.{ZONE}"), addresses: vec![self.address] };
        Service::new(
            self.config.network.clone(),
            Arc::new(self.register()),
            self.authority("devices"),
            self.root(),
            management,
            self.config.device_certificate_lifetime,
        )
    }

    /// Stands in for the overlay's services where they listen, and shows who comes.
    pub(crate) fn services(&self) -> Endpoint {
        let authority = self.authority("services");
        let credentials = |name: &str, role| {
            let name = format!("{name}.svc.{ZONE}");
            let (chain, key) =
                authority.issue_service(&self.config.network, &name, role, now(), DAY).unwrap();
            Credentials {
                chain,
                key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                root: self.root(),
                network: self.config.network.id,
            }
        };
        let (authentication, management) = (credentials("as", Role::As), credentials("nms", Role::Nms));
        let tls = ServerTls::services(&management)
            .and_then(|tls| tls.with_protocol(alpn::AS, &authentication))
            .and_then(|tls| tls.with_protocol(alpn::NMS, &management))
            .unwrap();
        Endpoint::open(UdpPort::bind_to(self.address).unwrap(), Some((tls, self.config.network.id)))
    }
}

/// An enrolled device.
pub(crate) struct Device {
    pub(crate) state: StateDir,
    pub(crate) identity: DeviceIdentity,
    network: NetworkId,
}

impl Device {
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials {
            chain: self.identity.chain().to_vec(),
            key: self.identity.key().clone_key(),
            root: self.identity.root().clone(),
            network: self.network,
        }
    }

    pub(crate) fn parsed(&self) -> Identity {
        Identity::from_der(self.identity.leaf()).unwrap()
    }

    /// The engine of this device on a loopback port, with the cloud at this address.
    pub(crate) fn run(&self, cloud: SocketAddr) -> (EngineHandle, Endpoint) {
        self.run_by(cloud, Clock::new(0))
    }

    /// The same by this clock.
    pub(crate) fn run_by(&self, cloud: SocketAddr, clock: Clock) -> (EngineHandle, Endpoint) {
        self.run_over(cloud, clock, Arc::new(NoRing::with_room(usize::MAX)))
    }

    /// The same over this ring.
    pub(crate) fn run_over(
        &self,
        cloud: SocketAddr,
        clock: Clock,
        ring: Arc<NoRing>,
    ) -> (EngineHandle, Endpoint) {
        let credentials = self.credentials();
        let endpoint = Endpoint::open(
            UdpPort::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap(),
            Some((ServerTls::peer(&credentials).unwrap().with_clock(clock.clone()), self.network)),
        );
        let parts = EngineParts {
            access: Access::default(),
            port_mapping: false,
            clock,
            credentials,
            identity: self.parsed(),
            node: NodeConfig {
                pinned_relay: None,
                identity: self.parsed(),
                zone: ZONE.into(),
                addresses: Vec::new(),
                as_addresses: vec![cloud],
                as_name: format!("as.svc.{ZONE}"),
                cached: None,
                suites: vec![Suite::Aes128Gcm],
                inner_mtu: 1_420,
                software_version: "0".into(),
                timing: Timing::default(),
            },
            port: endpoint.port.clone(),
            transport: endpoint.transport.clone(),
            ring,
            renewal: RenewalParts {
                device: self.identity.clone(),
                former: self.state.former(),
                state: self.state.clone(),
                cloud: vec![cloud.to_string().parse().unwrap()],
            },
            surroundings: Surroundings {
                interface: InterfaceReport::default(),
                interface_lost: engine::Lost::default(),
                ring: RingReport::default(),
                cards: Arc::default(),
                unguarded: engine::Unguarded::default(),
                ring_failure: None,
                kernel: Arc::new(NoKernel),
            },
            save: Box::new(|_| ()),
            mtus: tokio::sync::watch::channel(engine::PeerMtus::new()).0,
            failure: oneshot::channel().0,
        };
        (engine::spawn(Inbox::new(), parts), endpoint)
    }
}

/// A port, the thread that receives on it, and QUIC.
pub(crate) struct Endpoint {
    pub(crate) transport: Arc<Transport>,
    pub(crate) port: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Endpoint {
    pub(crate) fn open(port: UdpPort, server: Option<(ServerTls, NetworkId)>) -> Self {
        let port = Arc::new(port);
        let transport = Arc::new(Transport::start(port.clone(), server).unwrap());
        let (mux, stop) = (transport.mux(), Arc::new(AtomicBool::new(false)));
        let (udp, stopped) = (port.clone(), stop.clone());
        let worker = std::thread::spawn(move || UserspaceRelay::new(0).run(udp, mux, stopped).unwrap());
        Self { transport, port, stop, worker: Some(worker) }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.port.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Without an interface there are no programs.
struct NoKernel;

impl Kernel for NoKernel {
    fn figures(&self) -> KernelFigures {
        KernelFigures::default()
    }
}

/// Without peers there is nothing to encapsulate. Of permissions it has room for so many, those before included that are
/// to be replaced: as the kernel's table.
pub(crate) struct NoRing {
    room: usize,
    pub(crate) permissions: Mutex<Arc<Permissions>>,
    /// How often its counters were read, as for a report.
    pub(crate) read: AtomicUsize,
}

impl NoRing {
    pub(crate) fn with_room(room: usize) -> Self {
        Self { room, permissions: Mutex::default(), read: AtomicUsize::new(0) }
    }
}

impl EncapRing for NoRing {
    fn set_permissions(&self, permissions: Arc<Permissions>) -> Result<(), RingError> {
        let mut held = self.permissions.lock().unwrap();
        if held.and(&permissions).len() > self.room {
            return Err(RingError::Stopped("its table is full"));
        }
        *held = permissions;
        Ok(())
    }

    fn set_class(&self, _: TunnelId, _: u32) {}

    fn kind(&self) -> RingKind {
        RingKind::Offload
    }

    fn install(&self, _: TunnelInstall) -> Result<(), RingError> {
        Ok(())
    }

    fn expect(&self, _: ConnectionId) {}

    fn forget(&self, _: ConnectionId) {}

    fn remove(&self, _: TunnelId) {}

    fn set_path(&self, _: TunnelId, _: RingPath) {}

    fn set_mtu(&self, _: TunnelId, _: cyphonic_dataplane::ring::PathMtu) {}

    fn send_control(&self, _: TunnelId, _: Control) {}

    fn drop_held(&self, _: std::net::Ipv6Addr, _: bool) {}

    fn force_key_update(&self, _: TunnelId) {}

    fn tunnel_stats(&self, _: TunnelId) -> Option<TunnelStats> {
        None
    }

    fn all_stats(&self) -> Vec<(TunnelId, TunnelStats)> {
        Vec::new()
    }

    fn counters(&self) -> RingCounters {
        self.read.fetch_add(1, Ordering::Relaxed);
        RingCounters::default()
    }
}

/// The first report that says what is waited for.
pub(crate) async fn status_when(engine: &EngineHandle, says: impl Fn(&StatusReport) -> bool) -> StatusReport {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let report = engine.status().await;
        if says(&report) {
            return report;
        }
        assert!(tokio::time::Instant::now() < deadline, "{report:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn registered(report: &StatusReport) -> bool {
    report.services.iter().any(|s| s.kind == ServiceKind::Nms && s.state == ServiceState::Ready)
}

/// `cyphonic up`, with the state directory beside the configuration.
pub(crate) async fn up(overlay: &Overlay, token: &EnrolmentToken, dir: &Path, more: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_cyphonic"))
        .arg("up")
        .args(["--token", token.format().as_str(), "--cloud", &overlay.address.to_string()])
        .arg("--config")
        .arg(dir.join("agent.yaml"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .args(more)
        .output()
        .await
        .unwrap()
}
