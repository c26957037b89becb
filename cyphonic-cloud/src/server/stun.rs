//! STUN on the services' ports: "from where do you see me?", answered without state (RFC 8489, RFC 5780).
//!
//! The port's worker hands over what is STUN; the alternate port and addresses have a thread each that does
//! nothing else. Nobody is authenticated: answers are no longer than requests, go to the address a request
//! came from, and are limited.

mod limit;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cyphonic_common::stun::is_stun;
use cyphonic_dataplane::sync;
use cyphonic_dataplane::udp::{self, RecvBatch, StunSink, Transmit, UdpPort};
use cyphonic_proto::stun::server::{self, Site};

use self::limit::Limit;
use super::StartError;
use crate::config::Config;

/// Messages per receive call on the further sockets, which carry nothing but STUN.
const BATCH: usize = 4;

/// How long a further socket waits in vain before it looks whether to stop.
const WAIT: Duration = Duration::from_millis(500);

/// The STUN server of one port, with the sockets and threads of its alternates.
pub(super) struct Stun {
    server: Arc<Server>,
    stop: Arc<AtomicBool>,
    further: Vec<(Arc<UdpPort>, JoinHandle<()>)>,
}

/// What all its sockets share.
struct Server {
    sockets: Vec<Socket>,
    /// The main port.
    port: u16,
    /// The other port, if it is open.
    other_port: Option<u16>,
    /// The main address of each IP version that is known.
    main: Vec<IpAddr>,
    /// Further addresses of this host.
    alternate: Vec<IpAddr>,
    limit: Mutex<Limit>,
    answered: AtomicU64,
    ignored: AtomicU64,
}

struct Socket {
    port: Arc<UdpPort>,
    number: u16,
    /// The only address it sends from; all of them where there is none.
    address: Option<IpAddr>,
}

impl Stun {
    /// Opens what the configuration adds to `main`, and answers there. What comes to `main` must be given to
    /// [`Self::sink`]. Further addresses are opened with the first address of their version that is listened on.
    pub(super) fn open(main: &Arc<UdpPort>, config: &Config) -> Result<Self, StartError> {
        let (address, number) = (main.local_addr().ip(), main.local_port());
        let own = (!address.is_unspecified()).then_some(address);
        let mut sockets = vec![Socket { port: Arc::clone(main), number, address: own }];
        let is_first = |ip: &IpAddr| {
            let of_version = |at: &&SocketAddr| at.ip().is_unspecified() || at.is_ipv4() == ip.is_ipv4();
            let first = config.listen.iter().find(of_version);
            first.is_none_or(|first| first.ip() == address && [0, number].contains(&first.port()))
        };
        let alternate: Vec<_> = config.stun.alternate_addresses.iter().copied().filter(is_first).collect();
        let mut other_port = None;
        if let Some((port, insist)) = config.stun.port().filter(|(port, _)| *port != number) {
            match open(SocketAddr::new(address, port)) {
                Ok(socket) => {
                    sockets.push(socket);
                    other_port = Some(port);
                }
                Err(error) if insist => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "without the alternate STUN port, devices learn less of their NATs")
                }
            }
        }
        // A socket on every address has the alternate ones already.
        if own.is_some() {
            for ip in &alternate {
                for port in [Some(number), other_port].into_iter().flatten() {
                    sockets.push(open(SocketAddr::new(*ip, port))?);
                }
            }
        }
        let main = own.into_iter().chain(config.public.iter().map(SocketAddr::ip)).collect();
        let limit = Mutex::new(Limit::new(Instant::now()));
        let (answered, ignored) = Default::default();
        let server =
            Arc::new(Server { sockets, port: number, other_port, main, alternate, limit, answered, ignored });
        Self { server, stop: Arc::default(), further: Vec::new() }.start()
    }

    /// Where the main port's STUN messages go.
    pub(super) fn sink(&self) -> Arc<dyn StunSink> {
        Arc::new(Main(Arc::clone(&self.server)))
    }

    fn start(mut self) -> Result<Self, StartError> {
        for socket in self.server.sockets.iter().skip(1) {
            let (server, stop) = (Arc::clone(&self.server), Arc::clone(&self.stop));
            let (port, number) = (Arc::clone(&socket.port), socket.number);
            let work = move || serve(&port, number, &server, &stop);
            let thread = std::thread::Builder::new().name("cyphonic-stun".to_owned()).spawn(work);
            self.further.push((Arc::clone(&socket.port), thread.map_err(StartError::Thread)?));
        }
        Ok(self)
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (port, thread) in self.further.drain(..) {
            port.wake();
            if thread.join().is_err() {
                tracing::error!("the STUN server's thread panicked");
            }
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (answered, ignored) = (count(&self.server.answered), count(&self.server.ignored));
        tracing::info!(answered, ignored, "STUN stopped");
    }
}

fn open(address: SocketAddr) -> Result<Socket, StartError> {
    // The unspecified IPv6 address means both versions, also on hosts without IPv6.
    let every = address.ip().is_unspecified() && address.is_ipv6();
    let port = if every { UdpPort::bind(address.port()) } else { UdpPort::bind_to(address) };
    let port = Arc::new(port.map_err(|source| StartError::Bind { address, source })?);
    let own = (!address.ip().is_unspecified()).then_some(address.ip());
    Ok(Socket { port, number: address.port(), address: own })
}

/// Answers what comes to one of the further sockets, until `stop`.
fn serve(port: &UdpPort, number: u16, server: &Server, stop: &AtomicBool) {
    let mut batch = RecvBatch::new(BATCH);
    while !stop.load(Ordering::Relaxed) {
        let received = match port.recv_batch(&mut batch) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.wait(Some(WAIT)).map(drop),
            Err(error) if udp::is_passing(&error) => Ok(()),
            received => received.map(drop),
        };
        if let Err(error) = received {
            tracing::error!(%error, port = number, "STUN is no longer answered here");
            return;
        }
        // None, where there was nothing to receive.
        for message in batch.messages_mut() {
            for datagram in message.payload.chunks(message.stride).filter(|datagram| is_stun(datagram)) {
                server.answer(number, message.from, message.local_ip, datagram);
            }
        }
    }
}

/// The main port's end.
struct Main(Arc<Server>);

impl StunSink for Main {
    fn deliver(&self, from: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]) {
        self.0.answer(self.0.port, from, local_ip, datagram);
    }
}

impl Server {
    fn answer(&self, port: u16, from: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]) {
        let sent = self.try_answer(port, from, local_ip, datagram).is_some();
        let counter = if sent { &self.answered } else { &self.ignored };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn try_answer(
        &self,
        port: u16,
        from: SocketAddr,
        local_ip: Option<IpAddr>,
        datagram: &[u8],
    ) -> Option<()> {
        let own = local_ip.or_else(|| self.main.iter().copied().find(|ip| same_version(*ip, from.ip())))?;
        if !sync::lock(&self.limit).admit(Instant::now(), from.ip()) {
            return None;
        }
        let other_port = if port == self.port { self.other_port } else { Some(self.port) };
        let site =
            Site { arrived: SocketAddr::new(own, port), other_address: self.other_address(own), other_port };
        let reply = server::reply(datagram, from, &site).ok()?;
        let source = site.other_address.filter(|_| reply.change_address).unwrap_or(own);
        let source_port = site.other_port.filter(|_| reply.change_port).unwrap_or(port);
        let has = |socket: &&Socket| {
            socket.number == source_port && socket.address.is_none_or(|address| address == source)
        };
        let socket = self.sockets.iter().find(has)?;
        let transmit = Transmit { src_ip: Some(source), ..Transmit::new(reply.to, &reply.message) };
        socket.port.send(&transmit).ok()
    }

    /// From an alternate address the other one is the main one.
    fn other_address(&self, own: IpAddr) -> Option<IpAddr> {
        let candidates = if self.alternate.contains(&own) { &self.main } else { &self.alternate };
        candidates.iter().copied().find(|ip| *ip != own && same_version(*ip, own))
    }
}

fn same_version(a: IpAddr, b: IpAddr) -> bool {
    a.to_canonical().is_ipv4() == b.to_canonical().is_ipv4()
}
