//! The detour: where a network passes no UDP, the same datagrams over TLS and TCP.
//!
//! ```text
//! node's UDP port ⇄ local socket ⇄ TLS over TCP ⇄ local socket ⇄ service's UDP port
//!                   └──── Detour (agent) ────┘   └─ DetourServer (cloud) ┘
//! ```
//!
//! At each end a UDP socket on loopback stands for the far end, so that QUIC, tunnels and relay legs see
//! nothing but UDP addresses, and nothing of them is changed. QUIC inside proves who is at the other end, as
//! it does without the detour: whoever runs the detour can do no more than a router on the way.
//!
//! **Invariants.** Each end sends to one UDP port, fixed before the connection begins: the stream cannot name
//! another, so it is no open proxy. Nothing grows: where TCP is slower than what arrives, the kernel's
//! bounded queue of the local socket drops, as any router's would. Strangers may stay for the time of an
//! enrolment only.

mod admission;
mod client;
mod files;
mod frame;
mod local;
mod pump;
mod race;
mod server;
mod tls;

pub use client::{Detour, DetourError};
pub(crate) use client::{INSIDE_TIMEOUT, Target, dial};
pub(crate) use race::race;
pub use server::{DetourCertificates, DetourServer};
pub use tls::DetourTls;
pub(crate) use tls::{enrolment_tls, service_tls};

/// Bytes that TCP may hold unsent. More would only wait: what waits further up can still be dropped.
const UNSENT: u32 = 128 * 1024;

/// Prepares an open TCP connection.
fn prepare(tcp: &tokio::net::TcpStream) -> std::io::Result<()> {
    // A datagram that waits for more bytes to keep it company is late.
    tcp.set_nodelay(true)?;
    // Slower without, not wrong.
    if let Err(error) = socket2::SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT) {
        tracing::debug!(%error, "the kernel keeps its own limit of unsent bytes");
    }
    Ok(())
}
