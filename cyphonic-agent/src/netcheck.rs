//! Finds out what network the host is in: the sockets and the clock of [`cyphonic_proto::netcheck`].
//!
//! The node asks for a look ([`Action::Netcheck`](cyphonic_proto::node::Action::Netcheck)); a task makes it
//! and reports bit by bit. STUN answers that come to the node's own port reach it through [`OwnPort`], which
//! drops them while nobody looks.

mod gateway;
mod look;
mod sockets;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cyphonic_dataplane::udp::{StunSink, UdpPort};
use cyphonic_proto::netcheck::Findings;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::gateway::Order;

/// Datagrams that wait for a look. Each is a hundred bytes; a look has some twenty requests under way.
const QUEUE: usize = 64;

/// How long a stop waits for the gateway's task.
const CLOSE: Duration = Duration::from_millis(2_200);

/// Longest STUN message kept: what an answer of ours never reaches.
const MAX_MESSAGE: usize = 548;

/// What a look has found so far.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// All of it, as far as it is known.
    Findings(Findings),
    /// Round trips to services.
    Latencies(Vec<(SocketAddr, Duration)>),
    /// The outer endpoints that the gateway grants now.
    Granted(Vec<SocketAddr>),
}

/// A STUN message that came to the node's own port.
struct Arrived {
    from: SocketAddr,
    message: Vec<u8>,
}

/// Takes the own port's STUN messages, for the look under way.
#[derive(Default)]
pub(crate) struct OwnPort(Mutex<Option<mpsc::Sender<Arrived>>>);

impl StunSink for OwnPort {
    fn deliver(&self, from: SocketAddr, _local_ip: Option<IpAddr>, datagram: &[u8]) {
        let looking = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = looking.as_ref().filter(|_| datagram.len() <= MAX_MESSAGE) {
            // A queue that is full loses a datagram, as the network does.
            let _ = sender.try_send(Arrived { from, message: datagram.to_vec() });
        }
    }
}

impl OwnPort {
    /// From now on messages come here, and nowhere else.
    fn listen(&self) -> mpsc::Receiver<Arrived> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
}

/// The looks of one engine, one at a time.
pub(crate) struct Netcheck {
    port: Arc<UdpPort>,
    own: Arc<OwnPort>,
    task: Option<JoinHandle<()>>,
    /// The one that keeps the port open at the gateway, and its orders.
    gateway: Option<(mpsc::Sender<Order>, JoinHandle<()>)>,
}

impl Netcheck {
    /// Looks from this port, whose STUN messages come to `own`. `granted` gets what the gateway grants;
    /// without, it is not asked.
    pub(crate) fn new<R, F>(port: Arc<UdpPort>, own: Arc<OwnPort>, granted: Option<R>) -> Self
    where
        R: Fn(News) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let gateway = granted.map(|report| {
            let (sender, orders) = mpsc::channel(1);
            let report = move |endpoints| report(News::Granted(endpoints));
            (sender, tokio::spawn(gateway::keep_mapped(Arc::clone(&port), orders, report)))
        });
        Self { port, own, task: None, gateway }
    }

    /// Ends everything, and takes back what the gateway granted.
    pub(crate) async fn close(&mut self) {
        self.stop();
        if let Some((orders, task)) = self.gateway.take() {
            // It may be in the middle of a renewal, whose answer nobody needs now.
            let stopped = async { drop(orders.send(Order::Stop).await) };
            if tokio::time::timeout(CLOSE, async { (stopped.await, task.await) }).await.is_err() {
                tracing::debug!("the gateway was not told that this agent stops");
            }
        }
    }

    /// Looks, and gives `report` whatever is found. A look under way ends.
    pub(crate) fn start<R, F>(&mut self, servers: Vec<SocketAddr>, own: Vec<SocketAddr>, report: R)
    where
        R: Fn(News) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        self.stop();
        if let Some((orders, _)) = &self.gateway {
            // Full: it will look anyhow.
            let _ = orders.try_send(Order::Look);
        }
        let (port, arrived) = (Arc::clone(&self.port), self.own.listen());
        self.task = Some(tokio::spawn(look::look(port, arrived, servers, own, report)));
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Netcheck {
    fn drop(&mut self) {
        self.stop();
    }
}
