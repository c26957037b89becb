//! Datagrams: what comes from one port of a peer goes on from one port of this host's own, as at a NAT.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::machine::{Machine, Place, Trouble};
use super::may_pass;
use crate::config::OfferedPort;

/// Who has not asked for so long has finished (RFC 4787, REQ-5). What the machine sends does not count (REQ-6): it
/// may go on for ever, to a peer that has gone.
const LIFE: Duration = Duration::from_secs(300);

/// How often those that have finished are looked for.
const LOOK: Duration = Duration::from_secs(30);

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_535;

/// After the host could not receive, and for room to send.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn open(here: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    UdpSocket::bind(here).await.map(Arc::new)
}

/// Carries all that comes, for as long as it is polled; returns when the socket is of no more use.
pub(super) async fn carry_all(
    socket: &Arc<UdpSocket>,
    port: OfferedPort,
    machine: &Arc<Machine>,
) -> io::Error {
    let mut flows = Flows::new(Arc::clone(socket), port, machine);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = looks.tick() => {
                flows.end_unused(Instant::now());
                continue;
            }
        };
        match received {
            Ok((length, peer)) => flows.carry(buffer.get(..length).unwrap_or_default(), peer).await,
            Err(error) if may_pass(&error) => {
                machine.note(port, Trouble::Here, &error);
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
    answers: JoinSet<()>,
}

/// A peer's port. Its own one is not bound to the machine's address, nor to one of this host's: it goes by the
/// route that there is at the moment.
struct Flow {
    there: Arc<UdpSocket>,
    used: Instant,
    answers: AbortHandle,
    _place: Place,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

impl Flows {
    fn new(socket: Arc<UdpSocket>, port: OfferedPort, machine: &Arc<Machine>) -> Self {
        Self { socket, port, machine: Arc::clone(machine), by_peer: HashMap::new(), answers: JoinSet::new() }
    }

    async fn carry(&mut self, datagram: &[u8], peer: SocketAddr) {
        if !self.by_peer.contains_key(&peer) {
            let Some(place) = self.place_for(peer.ip()) else {
                return self.machine.has_turned_away(peer.ip());
            };
            match self.begin(peer, place).await {
                Ok(flow) => drop(self.by_peer.insert(peer, flow)),
                Err(error) => return self.machine.note(self.port, Trouble::Here, &error),
            }
        }
        let Some(flow) = self.by_peer.get_mut(&peer) else { return };
        flow.used = Instant::now();
        let to = self.machine.at(self.port);
        // Where there is no room for long, others of the port wait no longer.
        let sent = timeout(PAUSE, flow.there.send_to(datagram, to)).await;
        match sent.unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into())) {
            Ok(_) => self.machine.has_answered(self.port),
            // Peers choose sizes; IPv4 has less than IPv6.
            Err(error) if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => {
                tracing::debug!(%error, "a datagram is too large for the machine's network");
            }
            Err(error) => self.machine.note(self.port, Trouble::of(&error), &error),
        }
    }

    /// For a peer that has as many as it may have here, in the place of the one that it has not used for longest.
    fn place_for(&mut self, peer: IpAddr) -> Option<Place> {
        if let Some(place) = self.machine.admit(peer, self.port) {
            return Some(place);
        }
        let own = self.by_peer.iter().filter(|(from, _)| from.ip() == peer);
        let oldest = own.min_by_key(|(_, flow)| flow.used).map(|(from, _)| *from)?;
        self.by_peer.remove(&oldest);
        self.machine.admit(peer, self.port)
    }

    async fn begin(&mut self, peer: SocketAddr, place: Place) -> io::Result<Flow> {
        let machine = self.machine.at(self.port);
        let any = match machine.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let there = Arc::new(UdpSocket::bind((any, 0)).await?);
        self.machine.has_begun();
        let answers = answer(there.clone(), machine, self.socket.clone(), peer);
        Ok(Flow { there, used: Instant::now(), answers: self.answers.spawn(answers), _place: place })
    }

    fn end_unused(&mut self, now: Instant) {
        self.by_peer.retain(|_, flow| now.duration_since(flow.used) < LIFE);
        while self.answers.try_join_next().is_some() {}
    }
}

/// Gives a peer what the machine sends to its flow, for as long as there is one.
async fn answer(there: Arc<UdpSocket>, machine: SocketAddr, here: Arc<UdpSocket>, peer: SocketAddr) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        match there.recv_from(&mut buffer).await {
            Ok((length, from)) if from == machine => {
                let datagram = buffer.get(..length).unwrap_or_default();
                if let Err(error) = here.send_to(datagram, peer).await {
                    tracing::debug!(%error, "an answer did not go to its peer");
                }
            }
            // Nobody has asked that one.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "an answer was not received");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::MAX_PLACES_OF_PEER;
    use super::*;
    use crate::config::Carried;

    async fn flows() -> (Flows, UdpSocket) {
        let there = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = there.local_addr().unwrap().port();
        let port = OfferedPort { protocol: Carried::Udp, at: 1, to };
        let machine = Arc::new(Machine::new(Ipv4Addr::LOCALHOST.into(), 1));
        let socket = open((Ipv6Addr::LOCALHOST, 0).into()).await.unwrap();
        (Flows::new(socket, port, &machine), there)
    }

    fn peer(port: u16) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, port).into()
    }

    async fn next(there: &UdpSocket) -> SocketAddr {
        let received = timeout(Duration::from_secs(20), there.recv_from(&mut [0; 8])).await;
        received.expect("a datagram").unwrap().1
    }

    #[tokio::test]
    async fn a_flow_ends_five_minutes_after_its_peers_last_datagram() {
        let (mut flows, there) = flows().await;
        flows.carry(b"one", peer(9)).await;
        let first = next(&there).await;
        flows.carry(b"two", peer(9)).await;
        assert_eq!(next(&there).await, first);
        let used = flows.by_peer[&peer(9)].used;
        flows.end_unused(used + LIFE - Duration::from_secs(1));
        assert_eq!(flows.machine.report(Vec::new()).flows, 1);
        flows.end_unused(used + LIFE);
        assert_eq!(flows.machine.report(Vec::new()).flows, 0);
        flows.carry(b"three", peer(9)).await;
        assert_ne!(next(&there).await, first);
        let report = flows.machine.report(Vec::new());
        assert_eq!((report.flows, report.carried, report.turned_away), (1, 2, 0));
    }

    #[tokio::test]
    async fn a_peer_that_asks_from_ever_other_ports_keeps_those_that_it_used_last() {
        let (mut flows, there) = flows().await;
        let most = u16::try_from(MAX_PLACES_OF_PEER).unwrap();
        for port in 1..=most {
            flows.carry(b"ask", peer(port)).await;
            next(&there).await;
        }
        flows.carry(b"again", peer(1)).await;
        let again = next(&there).await;
        flows.carry(b"one more", peer(most + 1)).await;
        next(&there).await;
        assert!(flows.by_peer.contains_key(&peer(1)) && !flows.by_peer.contains_key(&peer(2)));
        flows.carry(b"still", peer(1)).await;
        assert_eq!(next(&there).await, again);
        let report = flows.machine.report(Vec::new());
        assert_eq!((report.flows, report.turned_away), (MAX_PLACES_OF_PEER as u64, 0));
    }

    #[tokio::test]
    async fn only_the_machine_answers() {
        let (mut flows, there) = flows().await;
        let asking = UdpSocket::bind("[::1]:0").await.unwrap();
        flows.carry(b"ask", asking.local_addr().unwrap()).await;
        let flow = next(&there).await;
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        other.send_to(b"not asked", flow).await.unwrap();
        there.send_to(b"answer", flow).await.unwrap();
        let mut buffer = [0; 16];
        let answer = timeout(Duration::from_secs(20), asking.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..answer], b"answer");
    }
}
