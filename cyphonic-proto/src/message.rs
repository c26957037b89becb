//! The control messages (schema/cyphonic.proto) and their framing on a stream.
//!
//! On the wire each message is a QUIC variable-length integer with its byte count, then the protobuf encoding
//! of `Message`. [`decode`] bounds the size before anything is allocated. What was decoded is still only
//! well-formed: the machines check every field they use, with [`field`].

pub mod endpoint;
pub mod field;
mod framing;

#[expect(missing_docs, reason = "generated; the schema is the documentation")]
#[allow(unreachable_pub, reason = "generated")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/cyphonic.v1.rs"));
}

use std::fmt;
use std::time::Duration;

pub use framing::{DecodeError, MAX_MESSAGE_BYTES, decode, encode, frame_length};
pub use wire::message::Body as Message;
pub use wire::{
    AccessConfirmation, AccessNotice, AccessRule, AccessRules, AgentCache, BindingRequest, BindingResponse,
    BindingRestore, DirectionRequest, Endpoint, EnrolRequest, EnrolResponse, FamilyFindings, Filtering,
    Findings, FollowRequest, FollowResponse, LoginRequest, LoginResponse, Mapping, Member, Observation,
    ObservationRequest, ObservationResponse, OverlayRequest, OverlayResponse, OverlayRule, PeerPlace,
    Refusal, RefusalCode, RegistrationRequest, RegistrationResponse, Relay, RelayLatency, RenewRequest,
    RenewResponse, RevocationConfirmation, RevocationNotice, RouteConfirmation, RouteDirection, RouteKind,
    RouteWithdrawal, Standby, TunnelOffer, TunnelRequest, TunnelResponse,
};
use zeroize::Zeroize;

/// Most names in one RevocationNotice: however long they are, it fits a message.
pub const NAMES_A_NOTICE: usize = 128;

/// Longest reason kept or sent, in bytes.
pub const MAX_REASON: usize = cyphonic_common::limits::MAX_REASON;

/// Most peers that a node asks for with one registration.
pub const MAX_ASKED_FOR: usize = 16;

impl Message {
    /// The message's name in the schema, for logs and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::EnrolRequest(_) => "EnrolRequest",
            Self::EnrolResponse(_) => "EnrolResponse",
            Self::LoginRequest(_) => "LoginRequest",
            Self::LoginResponse(_) => "LoginResponse",
            Self::RenewRequest(_) => "RenewRequest",
            Self::RenewResponse(_) => "RenewResponse",
            Self::RegistrationRequest(_) => "RegistrationRequest",
            Self::RegistrationResponse(_) => "RegistrationResponse",
            Self::DirectionRequest(_) => "DirectionRequest",
            Self::RouteDirection(_) => "RouteDirection",
            Self::RouteConfirmation(_) => "RouteConfirmation",
            Self::RouteWithdrawal(_) => "RouteWithdrawal",
            Self::RevocationNotice(_) => "RevocationNotice",
            Self::RevocationConfirmation(_) => "RevocationConfirmation",
            Self::AccessNotice(_) => "AccessNotice",
            Self::AccessConfirmation(_) => "AccessConfirmation",
            Self::BindingRequest(_) => "BindingRequest",
            Self::BindingResponse(_) => "BindingResponse",
            Self::BindingRestore(_) => "BindingRestore",
            Self::ObservationRequest(_) => "ObservationRequest",
            Self::ObservationResponse(_) => "ObservationResponse",
            Self::FollowRequest(_) => "FollowRequest",
            Self::FollowResponse(_) => "FollowResponse",
            Self::OverlayRequest(_) => "OverlayRequest",
            Self::OverlayResponse(_) => "OverlayResponse",
            Self::TunnelRequest(_) => "TunnelRequest",
            Self::TunnelResponse(_) => "TunnelResponse",
            Self::TunnelOffer(_) => "TunnelOffer",
            Self::Refusal(_) => "Refusal",
        }
    }
}

impl Refusal {
    /// A refusal that asking again will not change.
    pub fn new(code: RefusalCode, reason: impl fmt::Display) -> Self {
        Self { code: code.into(), reason: bounded(&reason.to_string()), retry_after_ms: 0 }
    }

    /// A refusal that may be another answer after `wait`.
    pub fn retry(code: RefusalCode, reason: impl fmt::Display, wait: Duration) -> Self {
        let retry_after_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1);
        Self { retry_after_ms, ..Self::new(code, reason) }
    }

    /// How long to wait before asking again, if that may help; at most a minute.
    pub fn retry_after(&self) -> Option<Duration> {
        (self.retry_after_ms > 0).then(|| Duration::from_millis(u64::from(self.retry_after_ms.min(60_000))))
    }

    /// The reason as it may be shown: bounded, without control characters.
    pub fn shown_reason(&self) -> String {
        bounded(&self.reason)
    }
}

/// The start of `text` that fits [`MAX_REASON`], without control characters: it may come from another machine
/// and go to a terminal.
pub fn bounded(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > MAX_REASON {
            break;
        }
        out.push(c);
    }
    out
}

impl RouteKind {
    /// The kind in a person's words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Direct => "direct",
            Self::ResponderInitiated => "responder-initiated",
            Self::HolePunch => "hole punch",
            Self::Relay => "relay",
        }
    }
}

impl fmt::Debug for RouteDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteDirection")
            .field("setup_id", &data_encoding::HEXLOWER.encode(&self.setup_id))
            .field("kind", &self.kind())
            .field("dial", &self.dial)
            .field("peer_fqdn", &self.peer_fqdn)
            .field("peer_endpoints", &self.peer_endpoints)
            .field("relay", &self.relay)
            .field("initiator", &self.initiator)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

impl Drop for SecretBytes<'_> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Wipes a message's secret field when the borrow ends.
pub struct SecretBytes<'a>(&'a mut Vec<u8>);

impl RouteDirection {
    /// Takes the tunnel key out and wipes it from the message; `None` where it has not 32 bytes.
    pub fn take_tunnel_key(&mut self) -> Option<zeroize::Zeroizing<[u8; 32]>> {
        let bytes = SecretBytes(&mut self.tunnel_key);
        <[u8; 32]>::try_from(bytes.0.as_slice()).ok().map(zeroize::Zeroizing::new)
    }
}

impl fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("protocol_version", &self.protocol_version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BindingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindingResponse")
            .field("connection_id", &data_encoding::HEXLOWER.encode(&self.connection_id))
            .field("peer_connection_id", &data_encoding::HEXLOWER.encode(&self.peer_connection_id))
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BindingRestore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindingRestore").field("context", &self.context).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let direction = RouteDirection { tunnel_key: vec![0xab; 32], ..RouteDirection::default() };
        let enrol = EnrolRequest { token_secret: vec![0xab; 32], ..EnrolRequest::default() };
        let text = format!("{:?} {:?}", Message::RouteDirection(direction), enrol);
        assert!(!text.contains("171") && !text.contains("abab"), "{text}");
    }

    #[test]
    fn the_tunnel_key_is_wiped_when_taken() {
        let mut direction = RouteDirection { tunnel_key: vec![7; 32], ..RouteDirection::default() };
        assert_eq!(*direction.take_tunnel_key().unwrap(), [7; 32]);
        assert!(direction.tunnel_key.is_empty());
        assert!(direction.take_tunnel_key().is_none());
    }

    #[test]
    fn a_reason_from_outside_is_bounded_and_has_no_control_characters() {
        assert_eq!(bounded("a\u{1b}[31m\nb"), "a[31mb");
        let long = "ä".repeat(400);
        assert_eq!(bounded(&long).len(), MAX_REASON);
    }
}
