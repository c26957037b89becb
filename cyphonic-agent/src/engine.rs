//! The engine: drives the [`Node`](cyphonic_proto::node::Node) with real connections, a real ring and the
//! real clock.
//!
//! One task owns the node. Everything that happens (a connection stands, an answer arrives, an application
//! asks for a name, the ring holds a packet for an unknown destination) reaches it as an [`Input`] on one
//! bounded queue; it tells the node, and then performs the node's actions in order. Whatever takes time is
//! done by a task of its own, which reports back by an input.
//!
//! | File | Does |
//! |---|---|
//! | `input` | what can happen |
//! | `run`, `perform` | the loop: input → node → actions |
//! | `services` | connections to AS, NMS and TRS |
//! | `exchanges` | requests under way between this node and services |
//! | `admission` | the certificate in use, and whether the cloud lets this device in |
//! | `renewal` | a new certificate before the old one ends |
//! | `time` | what follows from knowing the time |
//! | `peers` | the handshakes between this node and others |
//! | `queries` | what applications ask for: peers |
//! | `tunnels` | the ring's tunnels: what the node decides of them, and what the ring tells |
//! | `access` | what peers may open here |
//! | `settings` | settings that were read again |
//! | `mtu` | tunnels' inner MTUs |
//! | `report` | `cyphonic status` |
//! | `network_report` | the part of `status` that `cyphonic netcheck` shows |
//! | `datapath` | interface, port, eBPF programs and rings, chosen and put together |
//! | `cards` | what network cards can do, and which give packets to the ring |
//! | `guards` | keep packets with the overlay's addresses out, and in, on other interfaces |
//! | `saving` | the state, written to disk beside the engine |
//! | `interface` | the virtual interface, kept as it has to be: address, routes, MTUs |
//! | `network` | the host's networks: moves, and sleep |
//! | `membership`, `zone` | who this device is |
//! | `followers` | what follows host and cloud while the engine runs |
//! | `start` | building all of it from configuration and identity |
//! | `handle` | what DNS and the control socket see |
//!
//! **Invariant:** no packet of an established tunnel comes through here.

mod access;
mod admission;
mod calls;
mod cards;
mod datapath;
mod exchanges;
mod followers;
mod guards;
mod handle;
mod input;
mod interface;
mod membership;
mod mtu;
mod network;
mod network_report;
mod peers;
mod perform;
mod queries;
mod renewal;
mod report;
mod run;
mod saving;
mod services;
mod settings;
mod start;
mod time;
mod tunnels;
pub(crate) mod zone;

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError, RwLock};

pub use access::Access;
use cyphonic_dataplane::ring::{EncapRing, EventSink, RingEvent};
use cyphonic_dataplane::udp::UdpPort;
use cyphonic_proto::identity::Identity;
use cyphonic_proto::node::{CachedState, NodeConfig};
use cyphonic_transport::{Clock, Credentials, Transport};
pub use guards::Unguarded;
pub use handle::EngineHandle;
use input::Input;
pub use interface::Lost;
pub use mtu::PeerMtus;
pub use renewal::RenewalParts;
pub use report::{Kernel, KernelFigures, Surroundings};
pub use start::start;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// Inputs that wait for the engine. Each is small; more than this means that the engine has stopped.
const QUEUE: usize = 4_096;

/// What the engine is built from. The ring must deliver its signalling to the transport's mux, and its events
/// to [`Inbox::events`].
pub struct EngineParts {
    /// The device's keys.
    pub credentials: Credentials,
    /// Who the device is.
    pub identity: Identity,
    /// What the node is told.
    pub node: NodeConfig,
    /// The node's UDP port.
    pub port: Arc<UdpPort>,
    /// QUIC over it.
    pub transport: Arc<Transport>,
    /// Tunnels are installed here.
    pub ring: Arc<dyn EncapRing>,
    /// What the ring was told of who may open what here; `None`: everybody may everything.
    pub access: Access,
    /// What time it is where certificates are judged; the same as the transport's.
    pub clock: Clock,
    /// What it takes to renew the device's certificate.
    pub renewal: RenewalParts,
    /// What `status` says of the parts that the engine does not drive.
    pub surroundings: Surroundings,
    /// Whether the gateway is asked to let the port in.
    pub port_mapping: bool,
    /// Writes the node's state to where the next start finds it.
    pub save: Box<dyn Fn(&CachedState) + Send>,
    /// Told what peers' tunnels carry.
    pub mtus: watch::Sender<PeerMtus>,
    /// Told when the engine cannot go on.
    pub failure: oneshot::Sender<String>,
}

/// The engine's queue, made before its parts: the ring's events already go to it.
#[derive(Debug)]
pub struct Inbox {
    sender: mpsc::Sender<Input>,
    receiver: mpsc::Receiver<Input>,
}

impl Inbox {
    /// An empty queue.
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { sender, receiver }
    }

    /// Where the ring's events go. One that finds the queue full is lost, since the ring repeats what still
    /// matters; but those that it tells once wait for room. To be called within a runtime.
    pub fn events(&self) -> EventSink {
        let (sender, runtime) = (self.sender.clone(), Handle::current());
        Arc::new(move |event: RingEvent| match sender.try_send(Input::Ring(event)) {
            Ok(()) => {}
            Err(TrySendError::Full(Input::Ring(event))) if is_told_once(&event) => {
                let sender = sender.clone();
                runtime.spawn(async move { drop(sender.send(Input::Ring(event)).await) });
            }
            Err(_) => tracing::debug!("an event of the ring was lost: the engine is busy or has stopped"),
        })
    }
}

/// Of a tunnel, or of a worker, at most one each.
fn is_told_once(event: &RingEvent) -> bool {
    matches!(event, RingEvent::Failed { .. } | RingEvent::PeerClosed { .. } | RingEvent::KeysExhausted { .. })
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs the engine on the current runtime.
pub fn spawn(inbox: Inbox, parts: EngineParts) -> EngineHandle {
    let names = Names::default();
    if let Some(address) = parts.identity.virtual_address {
        names.insert(address, parts.identity.fqdn.clone());
    }
    let handle = EngineHandle::new(inbox.sender.clone(), names.clone(), &parts.node.zone);
    peers::accept(parts.transport.clone(), inbox.sender.clone());
    time::report_told(parts.clock.clone(), inbox.sender.clone());
    time::report_doubts(parts.clock.clone(), inbox.sender.clone());
    let (engine, renewal) = run::Engine::new(parts, inbox.sender, names);
    tokio::spawn(renewal.run());
    tokio::spawn(engine.run(inbox.receiver));
    handle
}

/// Peers met that are remembered before those are forgotten that the node does not know any more; it knows up to
/// 4,096.
pub(crate) const MOST_MET: usize = 16_384;

/// The names of virtual addresses this node has met, for PTR queries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Arc<RwLock<HashMap<Ipv6Addr, String>>>);

impl Names {
    pub(crate) fn insert(&self, address: Ipv6Addr, name: String) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(address, name);
    }

    /// Keeps those of these addresses once there are many: a hub may meet all devices there are.
    pub(crate) fn keep(&self, is_known: impl Fn(Ipv6Addr) -> bool) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() > MOST_MET {
            names.retain(|address, _| is_known(*address));
        }
    }

    pub(crate) fn get(&self, address: Ipv6Addr) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_dataplane::ring::TunnelId;

    use super::*;

    #[tokio::test]
    async fn what_the_ring_tells_once_is_heard_by_a_busy_engine_too() {
        let mut inbox = Inbox::new();
        let events = inbox.events();
        let tunnel = TunnelId(7);
        for _ in 0..2 * QUEUE {
            events(RingEvent::PathResponse { tunnel, data: [0; 8] });
        }
        events(RingEvent::KeysExhausted { tunnel });
        events(RingEvent::PeerClosed { tunnel, code: 0, reason: String::new() });
        events(RingEvent::Failed { reason: "a worker panicked".into() });
        let (mut all, mut once) = (0, 0);
        while once < 3 {
            let Input::Ring(event) = inbox.receiver.recv().await.unwrap() else { panic!("something else") };
            all += 1;
            once += usize::from(is_told_once(&event));
        }
        assert_eq!(all, QUEUE + 3);
    }
}
