//! Carries what peers open at this device's virtual address on to a machine without an agent, for which the
//! device stands (`stands_for`).
//!
//! Conversations end here and begin anew towards the machine: it sees this host's own address, has IPv4 or
//! IPv6, and needs no route back. Nothing is forwarded between networks, so what is not named cannot be
//! reached; the [access rules](crate::engine) keep everything else from the host's own services.

mod machine;
mod tcp;
mod udp;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cyphonic_proto::access::Services;
use futures_util::future::BoxFuture;
use machine::{Machine, Trouble};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::config::{Carried, OfferedPort, StandsFor};
use crate::control::report::{HealthCheck, StandsForReport};

/// Between two attempts at a port that another program has.
const AGAIN: Duration = Duration::from_secs(5);

/// Ports that come to be held within this time are offered together.
const GATHER: Duration = Duration::from_millis(20);

/// Allows peers to open these services here at most, and returns once that is so.
pub type Offering = Arc<dyn Fn(Services) -> BoxFuture<'static, ()> + Send + Sync>;

/// A port is served, or tried again, for as long as this lives.
pub struct Adapter {
    machine: Arc<Machine>,
    services: Vec<String>,
    offering: Offering,
    /// What tells of ports that are held.
    offers: Mutex<JoinSet<()>>,
    // Aborted when dropped.
    ports: Mutex<JoinSet<()>>,
}

/// The ports that are this agent's. Peers may open these alone: at another one it would be a program of the host
/// that answers.
#[derive(Debug, Default)]
struct Held {
    ports: Mutex<BTreeSet<OfferedPort>>,
    changed: Notify,
}

impl Held {
    fn change(&self, port: OfferedPort, is_held: bool) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = if is_held { ports.insert(port) } else { ports.remove(&port) };
        if is_news {
            self.changed.notify_one();
        }
    }

    fn now(&self) -> BTreeSet<OfferedPort> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Adapter {
    /// Serves every port of `settings` at the device's address `own`, and offers each from when it is held. Must
    /// be called in a tokio runtime.
    pub fn start(own: Ipv6Addr, settings: StandsFor, offering: Offering) -> Self {
        let udp_ports = settings.ports().filter(|port| port.protocol == Carried::Udp).count();
        let (machine, held) = (Arc::new(Machine::new(settings.address, udp_ports)), Arc::<Held>::default());
        let (mut ports, mut offers) = (JoinSet::new(), JoinSet::new());
        for port in settings.ports() {
            ports.spawn(serve(own, port, machine.clone(), held.clone()));
        }
        let services = settings.services.iter().map(ToString::to_string).collect();
        offers.spawn(offer(settings, held, offering.clone()));
        Self { machine, services, offering, offers: Mutex::new(offers), ports: Mutex::new(ports) }
    }

    /// Peers may open nothing here any more; only then the ports are given up, which are the host's from then on.
    /// Peers whose connections stood have been told when this returns, if their tunnels carry it.
    pub async fn close(&self) {
        let take = |tasks: &Mutex<JoinSet<()>>| {
            std::mem::take(&mut *tasks.lock().unwrap_or_else(PoisonError::into_inner))
        };
        take(&self.offers).shutdown().await;
        (self.offering)(Services::default()).await;
        take(&self.ports).shutdown().await;
        self.machine.end_connections().await;
    }

    /// For `status`.
    pub fn report(&self) -> StandsForReport {
        self.machine.report(self.services.clone())
    }

    /// What is wrong.
    pub fn health(&self) -> Vec<HealthCheck> {
        self.machine.health()
    }
}

/// Offers what is held, whenever that changes.
async fn offer(settings: StandsFor, held: Arc<Held>, offering: Offering) {
    loop {
        let ports = held.now();
        offering(settings.offered(|port| ports.contains(&port))).await;
        held.changed.notified().await;
        // Most often others follow.
        tokio::time::sleep(GATHER).await;
    }
}

/// Listens as soon as it can, and carries on what comes.
async fn serve(own: Ipv6Addr, port: OfferedPort, machine: Arc<Machine>, held: Arc<Held>) {
    let here = SocketAddr::from((own, port.at));
    loop {
        match port.protocol {
            Carried::Tcp => match tcp::listen(here) {
                Ok(listener) => {
                    held.change(port, true);
                    machine.is_well_here(port);
                    let ended = tcp::carry_all(&listener, port, &machine).await;
                    is_lost(port, &ended, &machine, &held).await;
                }
                Err(error) => cannot_be_had(port, &error, &machine).await,
            },
            Carried::Udp => match udp::open(here).await {
                Ok(socket) => {
                    held.change(port, true);
                    machine.is_well_here(port);
                    let ended = udp::carry_all(&socket, port, &machine).await;
                    is_lost(port, &ended, &machine, &held).await;
                }
                Err(error) => cannot_be_had(port, &error, &machine).await,
            },
        }
    }
}

/// Its socket is kept until peers may not open it any more.
async fn is_lost(port: OfferedPort, ended: &io::Error, machine: &Machine, held: &Held) {
    held.change(port, false);
    cannot_be_had(port, ended, machine).await;
}

async fn cannot_be_had(port: OfferedPort, error: &io::Error, machine: &Machine) {
    machine.note(port, Trouble::Here, error);
    tokio::time::sleep(AGAIN).await;
}

/// Whether an error is the host's, which may pass, and not the socket's.
fn may_pass(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lasting = [Errno::BADF, Errno::NOTSOCK, Errno::INVAL, Errno::OPNOTSUPP];
    !lasting.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UdpSocket};
    use tokio::time::timeout;

    use super::*;
    use crate::control::report::Severity;

    const SOON: Duration = Duration::from_secs(20);

    /// A port of the loopback address that nobody has; others' tests take theirs by the kernel's choice.
    async fn free_port() -> u16 {
        let tcp = TcpListener::bind("[::1]:0").await.unwrap();
        tcp.local_addr().unwrap().port()
    }

    fn settings(address: &str, services: &[String]) -> StandsFor {
        StandsFor {
            address: address.parse().unwrap(),
            services: services.iter().map(|service| service.parse().unwrap()).collect(),
        }
    }

    fn start(settings: StandsFor) -> Adapter {
        Adapter::start(Ipv6Addr::LOCALHOST, settings, Arc::new(|_| Box::pin(async {})))
    }

    async fn connect(port: u16) -> TcpStream {
        let until = tokio::time::Instant::now() + SOON;
        loop {
            match TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
                Ok(stream) => return stream,
                Err(error) if tokio::time::Instant::now() > until => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn until(mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, wait).await.expect("it comes to hold");
    }

    #[tokio::test]
    async fn a_connection_reaches_the_machine_over_ipv4_and_each_half_ends_by_itself() {
        let machine = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (there, here) = (machine.local_addr().unwrap().port(), free_port().await);
        let adapter = start(settings("127.0.0.1", &[format!("tcp/{here}:{there}")]));
        let mut peer = connect(here).await;
        let (mut served, from) = timeout(SOON, machine.accept()).await.unwrap().unwrap();
        assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 1]));
        let question = vec![7_u8; 300_000];
        let asked = question.clone();
        let asking = tokio::spawn(async move {
            peer.write_all(&asked).await.unwrap();
            peer.shutdown().await.unwrap();
            let mut answer = Vec::new();
            peer.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut read = Vec::new();
        timeout(SOON, served.read_to_end(&mut read)).await.unwrap().unwrap();
        assert_eq!(read, question);
        assert_eq!(adapter.report().connections, 1);
        served.write_all(b"answered after the question had ended").await.unwrap();
        drop(served);
        let answer = timeout(SOON, asking).await.unwrap().unwrap();
        assert_eq!(answer, b"answered after the question had ended");
        until(|| adapter.report().connections == 0).await;
        assert_eq!((adapter.report().carried, adapter.health()), (1, Vec::new()));
    }

    #[tokio::test]
    async fn what_the_machine_refuses_is_refused_here_and_told_until_it_answers() {
        let (there, here) = (free_port().await, free_port().await);
        let adapter = start(settings("::1", &[format!("tcp/{here}:{there}")]));
        let mut peer = connect(here).await;
        let refused = timeout(SOON, peer.read(&mut [0; 8])).await.unwrap();
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let health = adapter.health();
        let [check] = &health[..] else { panic!("{health:?}") };
        assert_eq!((check.id.as_str(), check.severity), ("machine", Severity::Warning));
        assert!(
            check.message.contains("::1") && check.message.contains(&format!("tcp/{there}")),
            "{}",
            check.message
        );
        let machine = TcpListener::bind((Ipv6Addr::LOCALHOST, there)).await.unwrap();
        let mut peer = connect(here).await;
        peer.write_all(b"?").await.unwrap();
        timeout(SOON, machine.accept()).await.unwrap().unwrap();
        until(|| adapter.health().is_empty()).await;
    }

    #[tokio::test]
    async fn a_connection_that_the_peer_resets_is_reset_at_the_machine() {
        let machine = TcpListener::bind("[::1]:0").await.unwrap();
        let (there, here) = (machine.local_addr().unwrap().port(), free_port().await);
        let _adapter = start(settings("::1", &[format!("tcp/{here}:{there}")]));
        let peer = connect(here).await;
        let (mut served, _) = timeout(SOON, machine.accept()).await.unwrap().unwrap();
        tcp::reset(peer);
        let read = timeout(SOON, served.read(&mut [0; 8])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn datagrams_of_each_peer_have_a_port_of_their_own_towards_the_machine() {
        let machine = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (there, here) = (machine.local_addr().unwrap().port(), free_port().await);
        let adapter = start(settings("127.0.0.1", &[format!("udp/{here}:{there}")]));
        let peers = [UdpSocket::bind("[::1]:0").await.unwrap(), UdpSocket::bind("[::1]:0").await.unwrap()];
        let mut sources = Vec::new();
        for (number, peer) in peers.iter().enumerate() {
            peer.connect((Ipv6Addr::LOCALHOST, here)).await.unwrap();
            for round in 0..2 {
                let (length, from) = ask(peer, &machine, format!("{number} {round}").as_bytes()).await;
                assert_eq!(length, 3);
                sources.push(from);
            }
        }
        assert!(
            sources[0] == sources[1] && sources[2] == sources[3] && sources[0] != sources[2],
            "{sources:?}"
        );
        // The other way round, each to its own.
        for (peer, source) in [(&peers[1], sources[2]), (&peers[0], sources[0])] {
            machine.send_to(source.to_string().as_bytes(), source).await.unwrap();
            let mut buffer = [0; 64];
            let length = timeout(SOON, peer.recv(&mut buffer)).await.unwrap().unwrap();
            assert_eq!(&buffer[..length], source.to_string().as_bytes());
        }
        let report = adapter.report();
        assert_eq!((report.flows, report.carried, adapter.health().len()), (2, 2, 0));
    }

    /// Until the machine has it: the port may not be open yet, and then nobody says so.
    async fn ask(peer: &UdpSocket, machine: &UdpSocket, question: &[u8]) -> (usize, SocketAddr) {
        let mut buffer = [0; 64];
        let asked = async {
            loop {
                // An error is that of the datagram before, which met no port.
                let _ = peer.send(question).await;
                let wait = Duration::from_millis(200);
                if let Ok(received) = timeout(wait, machine.recv_from(&mut buffer)).await {
                    let (length, from) = received.unwrap();
                    if buffer[..length] == *question {
                        return (length, from);
                    }
                }
            }
        };
        timeout(SOON, asked).await.expect("the machine is asked")
    }

    /// Else the other program would be reached by the machine's name.
    #[tokio::test]
    async fn a_port_that_another_program_has_is_not_offered_told_of_and_taken_when_it_is_free() {
        let other = TcpListener::bind("[::]:0").await.unwrap();
        let (taken, free) = (other.local_addr().unwrap().port(), free_port().await);
        let offered = Arc::new(Mutex::new(Vec::new()));
        let heard = offered.clone();
        let services = ["ping".into(), format!("tcp/{taken}"), format!("tcp/{free}:1")];
        let adapter = Adapter::start(
            Ipv6Addr::LOCALHOST,
            settings("127.0.0.1", &services),
            Arc::new(move |services: Services| {
                heard.lock().unwrap().push(services.words());
                Box::pin(async {})
            }),
        );
        let last = || offered.lock().unwrap().last().cloned().unwrap_or_default();
        let but_one = ["ping".to_owned(), format!("tcp/{free}")];
        until(|| !adapter.health().is_empty() && last() == but_one).await;
        let check = adapter.health().remove(0);
        assert_eq!((check.id.as_str(), check.severity), ("stands-for", Severity::Error));
        assert!(check.message.contains("another number, as `tcp/2222:22`"), "{}", check.message);
        drop(other);
        until(|| adapter.health().is_empty() && last() != but_one).await;
        assert_eq!(last(), settings("127.0.0.1", &services).offered(|_| true).words());
        adapter.close().await;
        assert_eq!(last().len(), 0);
    }

    #[tokio::test]
    async fn what_the_machine_sent_before_it_broke_off_arrives() {
        let machine = TcpListener::bind("[::1]:0").await.unwrap();
        let (there, here) = (machine.local_addr().unwrap().port(), free_port().await);
        let _adapter = start(settings("::1", &[format!("tcp/{here}:{there}")]));
        for peer_has_ended in [false, true] {
            let mut peer = connect(here).await;
            let (mut served, _) = timeout(SOON, machine.accept()).await.unwrap().unwrap();
            // It has not read this when it closes, which is a reset then.
            peer.write_all(b"a question that is not read").await.unwrap();
            timeout(SOON, served.peek(&mut [0; 8])).await.unwrap().unwrap();
            if peer_has_ended {
                peer.shutdown().await.unwrap();
            }
            // More than a socket has room for whose program does not read: the rest waits at the agent when the
            // machine has gone.
            timeout(SOON, served.write_all(&[7; 600_000])).await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(served);
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut answer = Vec::new();
            let ended = timeout(SOON, peer.read_to_end(&mut answer)).await.unwrap();
            assert_eq!((answer.len(), ended.unwrap_err().kind()), (600_000, io::ErrorKind::ConnectionReset));
        }
    }

    /// A file of which half has come is not one that has ended.
    #[tokio::test]
    async fn an_agent_that_stops_ends_no_conversation_as_if_all_had_been_said() {
        let machine = TcpListener::bind("[::1]:0").await.unwrap();
        let (there, here) = (machine.local_addr().unwrap().port(), free_port().await);
        let adapter = start(settings("::1", &[format!("tcp/{here}:{there}")]));
        let mut peer = connect(here).await;
        let (mut served, _) = timeout(SOON, machine.accept()).await.unwrap().unwrap();
        peer.write_all(b"half").await.unwrap();
        let mut half = [0; 4];
        timeout(SOON, served.read_exact(&mut half)).await.unwrap().unwrap();
        adapter.close().await;
        for end in [&mut peer, &mut served] {
            let ended = timeout(SOON, end.read(&mut half)).await.unwrap();
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
