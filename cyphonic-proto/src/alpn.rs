//! The ALPN identifiers (RFC 7301) that tell services on one port apart.

/// A device with a certificate and the AS.
pub const AS: &[u8] = b"cyphonic-as/1";
/// A device that has only a token, and the AS.
pub const ENROL: &[u8] = b"cyphonic-enrol/1";
/// A node and the NMS.
pub const NMS: &[u8] = b"cyphonic-nms/1";
/// A standby and the NMS that it follows.
pub const STANDBY: &[u8] = b"cyphonic-standby/1";
/// A node and a TRS.
pub const TRS: &[u8] = b"cyphonic-trs/1";
/// Two nodes.
pub const PEER: &[u8] = b"cyphonic-peer/1";
/// Datagrams for a service's UDP port over TLS, where a network passes no UDP.
pub const DETOUR: &[u8] = b"cyphonic-udp/1";
