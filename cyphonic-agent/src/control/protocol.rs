//! One request and one reply per line, each a JSON object.
//!
//! ```text
//! → {"v":1,"op":"resolve","name":"press-7.plant.cyphonic.internal"}
//! ← {"v":1,"ok":{"address":"fd12:…","took_ms":4.1}}
//! ← {"v":1,"error":{"code":"peer-offline","message":"the device is offline: …"}}
//! ```
//!
//! Versioning: `v` names this form. Unknown fields are ignored, an unknown `op` is answered
//! `unknown-operation`, so an older daemon and a newer command understand each other as far as both can.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ResetTarget;
use super::report::DnsReport;
use crate::dns::ResolveError;

/// The version of this form.
pub const PROTOCOL_VERSION: u32 = 1;

/// A longer line closes the connection. A status report of a thousand peers stays far below a reply's bound.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// The bound on what a client accepts as a reply.
pub(super) const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Answered by [`VersionInfo`].
    Version,
    /// Answered by [`super::StatusReport`].
    Status,
    /// Sets a tunnel up if need be; answered by [`Resolved`].
    Resolve {
        /// A full name, or the part of it before the zone.
        name: String,
    },
    /// Takes tunnels down; answered by [`ResetDone`].
    Reset {
        /// Which.
        target: ResetTarget,
    },
    /// Answered by [`DnsStatus`].
    DnsStatus,
    /// Reads the settings again; answered by [`Reloaded`].
    Reload,
    /// Stops the daemon; answered by `null` before it stops.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) v: u32,
    #[serde(flatten)]
    pub(super) request: Request,
}

/// One reply, with its value still as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// [`PROTOCOL_VERSION`].
    pub v: u32,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "present")]
    pub ok: Option<Value>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Failure>,
}

/// `"ok": null` is an answer, its absence is none.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Reply {
    pub(super) fn ok(value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Self { v: PROTOCOL_VERSION, ok: Some(value), error: None },
            Err(error) => {
                Self::failed(FailureCode::Internal, format!("the answer cannot be written: {error}"))
            }
        }
    }

    pub(super) fn failed(code: FailureCode, message: impl Into<String>) -> Self {
        Self { v: PROTOCOL_VERSION, ok: None, error: Some(Failure { code, message: message.into() }) }
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For scripts.
    pub code: FailureCode,
    /// For people.
    pub message: String,
}

/// Stable names of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// Not a request of this form.
    Malformed,
    /// Another version of the form.
    Version,
    /// An `op` this daemon does not know.
    UnknownOperation,
    /// The asker is neither root nor of the socket's group.
    NotAllowed,
    /// Too many clients at once.
    Busy,
    /// No device has this name.
    NoSuchPeer,
    /// The device is not connected.
    PeerOffline,
    /// No route joins the two networks.
    NoRoute,
    /// The NMS or the peer refused.
    Refused,
    /// This node is not connected to its cloud.
    NotConnected,
    /// Nobody answered in time.
    TimedOut,
    /// The settings are wrong.
    Settings,
    /// The daemon is starting or stopping.
    Unavailable,
    /// The daemon's own failure.
    Internal,
    /// A code of a newer daemon.
    #[serde(other)]
    Unknown,
}

impl From<&ResolveError> for FailureCode {
    fn from(error: &ResolveError) -> Self {
        match error {
            ResolveError::NoSuchPeer => Self::NoSuchPeer,
            ResolveError::PeerOffline(_) => Self::PeerOffline,
            ResolveError::NoRoute(_) => Self::NoRoute,
            ResolveError::Refused(_) => Self::Refused,
            ResolveError::NotConnected(_) => Self::NotConnected,
            ResolveError::TimedOut(_) => Self::TimedOut,
            ResolveError::Overloaded(_) => Self::Busy,
            ResolveError::Internal(_) => Self::Internal,
        }
    }
}

/// Answer to [`Request::Version`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The daemon's version.
    pub version: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol: u32,
}

/// Answer to [`Request::Resolve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// The full name.
    pub name: String,
    /// Its virtual address.
    pub address: Ipv6Addr,
    /// How long it took, with the set-up where one was needed.
    pub took_ms: f64,
}

/// Answer to [`Request::Reset`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetDone {
    /// How many tunnels were taken down.
    pub tunnels: usize,
}

/// Answer to [`Request::Reload`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    /// Keys that have changed and are read at the start only.
    pub needs_restart: Vec<String>,
}

/// Answer to [`Request::DnsStatus`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsStatus {
    /// The zone.
    pub zone: String,
    /// The server and the host's resolver.
    #[serde(flatten)]
    pub dns: DnsReport,
}

/// Reads one request line.
pub(super) fn parse(line: &[u8]) -> Result<Request, Failure> {
    let failure = |code, message: String| Failure { code, message };
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        failure(FailureCode::Malformed, format!("not a JSON object on one line: {error}"))
    })?;
    let (Some(v), Some(op)) =
        (value.get("v").and_then(Value::as_u64), value.get("op").and_then(Value::as_str))
    else {
        return Err(failure(FailureCode::Malformed, "a request is an object with `v` and `op`".into()));
    };
    if v != u64::from(PROTOCOL_VERSION) {
        return Err(failure(
            FailureCode::Version,
            format!(
                "this daemon speaks version {PROTOCOL_VERSION} of the control protocol, not {v}: use the command of the same release"
            ),
        ));
    }
    let op: String = op.chars().take(40).collect();
    serde_json::from_value::<Envelope>(value).map(|envelope| envelope.request).map_err(|error| {
        let message = error.to_string();
        if message.contains("unknown variant") {
            failure(FailureCode::UnknownOperation, format!("this daemon does not know the operation {op:?}"))
        } else {
            failure(FailureCode::Malformed, format!("operation {op:?}: {message}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip() {
        for request in [
            Request::Version,
            Request::Status,
            Request::Resolve { name: "a".into() },
            Request::Reset { target: ResetTarget::All },
            Request::Reset { target: ResetTarget::Peer("a".into()) },
            Request::DnsStatus,
            Request::Reload,
            Request::Shutdown,
        ] {
            let line =
                serde_json::to_vec(&Envelope { v: PROTOCOL_VERSION, request: request.clone() }).unwrap();
            assert_eq!(parse(&line).unwrap(), request);
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        for (line, code) in [
            (&b""[..], FailureCode::Malformed),
            (b"\xff\xfe", FailureCode::Malformed),
            (b"[]", FailureCode::Malformed),
            (b"{\"op\":\"status\"}", FailureCode::Malformed),
            (b"{\"v\":1}", FailureCode::Malformed),
            (b"{\"v\":1,\"op\":\"resolve\"}", FailureCode::Malformed),
            (b"{\"v\":1,\"op\":\"resolve\",\"name\":7}", FailureCode::Malformed),
            (b"{\"v\":2,\"op\":\"status\"}", FailureCode::Version),
            (b"{\"v\":1,\"op\":\"dance\"}", FailureCode::UnknownOperation),
        ] {
            assert_eq!(parse(line).unwrap_err().code, code, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert_eq!(parse(b"{\"v\":1,\"op\":\"status\",\"later\":[1]}").unwrap(), Request::Status);
    }

    #[test]
    fn unknown_failure_codes_are_still_failures() {
        let reply: Reply =
            serde_json::from_str("{\"v\":1,\"error\":{\"code\":\"new\",\"message\":\"m\"}}").unwrap();
        assert_eq!(reply.error.unwrap().code, FailureCode::Unknown);
    }
}
