//! What a node asks of its shell, and how its questions end.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::cache::CachedState;
use super::mtu::PathMtu;
use super::paths::CandidateSet;
use crate::ConnectionId;
use crate::access::OverlayAccess;
use crate::id::{ExchangeId, PeerConnectionId, QueryId, SetupId, TunnelId};
use crate::message::{Message, Refusal, RefusalCode};
use crate::trs::RESET_TOKEN_LEN;
use crate::tunnel::{Secret, Suite};

/// A service that the node keeps a connection to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Authentication Service.
    As,
    /// Node Management Service.
    Nms,
    /// The Tunnel Relay Service of this name.
    Trs(String),
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As => f.write_str("AS"),
            Self::Nms => f.write_str("NMS"),
            Self::Trs(name) => write!(f, "TRS {name}"),
        }
    }
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A device's name, in any case, with or without the trailing dot.
    Name(String),
    /// A device's virtual address.
    Address(Ipv6Addr),
}

/// How the peers' own connection travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerVia {
    /// Straight: the addresses to try, all at once, best first; in reports, the one address that the peer
    /// has.
    Direct(Vec<SocketAddr>),
    /// As DATAGRAMs of a context on the connection to a TRS ([`crate::relayed`]).
    Relay {
        /// The TRS's name.
        trs: String,
        /// The context of this node's leg.
        context: u64,
    },
}

/// What the dataplane needs for a tunnel.
#[derive(Clone, Debug)]
pub struct TunnelParameters {
    /// The tunnel.
    pub id: TunnelId,
    /// The set-up that it came of. Of a peer's tunnels that may send, that of the latest set-up does,
    /// whichever was installed last.
    pub setup: SetupId,
    /// The peer's name.
    pub peer_fqdn: String,
    /// The peer's virtual address: inner packets to it are sent here, and only packets from it are accepted.
    pub peer: Ipv6Addr,
    /// By which the peer's packets arrive.
    pub local_cid: ConnectionId,
    /// With which packets to the peer are sealed.
    pub remote_cid: ConnectionId,
    /// Where packets go.
    pub remote: SocketAddr,
    /// What stands on the wire: the peer's leg at the TRS, or `remote_cid` when direct.
    pub wire_cid: ConnectionId,
    /// What protects the packets.
    pub suite: Suite,
    /// Protects what is sent.
    pub send: Secret,
    /// Opens what is received.
    pub recv: Secret,
    /// Largest inner packet that applications are to send at first. Nothing is known of the path yet: larger
    /// datagrams than 1,200 bytes of UDP payload are to be sent only after [`Action::SetMtu`].
    pub inner_mtu: u16,
    /// False at the listening end: the peer may not have its keys yet, so nothing is sent (but held) until
    /// the first authenticated packet arrives. The dialling end sends one at once.
    pub confirmed: bool,
    /// Relayed: what ends a stateless reset by which the TRS says that it has lost the peer's leg; to be
    /// reported with [`Node::handle_relay_reset`](super::Node::handle_relay_reset).
    pub relay_reset: Option<[u8; RESET_TOKEN_LEN]>,
}

/// What a tunnel is asked to send apart from inner packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelControl {
    /// Keeps mappings alive.
    Ping,
    /// Asks for a sign of life on the current path; answered through `handle_path_response`.
    PathChallenge([u8; 8]),
    /// Asks for a sign of life on another path, likewise.
    Probe {
        /// Where to.
        remote: SocketAddr,
        /// What stands on the wire there.
        wire_cid: ConnectionId,
        /// What the answer echoes.
        data: [u8; 8],
    },
    /// Tells the peer where this end may be reached.
    Candidates(CandidateSet),
}

/// Why a tunnel is closed; the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Not used for long.
    Idle = 0,
    /// The node stops.
    Shutdown = 1,
    /// The operator asked.
    Reset = 2,
    /// A newer tunnel took over.
    Superseded = 3,
    /// The peer's device is a member no longer.
    Revoked = 4,
}

/// What the shell must do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Look at the network with [`Probe`](crate::netcheck::Probe)s, one of each IP version; report with
    /// `handle_findings` and `handle_latencies` whenever more is known. A newer one of these replaces an
    /// older one.
    Netcheck {
        /// The services' STUN servers, the preferred ones first.
        servers: Vec<SocketAddr>,
        /// The node's own addresses, with its port.
        own: Vec<SocketAddr>,
    },
    /// Open a connection; report with `handle_connected` or `handle_connect_failed`.
    Connect {
        /// Which service.
        service: Service,
        /// Where it is: try all, in this order.
        addresses: Vec<SocketAddr>,
        /// The name that its certificate must have, with the role of `service`.
        name: String,
    },
    /// Open the same by TLS over TCP ([`crate::alpn::DETOUR`]), where UDP does not answer; report with
    /// `handle_detour_connected` or `handle_detour_failed`. The first of both dials that stands is reported,
    /// and the other given up.
    ConnectByDetour {
        /// Which service.
        service: Service,
        /// Where it is: try all, in this order.
        addresses: Vec<SocketAddr>,
        /// The name that its certificate must have, with the role of `service`.
        name: String,
    },
    /// Open a connection over UDP beside the one that stands over TCP; report as for [`Action::Connect`]. The
    /// one that stands is kept until then, and closed by the service once it has been replaced.
    LeaveDetour {
        /// Which service.
        service: Service,
        /// Where it is: try all, in this order.
        addresses: Vec<SocketAddr>,
        /// The name that its certificate must have, with the role of `service`.
        name: String,
    },
    /// Close the connection, or give up opening it, over UDP and TCP. Its end is not to be reported.
    Disconnect {
        /// Which service.
        service: Service,
    },
    /// Send a request on a stream of its own; report with `handle_response` or `handle_exchange_failed`.
    Request {
        /// Names the exchange.
        exchange: ExchangeId,
        /// To which service.
        service: Service,
        /// The request.
        message: Message,
    },
    /// Nobody waits for this exchange any more: reset its stream. Its end is not to be reported.
    CancelRequest {
        /// The exchange.
        exchange: ExchangeId,
    },
    /// Answer a request that came through `handle_request`.
    Respond {
        /// The exchange.
        exchange: ExchangeId,
        /// The answer.
        message: Message,
    },
    /// Open a connection to a peer (ALPN [`crate::alpn::PEER`]), verify that its chain ends in the network's
    /// root, read its TunnelOffer from a unidirectional stream, and report that with `handle_peer_offer`,
    /// or `handle_dial_failed`.
    DialPeer {
        /// Names the dial.
        setup: SetupId,
        /// The peer's name, as its certificate must have it.
        peer_fqdn: String,
        /// The peer's virtual address, as its certificate must have it.
        peer_address: Ipv6Addr,
        /// How.
        via: PeerVia,
    },
    /// Send the request to the peer that was dialled, and report the answer with `handle_peer_response`. Then
    /// close the connection.
    AskPeer {
        /// The dial.
        setup: SetupId,
        /// The TunnelRequest.
        request: Message,
    },
    /// Give up the dial, if it still stands. Its end is not to be reported.
    CancelDial {
        /// The dial.
        setup: SetupId,
    },
    /// Offer a tunnel to the one at the other end of a connection, at once and whoever that is, on a
    /// unidirectional stream. Then wait for it to prove who it is, and report its first request with
    /// `handle_peer_request`, or `handle_peer_left`.
    OfferPeer {
        /// The connection.
        connection: PeerConnectionId,
        /// The TunnelOffer.
        offer: Message,
    },
    /// Close a peer's connection, if it still stands. Its end is not to be reported.
    ClosePeer {
        /// The connection.
        connection: PeerConnectionId,
    },
    /// Answer a peer's request: TunnelResponse or Refusal. The peer closes the connection.
    RespondPeer {
        /// The connection it came on.
        connection: PeerConnectionId,
        /// The answer.
        message: Message,
    },
    /// Packets of a tunnel that is not installed yet may arrive by this connection ID: the dataplane holds a
    /// few.
    ExpectTunnel {
        /// By which they arrive.
        local_cid: ConnectionId,
    },
    /// There will be no tunnel with this connection ID.
    ForgetTunnel {
        /// By which its packets would have arrived.
        local_cid: ConnectionId,
    },
    /// Send one small datagram to each address from the node's port, to open NATs and firewalls on the way.
    Punch {
        /// Where to.
        remotes: Vec<SocketAddr>,
    },
    /// The host's addresses or routes have changed: every connection sends at once, from wherever the host
    /// now sends, and with a connection ID that was not used before (RFC 9000 §9).
    Migrate,
    /// Give the tunnel to the dataplane. It is in place when the next action is carried out.
    InstallTunnel(Box<TunnelParameters>),
    /// Take the tunnel from the dataplane.
    RemoveTunnel {
        /// The tunnel.
        id: TunnelId,
        /// Tell the peer first.
        close: Option<CloseCode>,
    },
    /// Send the tunnel's packets elsewhere.
    ///
    /// Nothing is known of that path: larger datagrams than 1,200 bytes are sent only after the next
    /// [`Action::SetMtu`].
    SetPath {
        /// The tunnel.
        id: TunnelId,
        /// Where packets go.
        remote: SocketAddr,
        /// What stands on the wire.
        wire_cid: ConnectionId,
    },
    /// The tunnel's relay is reached at this address now: its stateless resets come from there.
    ExpectReset {
        /// The tunnel.
        id: TunnelId,
        /// The relay.
        from: SocketAddr,
    },
    /// The tunnel's path carries this, as far as is known now.
    SetMtu {
        /// The tunnel.
        id: TunnelId,
        /// What.
        mtu: PathMtu,
    },
    /// Send a PATH_CHALLENGE that is padded to this size; report with `handle_path_response`, or
    /// `handle_too_big`.
    ProbeMtu {
        /// The tunnel.
        id: TunnelId,
        /// Where to.
        remote: SocketAddr,
        /// What stands on the wire.
        wire_cid: ConnectionId,
        /// Bytes of UDP payload.
        size: u16,
        /// The challenge.
        data: [u8; 8],
    },
    /// Send a control packet through the tunnel.
    SendControl {
        /// The tunnel.
        id: TunnelId,
        /// What.
        control: TunnelControl,
    },
    /// A question has its answer.
    Answer {
        /// The question.
        query: QueryId,
        /// The peer's virtual address, with a tunnel in place, or why not.
        result: Result<Ipv6Addr, ResolveError>,
    },
    /// Drop the packets held for a destination and answer them as unreachable.
    DropHeld {
        /// The destination.
        dst: Ipv6Addr,
        /// Why.
        reason: ResolveError,
    },
    /// What others may open with this node is what the overlay's rules now say, as far as its own allow it.
    Restrict(OverlayAccess),
    /// Write the state where the next start finds it.
    Save(CachedState),
    /// `Node::status` has changed.
    StatusChanged,
}

/// Why a peer cannot be reached. DNS turns it into a response code and an Extended DNS Error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// The name or address is not of this overlay.
    #[error("not in this overlay's zone or prefix")]
    NotInZone,
    /// No device has it.
    #[error("no device has this name or address")]
    NoSuchPeer,
    /// The device exists but is not connected.
    #[error("the device is offline: {reason}")]
    Offline {
        /// The NMS's words.
        reason: String,
    },
    /// No route joins the two networks.
    #[error("no route to the device: {reason}")]
    NoRoute {
        /// The NMS's words, or what was tried.
        reason: String,
    },
    /// Time ran out.
    #[error("timed out while {during}")]
    TimedOut {
        /// What was under way.
        during: String,
    },
    /// A service that is needed cannot be reached.
    #[error("not connected: {why}")]
    NotConnected {
        /// Which service, and why not.
        why: String,
    },
    /// The peer, or a service on its behalf, refused.
    #[error("refused: {reason}")]
    PeerRefused {
        /// Its words.
        reason: String,
    },
    /// Whoever answered is not who was asked for.
    #[error("the peer's certificate is wrong: {what}")]
    CertificateMismatch {
        /// What does not fit.
        what: String,
    },
    /// This node's own certificate or version is not accepted.
    #[error("not allowed: {reason}")]
    NotAllowed {
        /// The service's words.
        reason: String,
    },
    /// A limit was reached.
    #[error("too many requests: {what}")]
    TooMany {
        /// Which limit.
        what: String,
    },
    /// Another end broke the protocol.
    #[error("protocol error: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
    /// The node is stopping, or the operator reset the tunnel.
    #[error("cancelled: {why}")]
    Cancelled {
        /// Why.
        why: String,
    },
}

impl ResolveError {
    /// How a question ends that was refused.
    pub(super) fn of_refusal(refusal: &Refusal) -> Self {
        let reason = refusal.shown_reason();
        match refusal.code() {
            RefusalCode::NoSuchPeer => Self::NoSuchPeer,
            RefusalCode::PeerOffline => Self::Offline { reason },
            RefusalCode::NoRoute => Self::NoRoute { reason },
            RefusalCode::NotAllowed
            | RefusalCode::Revoked
            | RefusalCode::Version
            | RefusalCode::BadToken
            | RefusalCode::KeyInUse => Self::NotAllowed { reason },
            RefusalCode::TooMany => Self::TooMany { what: reason },
            RefusalCode::Malformed => Self::Protocol { what: reason },
            RefusalCode::PeerRefused | RefusalCode::Internal | RefusalCode::Unspecified => {
                Self::PeerRefused { reason }
            }
        }
    }
}

/// What the dataplane counts for a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelActivity {
    /// Inner packets sent. Control packets do not count, or two idle ends would keep each other awake.
    pub tx_packets: u64,
    /// Packets sent that are larger than every path carries (1,200 bytes of UDP payload).
    pub tx_large: u64,
    /// Inner packets received.
    pub rx_packets: u64,
    /// When the last authenticated packet of any kind arrived.
    pub last_rx: Option<std::time::Instant>,
    /// When the last packet of any kind left on the current path.
    pub last_tx: Option<std::time::Instant>,
    /// When the first inner packet left since anything arrived, if one did.
    pub unanswered_since: Option<std::time::Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_becomes_the_error_that_says_why() {
        let reason = || "words".to_owned();
        let not_allowed = ResolveError::NotAllowed { reason: reason() };
        let refused = ResolveError::PeerRefused { reason: reason() };
        for (code, error) in [
            (RefusalCode::NoSuchPeer, ResolveError::NoSuchPeer),
            (RefusalCode::PeerOffline, ResolveError::Offline { reason: reason() }),
            (RefusalCode::NoRoute, ResolveError::NoRoute { reason: reason() }),
            (RefusalCode::NotAllowed, not_allowed.clone()),
            (RefusalCode::Revoked, not_allowed.clone()),
            (RefusalCode::Version, not_allowed.clone()),
            (RefusalCode::BadToken, not_allowed.clone()),
            (RefusalCode::KeyInUse, not_allowed),
            (RefusalCode::TooMany, ResolveError::TooMany { what: reason() }),
            (RefusalCode::Malformed, ResolveError::Protocol { what: reason() }),
            (RefusalCode::PeerRefused, refused.clone()),
            (RefusalCode::Internal, refused.clone()),
            (RefusalCode::Unspecified, refused),
        ] {
            assert_eq!(ResolveError::of_refusal(&Refusal::new(code, "words")), error, "{code:?}");
        }
    }
}
