//! The asynchronous shell that agent and cloud share: QUIC over the node's one UDP port.
//!
//! A node has one UDP port for everything (`docs/protocol.md`). A data-plane worker receives on it and hands
//! what is not tunnel data to the [`mux::Mux`], which is the socket that quinn believes it owns. On top of
//! it:
//!
//! - [`tls`]: who may be at the other end. Certificates chain to the overlay's root and carry role, name and
//!   network; nothing is read from a connection before that was checked.
//! - [`clock`]: what time it is where certificates are judged.
//! - [`Transport`]: dials services and peers, accepts connections, limits handshakes.
//! - [`Connection`]: exchanges (one request, one answer, one stream each) and DATAGRAMs.
//! - [`detour`]: the same datagrams over TLS and TCP, where a network passes no UDP.
//! - [`ArrivingPeer`]: a peer from its first packets until it has proved who it is.
//! - [`descriptors`], [`logging`], [`metrics`], [`signals`] and [`settings`]: what both daemons ask of the
//!   system for themselves, what they log, in which form they tell what there is to measure, and how they
//!   end.
//! - [`enrol`]: the one connection that a device makes before it has a certificate.
//! - [`mux`]: also knows *relayed addresses*: handshakes between peers that travel as DATAGRAMs inside a
//!   connection to a TRS look to quinn like packets to an address of the discard prefix (RFC 6666).
//!
//! Architecture invariant: this crate decides nothing. What to connect to, what to ask and what an answer
//! means is said by the state machines of `cyphonic-proto`.

mod carry;
pub mod clock;
mod config;
pub mod connection;
pub mod descriptors;
pub mod detour;
pub mod dial;
pub mod enrol;
mod handshakes;
mod legs;
pub mod logging;
pub mod metrics;
pub mod mux;
mod peer;
pub mod quota;
mod race;
mod resets;
pub mod settings;
pub mod signals;
pub mod tls;
mod transport;

pub use clock::Clock;
pub use connection::{Connection, ExchangeError, Responder};
pub use detour::{Detour, DetourCertificates, DetourError, DetourServer, DetourTls};
pub use dial::DialError;
pub use legs::RelayedAddress;
pub use mux::Mux;
pub use peer::ArrivingPeer;
pub use resets::ResetSink;
pub use tls::{ClientTls, Credentials, ServerTls, TlsError, warm_up};
pub use transport::{Incoming, Transport, TransportError};
