//! The server on its sockets, and the limit on what is in hand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use hickory_proto::op::{Header, HeaderCounts, Message, ResponseCode};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::answer::{answer, of_search_list, overloaded, relayed, upstream_failed};
use super::loops::{Found, Reasons};
use super::relay::{Outcome, Relay};
use super::tcp::accept_all;
use super::zone::Subject;
use super::{DnsError, Instead, LeadingBack, Resolver, Upstream, Zone};

/// Queries in hand, over both protocols, that may each wait for a set-up and hold a few kilobytes.
const MAX_IN_HAND: usize = 256;

/// Queries for other names in hand, with a socket each. They are counted apart: servers of the host that are
/// gone, which each of these waits for, are no reason that names of the overlay fail.
const MAX_RELAYED: usize = 256;

/// Where the kernel chooses the port, the one that UDP gets may be taken by TCP: so many times another is
/// tried.
const MORE_CHOICES: u32 = 15;

/// The running DNS server; stops when dropped.
pub struct DnsServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    // Both abort their tasks when dropped.
    _udp: Server<Handler>,
    _tcp: JoinSet<()>,
}

/// What the server has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsStats {
    /// Queries received.
    pub queries: u64,
    /// Of those, answered SERVFAIL.
    pub failures: u64,
    /// Of those, relayed to the host's own servers.
    pub relayed: u64,
}

#[derive(Default)]
struct Counters {
    queries: AtomicU64,
    failures: AtomicU64,
    relayed: AtomicU64,
}

struct Shared {
    zone: Zone,
    resolver: Arc<dyn Resolver>,
    relay: RwLock<Option<Arc<Relay>>>,
    reasons: Reasons,
    in_hand: Semaphore,
    relaying: Semaphore,
    counters: Counters,
}

/// What becomes of a query, whatever it came by.
pub(super) struct Handler(Arc<Shared>);

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl DnsServer {
    /// Listens on `address` (UDP and TCP; port 0 means one the kernel chooses, the same for both) and serves.
    ///
    /// # Errors
    ///
    /// When the address cannot be had. Nothing is left listening then.
    pub async fn start(
        address: SocketAddr,
        zone: Zone,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, DnsError> {
        let (udp, tcp) = bind(address, &zone).await?;
        let address = udp.local_addr().unwrap_or(address);
        let shared = Arc::new(Shared {
            zone,
            resolver,
            relay: RwLock::new(None),
            reasons: Reasons::default(),
            in_hand: Semaphore::new(MAX_IN_HAND),
            relaying: Semaphore::new(MAX_RELAYED),
            counters: Counters::default(),
        });
        let mut by_udp = Server::new(Handler(shared.clone()));
        by_udp.register_socket(udp);
        // The library's own accepts without bound, and without a pause where there are no descriptors.
        let mut by_tcp = JoinSet::new();
        by_tcp.spawn(accept_all(tcp, Arc::new(Handler(shared.clone()))));
        Ok(Self { shared, address, _udp: by_udp, _tcp: by_tcp })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The zone it serves.
    pub fn zone(&self) -> &Zone {
        &self.shared.zone
    }

    /// From now on relays what is outside the zone to these servers, or (with `None`) refuses it. Those from
    /// before are asked where all of these ask us in turn.
    pub fn set_upstream(&self, upstream: Option<Upstream>) {
        let mut relay = self.shared.relay.write().unwrap_or_else(PoisonError::into_inner);
        *relay = upstream.map(|upstream| Arc::new(Relay::after(relay.as_deref(), upstream)));
        drop(relay);
        self.shared.reasons.others();
    }

    /// Finds out which of these servers ask us in turn, now and when there is reason to, for as long as it is
    /// polled. They are not asked then.
    pub async fn watch_for_loops(&self) {
        let look = || async {
            match self.shared.relay() {
                Some(relay) => relay.look_for_loops().await,
                None => Found::Nothing,
            }
        };
        self.shared.reasons.watch(look).await;
    }

    /// Which of these servers ask us in turn, as far as is known.
    pub fn leading_back(&self) -> Option<LeadingBack> {
        self.shared.relay()?.leading_back()
    }

    /// What it has done so far.
    pub fn stats(&self) -> DnsStats {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsStats {
            queries: load(&counters.queries),
            failures: load(&counters.failures),
            relayed: load(&counters.relayed),
        }
    }
}

async fn bind(address: SocketAddr, zone: &Zone) -> Result<(UdpSocket, TcpListener), DnsError> {
    let more = if address.port() == 0 { MORE_CHOICES } else { 0 };
    for _ in 0..more {
        if let Ok(sockets) = bind_both(address, zone).await {
            return Ok(sockets);
        }
    }
    bind_both(address, zone).await
}

async fn bind_both(address: SocketAddr, zone: &Zone) -> Result<(UdpSocket, TcpListener), DnsError> {
    let failed = |address, protocol| {
        move |source| DnsError::Bind { address, protocol, zone: zone.name().to_owned(), source }
    };
    let udp = UdpSocket::bind(address).await.map_err(failed(address, "UDP"))?;
    let same = udp.local_addr().unwrap_or(address);
    let tcp = TcpListener::bind(same).await.map_err(failed(same, "TCP"))?;
    Ok((udp, tcp))
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let reply = self.0.reply(request).await;
        let metadata = reply.metadata;
        self.0.counters.queries.fetch_add(1, Ordering::Relaxed);
        if metadata.response_code == ResponseCode::ServFail {
            self.0.counters.failures.fetch_add(1, Ordering::Relaxed);
        }
        let response = MessageResponseBuilder::new(&request.queries, reply.edns.as_ref()).build(
            metadata,
            &reply.answers,
            &reply.authorities,
            [],
            &reply.additionals,
        );
        client.send_response(response).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "a DNS answer could not be sent");
            Header { metadata, counts: HeaderCounts::default() }.into()
        })
    }
}

impl Shared {
    fn relay(&self) -> Option<Arc<Relay>> {
        self.relay.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn reply(&self, request: &Request) -> Message {
        match (self.relay(), request.queries.queries()) {
            (Some(_), [question])
                if self.zone.subject(question.original().name()) == Subject::Outside
                    && self.zone.is_inside(question.original().name()) =>
            {
                of_search_list(request)
            }
            (Some(relay), [question])
                if self.zone.subject(question.original().name()) == Subject::Outside =>
            {
                if relay.comes_back(question.original()) {
                    return upstream_failed(request, "this question came back to who asked it");
                }
                self.relay_to(&relay, request).await
            }
            _ => {
                let Ok(_permit) = self.in_hand.try_acquire() else { return overloaded(request) };
                answer(&self.zone, self.resolver.as_ref(), request).await
            }
        }
    }

    async fn relay_to(&self, relay: &Relay, request: &Request) -> Message {
        let Ok(_permit) = self.relaying.try_acquire() else {
            self.reasons.failed();
            return upstream_failed(request, "too many queries wait for the host's own DNS servers");
        };
        self.counters.relayed.fetch_add(1, Ordering::Relaxed);
        let Outcome { answer, failed } = relay.ask(request).await;
        if failed {
            self.reasons.failed();
        }
        match answer {
            Some(answer) => relayed(request, answer),
            None if relay.leading_back().is_some_and(|leading| leading.instead == Instead::Nobody) => {
                upstream_failed(request, "the host's own DNS servers ask this agent in turn")
            }
            None => upstream_failed(request, "the host's own DNS servers did not answer"),
        }
    }
}
