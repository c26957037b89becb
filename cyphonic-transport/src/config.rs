//! QUIC parameters, and how each number was found.

use std::sync::Arc;
use std::time::Duration;

use cyphonic_common::ConnectionId;
use cyphonic_common::cid::CID_LEN;
use cyphonic_proto::quic::{IDLE_TIMEOUT, KEEP_ALIVE};
use cyphonic_proto::relayed;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::ConnectionIdGenerator;
use quinn_proto::crypto::{CryptoError, HmacKey};
use ring::hmac;

use crate::carry;

/// Until a round trip was measured. RFC 9002's 333 ms makes the first probe time-out a full second, which is
/// what a lost first packet would cost an application's first connection.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// What may wait unread on a stream, and on all streams of a connection: a few of the largest messages.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A handshake between peers that makes no progress for this long has failed.
const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest UDP payload of a connection to a service: what takes a packet of peers' handshakes (QUIC's
/// least size, RFC 9000 §14.1, and its context) in a DATAGRAM, whose frame has up to 9 bytes around it; the
/// packet has 29: first byte, connection ID, packet number and authentication tag. More would only be lost
/// where a path becomes narrower.
const SERVICE_MTU: u16 = LEAST_MTU + relayed::CONTEXT_LEN as u16 + 9 + (1 + CID_LEN as u16 + 4 + 16);

/// QUIC's least size (RFC 9000 §14.1).
const LEAST_MTU: u16 = 1_200;

/// Open requests a peer may have on one connection.
const MAX_EXCHANGES: u32 = 64;

/// Bytes of DATAGRAMs held for a reader that lags (relayed handshakes only, a few kilobytes each).
const DATAGRAM_BUFFER: usize = 256 * 1024;

/// Between two stateless resets. Each is smaller than what it answers, so this bounds work, not reflection;
/// after a restart, a thousand devices are told in a second.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Long-lived, between a node and AS, NMS or TRS.
    Service,
    /// Between two nodes, closed once they have set up their tunnel.
    Peer,
}

impl Purpose {
    /// Unidirectional streams that the other end may have open: for relayed packets that fit no DATAGRAM, and
    /// for the listening peer's offer.
    const fn max_notices(self) -> u32 {
        match self {
            Self::Service => carry::MAX_STREAMS,
            Self::Peer => 1,
        }
    }

    pub(crate) fn transport_config(self) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        config
            .initial_rtt(INITIAL_RTT)
            .max_concurrent_bidi_streams(VarInt::from_u32(MAX_EXCHANGES))
            .max_concurrent_uni_streams(VarInt::from_u32(self.max_notices()))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW));
        match self {
            // Asks its path, by one probe, whether it carries packets of peers' handshakes in DATAGRAMs, and
            // wants no more: a path that becomes narrower swallows requests until quinn notices,
            // but few become as narrow as that.
            Self::Service => config
                .mtu_discovery_config(Some(service_mtu_discovery()))
                // Messages and relayed packets are small: each goes out whole before the next, in their
                // order.
                .send_fairness(false)
                .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
                .keep_alive_interval(Some(KEEP_ALIVE))
                .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
                .datagram_send_buffer_size(DATAGRAM_BUFFER),
            // May travel inside DATAGRAMs of a connection to a TRS, so it stays at QUIC's smallest size.
            Self::Peer => config
                .max_idle_timeout(IdleTimeout::try_from(PEER_IDLE_TIMEOUT).ok())
                .mtu_discovery_config(None)
                .datagram_receive_buffer_size(None),
        };
        Arc::new(config)
    }
}

/// One probe, of the upper bound: no step between is worth one.
fn service_mtu_discovery() -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(SERVICE_MTU).minimum_change(SERVICE_MTU - LEAST_MTU);
    discovery
}

/// Parameters of the endpoint: 8-byte connection IDs whose first bit says "signalling".
///
/// An endpoint with a reset key that outlives its process tells, with stateless resets (RFC 9000 §10.3), what
/// was connected to it before it crashed: otherwise clients would go on for [`IDLE_TIMEOUT`] with a service
/// that knows nothing of them. The first bit of a reset's random bytes falls on either side, so the receiver
/// sees every other one; each of its probes is answered by another.
pub(crate) fn endpoint_config(reset_key: Option<&ResetKey>) -> EndpointConfig {
    let mut config = match reset_key {
        Some(key) => EndpointConfig::new(Arc::new(key.clone())),
        None => EndpointConfig::default(),
    };
    config.cid_generator(|| Box::new(SignallingCids));
    config.min_reset_interval(RESET_INTERVAL);
    // The fixed bit tells QUIC from punches and noise on the shared port (docs/protocol.md §2).
    config.grease_quic_bit(false);
    config
}

/// What the tokens of stateless resets are made from. Whoever has it can end connections.
#[derive(Clone)]
pub(crate) struct ResetKey(hmac::Key);

impl ResetKey {
    /// From a secret that outlives the process, for this purpose only.
    pub(crate) fn derive(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&secret, b"cyphonic stateless reset");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        hmac::HMAC_SHA256.digest_algorithm().output_len()
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}

/// Makes the connection IDs by which this node's QUIC connections are reached.
#[derive(Debug)]
struct SignallingCids;

impl ConnectionIdGenerator for SignallingCids {
    fn generate_cid(&mut self) -> quinn_proto::ConnectionId {
        let cid = ConnectionId::from_random_signalling(rand::random());
        quinn_proto::ConnectionId::new(cid.as_bytes())
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
