//! Carries what peers open at this device's virtual address on to a machine without an agent, for which the
//! device stands (`stands_for`).
//!
//! Conversations end here and begin anew towards the machine: it sees this host's own address, has IPv4 or
//! IPv6, and needs no route back. Nothing is forwarded between networks, so what is not named cannot be
//! reached; the [access rules](crate::engine) keep everything else from the host's own services.

mod machine;
mod tcp;
mod udp;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use machine::{Machine, Trouble};
use tokio::task::JoinSet;

use crate::config::{Carried, OfferedPort, StandsFor};
use crate::control::report::{HealthCheck, StandsForReport};

/// Between two attempts at a port that another program has.
const AGAIN: Duration = Duration::from_secs(5);

/// A port is served, or tried again, for as long as this lives.
#[derive(Debug)]
pub struct Adapter {
    machine: Arc<Machine>,
    services: Vec<String>,
    // Aborted when dropped.
    _ports: JoinSet<()>,
}

impl Adapter {
    /// Serves every port of `settings` at the device's address `own`. Must be called in a tokio runtime.
    pub fn start(own: Ipv6Addr, settings: &StandsFor) -> Self {
        let machine = Arc::new(Machine::new(settings.address));
        let mut ports = JoinSet::new();
        for port in settings.ports() {
            ports.spawn(serve(own, port, machine.clone()));
        }
        Self { machine, services: settings.services.iter().map(ToString::to_string).collect(), _ports: ports }
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

/// Listens as soon as it can, and carries on what comes.
async fn serve(own: Ipv6Addr, port: OfferedPort, machine: Arc<Machine>) {
    loop {
        let here = SocketAddr::from((own, port.at));
        let ended = match port.protocol {
            Carried::Tcp => match tcp::listen(here) {
                Ok(listener) => {
                    machine.is_open(port);
                    tcp::carry_all(listener, port, &machine).await
                }
                Err(error) => error,
            },
            Carried::Udp => match udp::open(here).await {
                Ok(socket) => {
                    machine.is_open(port);
                    udp::carry_all(socket, port, &machine).await
                }
                Err(error) => error,
            },
        };
        machine.note(port, Trouble::Here, &ended);
        tokio::time::sleep(AGAIN).await;
    }
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
        let adapter =
            Adapter::start(Ipv6Addr::LOCALHOST, &settings("127.0.0.1", &[format!("tcp/{here}:{there}")]));
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
        let adapter = Adapter::start(Ipv6Addr::LOCALHOST, &settings("::1", &[format!("tcp/{here}:{there}")]));
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
        let _adapter =
            Adapter::start(Ipv6Addr::LOCALHOST, &settings("::1", &[format!("tcp/{here}:{there}")]));
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
        let adapter =
            Adapter::start(Ipv6Addr::LOCALHOST, &settings("127.0.0.1", &[format!("udp/{here}:{there}")]));
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

    #[tokio::test]
    async fn a_port_that_another_program_has_is_told_and_taken_when_it_is_free() {
        let other = TcpListener::bind("[::]:0").await.unwrap();
        let here = other.local_addr().unwrap().port();
        let adapter = Adapter::start(Ipv6Addr::LOCALHOST, &settings("127.0.0.1", &[format!("tcp/{here}")]));
        until(|| !adapter.health().is_empty()).await;
        let check = adapter.health().remove(0);
        assert_eq!((check.id.as_str(), check.severity), ("stands-for", Severity::Error));
        assert!(check.message.contains("another number, as `tcp/2222:22`"), "{}", check.message);
        drop(other);
        until(|| adapter.health().is_empty()).await;
    }
}
