//! An address from which nodes connect.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use cyphonic_dataplane::relay::UserspaceRelay;
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_transport::Transport;

/// A UDP port with its receiving thread, which many nodes share.
pub(crate) struct Source {
    pub(crate) transport: Transport,
    udp: Arc<UdpPort>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Source {
    pub(crate) fn open(address: Ipv4Addr) -> Result<Self> {
        let udp = UdpPort::bind_to(SocketAddr::from((address, 0)));
        let udp = Arc::new(udp.with_context(|| format!("cannot open a port of {address}"))?);
        let transport = Transport::start(Arc::clone(&udp), None)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (port, mux, stopped) = (Arc::clone(&udp), transport.mux(), Arc::clone(&stop));
        // No tunnel ends here: all is signalling.
        let relay = UserspaceRelay::new(0);
        let worker = std::thread::spawn(move || {
            if let Err(error) = relay.run(port, mux, stopped) {
                tracing::error!(%error, "receiving on a port failed");
            }
        });
        Ok(Self { transport, udp, stop, worker: Some(worker) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.udp.local_addr()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.udp.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
