//! One UDP port: its worker thread and its QUIC endpoint.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cyphonic_dataplane::relay::xdp::{Mode, XdpOptions, XdpRelay, check_interfaces};
use cyphonic_dataplane::relay::{RelayMap, Resets, UserspaceRelay};
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::identity::NetworkId;
use cyphonic_transport::{DetourServer, DetourTls, Transport};
use tokio::sync::mpsc;

use super::StartError;
use super::credentials::Loaded;
use super::kept::Relayed;
use super::renewal::PortCertificates;
use super::stun::Stun;
use crate::config::{Config, ServiceRole, TcpMode};

/// How long to wait at the end until nothing holds the port any more.
const RELEASE: Duration = Duration::from_secs(3);

/// An open port. Its thread receives, forwards data packets by the relay's map, and gives the rest to QUIC.
pub(super) struct Port {
    udp: Arc<UdpPort>,
    transport: Arc<Transport>,
    relay: Arc<UserspaceRelay>,
    xdp: Option<Arc<XdpRelay>>,
    /// For devices that reach the port by TCP only.
    detours: Option<DetourServer>,
    /// Ends with the port.
    _stun: Stun,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<()>,
}

impl Port {
    pub(super) fn open(
        address: SocketAddr,
        config: &Config,
        loaded: &Loaded,
        failures: mpsc::Sender<String>,
    ) -> Result<Self, StartError> {
        let bind = |source| StartError::Bind { address, source };
        // The unspecified IPv6 address means every address of both families, also on hosts without IPv6.
        let every = address.ip() == Ipv6Addr::UNSPECIFIED;
        let udp = if every { UdpPort::bind(address.port()) } else { UdpPort::bind_to(address) };
        let udp = Arc::new(udp.map_err(bind)?);
        let tls = loaded.server_tls()?.map(|tls| (tls, config.network.id));
        let detours = match &tls {
            Some((tls, network)) => start_detours(&udp, config.tcp, DetourTls::new(tls, *network)?)?,
            None => None,
        };
        let transport = Arc::new(Transport::start(Arc::clone(&udp), tls)?);
        let stun = Stun::open(&udp, config)?;
        transport.mux().deliver_stun_to(stun.sink());
        // Without the role there is no leg, and every data packet is dropped and counted.
        let capacity = if config.runs(ServiceRole::Trs) { config.relay.bindings } else { 0 };
        let mut relay = UserspaceRelay::new(capacity);
        if let Some(keys) = loaded.trs_keys() {
            relay = relay.with_resets(Arc::new(Resets::new(move |cid| keys.reset_token(cid))));
        }
        let relay = Arc::new(relay);
        // Before the worker: it must not tell senders that legs which go on in XDP are lost.
        let xdp = if config.runs(ServiceRole::Trs) {
            start_xdp(&udp, config, &relay)?
        } else {
            // It may have had the role when it was killed.
            XdpRelay::remove_leftovers(&config.relay.pins, udp.local_addr());
            None
        };
        let stop = Arc::new(AtomicBool::new(false));
        let worker = spawn_worker(&udp, &transport, &relay, &stop, failures)
            .inspect_err(|_| xdp.iter().for_each(|xdp| xdp.stop()))?;
        tracing::info!(address = %udp.local_addr(), dual_stack = udp.is_dual_stack(), "listening");
        Ok(Self { udp, transport, relay, xdp, detours, _stun: stun, stop, worker })
    }

    pub(super) fn transport(&self) -> Arc<Transport> {
        Arc::clone(&self.transport)
    }

    /// What it proves with who it is.
    pub(super) fn certificates(&self, network: NetworkId) -> PortCertificates {
        let detours = self.detours.as_ref().map(DetourServer::certificates);
        PortCertificates { transport: self.transport(), detours, network }
    }

    pub(super) fn udp(&self) -> Arc<UdpPort> {
        Arc::clone(&self.udp)
    }

    /// What it forwards in userspace.
    pub(super) fn relayed(&self) -> impl FnMut() -> Relayed + Send + 'static {
        let (relay, port) = (Arc::clone(&self.relay), self.udp.local_port());
        move || {
            let counters = relay.counters();
            let dropped = counters.drops.iter().map(|(why, packets)| (why.to_string(), *packets)).collect();
            Relayed { port, legs: relay.len(), packets: counters.packets, bytes: counters.bytes, dropped }
        }
    }

    /// Where legs are bound.
    pub(super) fn relay(&self) -> Arc<dyn RelayMap> {
        match &self.xdp {
            Some(xdp) => Arc::clone(xdp) as _,
            None => Arc::clone(&self.relay) as _,
        }
    }

    /// Ends the worker, and returns once the port can be opened again: QUIC lets go of it a moment later.
    pub(super) async fn close(self) {
        let released = Arc::downgrade(&self.udp);
        self.end();
        let deadline = tokio::time::Instant::now() + RELEASE;
        while released.strong_count() > 0 {
            if tokio::time::Instant::now() >= deadline {
                tracing::warn!("the port is still held");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn end(self) {
        drop(self.detours);
        self.stop.store(true, Ordering::Relaxed);
        self.udp.wake();
        if self.worker.join().is_err() {
            tracing::error!("the port's worker panicked");
        }
        if let Some(xdp) = &self.xdp {
            let counters = xdp.counters();
            tracing::info!(forwarded = counters.forwarded.packets, passed = ?counters.passed, drops = ?counters.dropped, "XDP relay stopped");
            xdp.stop();
        }
        let counters = self.relay.counters();
        tracing::info!(forwarded = counters.packets, signalling = counters.signalling, resets = counters.resets, drops = ?counters.drops, "port closed");
    }
}

/// Listens on TCP where UDP is, as far as configuration and host allow.
fn start_detours(udp: &UdpPort, mode: TcpMode, tls: DetourTls) -> Result<Option<DetourServer>, StartError> {
    if mode == TcpMode::Off {
        return Ok(None);
    }
    let address = udp.local_addr();
    match DetourServer::start(address, tls.clone()) {
        Ok(server) => {
            tracing::info!(%address, "listening on TCP");
            Ok(Some(server))
        }
        Err(error) if mode == TcpMode::Auto => {
            tracing::warn!(%address, %error, "not listening on TCP until another program stops doing so: devices whose network passes no UDP cannot connect");
            Ok(Some(DetourServer::start_once_free(address, tls)))
        }
        Err(source) => Err(StartError::Tcp { address, source }),
    }
}

/// Where a relay in XDP looks for its interfaces, as [`XdpOptions`] has it.
struct Places<'a> {
    named: Option<&'a [String]>,
    addresses: Vec<IpAddr>,
}

impl<'a> Places<'a> {
    /// Of a relay that listens there, unless it is to be one in userspace.
    fn wanted(config: &'a Config, listen: IpAddr) -> Option<Self> {
        let mode = config.relay.mode;
        if mode == Mode::Userspace || (mode == Mode::Auto && listen.is_loopback()) {
            return None;
        }
        let named = Some(&*config.relay.interfaces).filter(|interfaces| !interfaces.is_empty());
        let addresses = match listen.is_unspecified() {
            true => config.public.iter().map(SocketAddr::ip).collect(),
            false => vec![listen],
        };
        Some(Self { named, addresses })
    }
}

/// Whether a relay in XDP that listens there would find its interfaces: what is to be said where it would
/// relay in userspace instead.
pub(super) fn check_xdp(config: &Config, listen: IpAddr) -> Result<Option<String>, StartError> {
    let Some(places) = Places::wanted(config, listen) else { return Ok(None) };
    match check_interfaces(places.named, &places.addresses) {
        Ok(()) => Ok(None),
        Err(error) if config.relay.mode == Mode::Auto => Ok(Some(format!("{error}; it relays in userspace"))),
        Err(error) => Err(error.into()),
    }
}

/// Relays in XDP, as far as configuration and host allow.
fn start_xdp(
    udp: &UdpPort,
    config: &Config,
    relay: &Arc<UserspaceRelay>,
) -> Result<Option<Arc<XdpRelay>>, StartError> {
    let mode = config.relay.mode;
    let Some(places) = Places::wanted(config, udp.local_addr().ip()) else {
        XdpRelay::remove_leftovers(&config.relay.pins, udp.local_addr());
        tracing::info!("relaying in userspace");
        return Ok(None);
    };
    let options = XdpOptions {
        mode,
        interfaces: places.named.map(<[String]>::to_vec),
        addresses: places.addresses,
        listen: udp.local_addr(),
        legs: config.relay.bindings,
        pins: Some(config.relay.pins.clone()),
    };
    match XdpRelay::start(&options, Arc::clone(relay)) {
        Ok(xdp) => {
            let interfaces: Vec<String> = xdp.attachments().iter().map(ToString::to_string).collect();
            tracing::info!(interfaces = interfaces.join(", "), legs = xdp.len(), "relaying in XDP");
            Ok(Some(Arc::new(xdp)))
        }
        Err(error) if mode == Mode::Auto => {
            tracing::warn!(%error, "relaying in userspace");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn spawn_worker(
    udp: &Arc<UdpPort>,
    transport: &Transport,
    relay: &Arc<UserspaceRelay>,
    stop: &Arc<AtomicBool>,
    failures: mpsc::Sender<String>,
) -> Result<JoinHandle<()>, StartError> {
    let (udp, relay, stop) = (Arc::clone(udp), Arc::clone(relay), Arc::clone(stop));
    let sink = transport.mux();
    let obituary = Obituary { failures, reason: Some("its worker panicked".to_owned()) };
    let work = move || {
        let mut obituary = obituary;
        obituary.reason = relay.run(udp, sink, stop).err().map(|error| error.to_string());
    };
    std::thread::Builder::new().name("cyphonic-port".to_owned()).spawn(work).map_err(StartError::Thread)
}

/// Tells of the end of a port's worker, however it came to it, unless it was told to end.
struct Obituary {
    failures: mpsc::Sender<String>,
    reason: Option<String>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            // The receiver is gone only when the process is stopping anyway.
            let _ = self.failures.blocking_send(format!("receiving on the UDP port failed: {reason}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_is_told_however_it_came_to_it() {
        let (failures, mut told) = mpsc::channel(4);
        let ends = |reason: Option<&str>, panics: bool| {
            let obituary = Obituary { failures: failures.clone(), reason: Some("it panicked".into()) };
            let reason = reason.map(str::to_owned);
            let work = move || {
                let mut obituary = obituary;
                assert!(!panics, "as it may");
                obituary.reason = reason;
            };
            drop(std::thread::spawn(work).join());
        };
        ends(None, false);
        assert!(told.try_recv().is_err(), "as it was told to");
        ends(Some("no memory"), false);
        assert!(told.try_recv().unwrap().ends_with("no memory"));
        ends(None, true);
        assert!(told.try_recv().unwrap().ends_with("it panicked"));
    }
}
