//! The overlay's DNS zone, served on a loopback address.
//!
//! The server is authoritative for two zones and nothing else: the overlay's own (`cyphonic.internal`, say)
//! and the reverse zone of the overlay's /48. An AAAA query *is* the request for a tunnel:
//! [`Resolver::resolve`] returns when the data path is installed, so the program's first packet is not lost.
//! Failures answer SERVFAIL with an Extended DNS Error (RFC 8914) that tells the person at the keyboard why.
//!
//! Invariants:
//!
//! - No recursion. Outside its zones the server answers REFUSED, unless the host's resolver could only be
//!   pointed at us for *everything* (see [`crate::resolver`]): then such queries are relayed to the host's
//!   own servers.
//! - A server that asks us in turn is not asked ([`DnsServer::watch_for_loops`]).
//! - Inside its zones it never asks anyone else: a query for the overlay does not leave the host.
//! - Work in hand is bounded; above the bound queries are answered SERVFAIL at once, never queued. So are the
//!   connections of clients by TCP.

mod answer;
mod error;
mod exchange;
mod leading_back;
mod loops;
mod probe;
mod reach;
mod relay;
mod server;
mod tcp;
mod upstream;
mod zone;

use std::net::Ipv6Addr;

pub use error::{DnsError, ResolveError};
use futures_util::future::BoxFuture;
pub use leading_back::{Instead, LeadingBack};
pub use server::{DnsServer, DnsStats};
pub use upstream::Upstream;
pub use zone::{InvalidZone, Zone};

/// What the server needs from the engine.
pub trait Resolver: Send + Sync + 'static {
    /// Answers when the tunnel to `name` stands (at once when it already does), or with why it cannot.
    ///
    /// `name` is a fully qualified name inside the zone, lowercase, without the final dot, and not the zone
    /// itself. Simultaneous calls for one name share one set-up: that is the implementation's duty.
    /// Dropping the future gives up waiting, not the set-up.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>>;

    /// The name of a virtual address, when this node knows it (its own, and those of the peers it has met).
    fn name_of(&self, address: Ipv6Addr) -> Option<String>;
}
