//! Datagrams: what comes from one port of a peer goes on from one port of this host's own, as at a NAT.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::machine::{Machine, Place, Trouble};
use super::may_pass;
use crate::config::{Carried, OfferedPort};

/// Who neither asks nor is answered for so long has finished (RFC 4787, REQ-5).
const LIFE: Duration = Duration::from_secs(300);

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_535;

/// After the host could not receive, and for room to send.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn open(here: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(here).await
}

/// Carries all that comes, for as long as it is polled; returns when the socket is of no more use.
pub(super) async fn carry_all(socket: UdpSocket, port: OfferedPort, machine: &Arc<Machine>) -> io::Error {
    let mut flows = Flows {
        socket: Arc::new(socket),
        port,
        machine: Arc::clone(machine),
        by_peer: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let socket = Arc::clone(&flows.socket);
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(ended) = flows.tasks.join_next() => {
                if let Ok(peer) = ended {
                    flows.forget(peer);
                }
                continue;
            }
        };
        match received {
            Ok((length, peer)) => flows.carry(buffer.get(..length).unwrap_or_default(), peer).await,
            Err(error) if may_pass(&error) => {
                tracing::debug!(%error, "a datagram was not received");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return error,
        }
    }
}

/// Those of one port.
struct Flows {
    socket: Arc<UdpSocket>,
    port: OfferedPort,
    machine: Arc<Machine>,
    by_peer: HashMap<SocketAddr, Flow>,
    // Aborts them when dropped.
    tasks: JoinSet<SocketAddr>,
}

struct Flow {
    there: Arc<UdpSocket>,
    used: Arc<LastUse>,
    answers: AbortHandle,
}

impl Flows {
    async fn carry(&mut self, datagram: &[u8], peer: SocketAddr) {
        let flow = match self.by_peer.get(&peer).filter(|flow| !flow.answers.is_finished()) {
            Some(flow) => flow,
            None => {
                let Some(place) = self.machine.admit(peer.ip(), Carried::Udp) else { return };
                match self.begin(peer, place).await {
                    Ok(flow) => self.by_peer.entry(peer).insert_entry(flow).into_mut(),
                    Err(error) => return self.machine.note(self.port, Trouble::There, &error),
                }
            }
        };
        flow.used.is_now();
        // The first error is of a datagram before, which the machine has refused.
        let sent = match send(&flow.there, datagram).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.machine.note(self.port, Trouble::There, &error);
                send(&flow.there, datagram).await
            }
            sent => sent,
        };
        if let Err(error) = sent {
            self.machine.note(self.port, Trouble::There, &error);
        }
    }

    async fn begin(&mut self, peer: SocketAddr, place: Place) -> io::Result<Flow> {
        let machine = self.machine.at(self.port);
        let any = match machine.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let there = UdpSocket::bind((any, 0)).await?;
        there.connect(machine).await?;
        let (there, used) = (Arc::new(there), Arc::new(LastUse::new()));
        let answers = Answers {
            there: there.clone(),
            here: self.socket.clone(),
            peer,
            port: self.port,
            machine: self.machine.clone(),
            used: used.clone(),
        };
        let answers = self.tasks.spawn(async move {
            answers.carry().await;
            drop(place);
            peer
        });
        Ok(Flow { there, used, answers })
    }

    /// Of a flow that has ended, unless the peer has begun another one since.
    fn forget(&mut self, peer: SocketAddr) {
        if self.by_peer.get(&peer).is_some_and(|flow| flow.answers.is_finished()) {
            self.by_peer.remove(&peer);
        }
    }
}

/// Sends as soon as there is room. Where there is none for long, others of the port wait no longer.
async fn send(there: &UdpSocket, datagram: &[u8]) -> io::Result<usize> {
    timeout(PAUSE, there.send(datagram)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What the machine sends on a flow.
struct Answers {
    there: Arc<UdpSocket>,
    here: Arc<UdpSocket>,
    peer: SocketAddr,
    port: OfferedPort,
    machine: Arc<Machine>,
    used: Arc<LastUse>,
}

impl Answers {
    /// Until the flow is not used any more.
    async fn carry(self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let until = self.used.ends();
            match timeout_at(until, self.there.recv(&mut buffer)).await {
                Ok(Ok(length)) => {
                    self.used.is_now();
                    self.machine.has_answered(self.port);
                    if let Err(error) =
                        self.here.send_to(buffer.get(..length).unwrap_or_default(), self.peer).await
                    {
                        tracing::debug!(%error, "an answer did not go to its peer");
                    }
                }
                // ICMP's errors: the machine has said no, but may say yes later.
                Ok(Err(error)) => {
                    self.machine.note(self.port, Trouble::There, &error);
                    if !may_pass(&error) {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) if self.used.ends() <= Instant::now() => return,
                Err(_) => {}
            }
        }
    }
}

/// When a flow was used last, written by two tasks.
struct LastUse {
    begun: Instant,
    /// Milliseconds from there.
    last: AtomicU64,
}

impl LastUse {
    fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0) }
    }

    fn is_now(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    fn ends(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_lives_five_minutes_from_its_last_datagram() {
        let used = LastUse::new();
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(200)).await;
        assert_eq!(used.ends(), begun + LIFE);
        used.is_now();
        assert_eq!(used.ends(), begun + Duration::from_secs(200) + LIFE);
    }

    #[tokio::test]
    async fn a_flow_that_has_ended_gives_its_place_back_and_the_peer_gets_another() {
        let there = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = there.local_addr().unwrap().port();
        let port = OfferedPort { protocol: Carried::Udp, at: 1, to };
        let machine = Arc::new(Machine::new(Ipv4Addr::LOCALHOST.into()));
        let socket = Arc::new(open((Ipv6Addr::LOCALHOST, 0).into()).await.unwrap());
        let mut flows =
            Flows { socket, port, machine: machine.clone(), by_peer: HashMap::new(), tasks: JoinSet::new() };
        let peer = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        flows.carry(b"one", peer).await;
        let mut buffer = [0; 8];
        let (_, first) = there.recv_from(&mut buffer).await.unwrap();
        assert_eq!(machine.report(Vec::new()).flows, 1);
        // As a flow that is not used any more ends: by itself.
        tokio::time::pause();
        tokio::time::advance(LIFE + Duration::from_secs(1)).await;
        let ended = flows.tasks.join_next().await.unwrap().unwrap();
        tokio::time::resume();
        assert_eq!((ended, machine.report(Vec::new()).flows), (peer, 0));
        flows.carry(b"two", peer).await;
        flows.forget(ended);
        assert_eq!(flows.by_peer.len(), 1, "the new one stays");
        let (_, second) = there.recv_from(&mut buffer).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(machine.report(Vec::new()).carried, 2);
    }
}
