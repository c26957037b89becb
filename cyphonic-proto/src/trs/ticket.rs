//! What a TRS makes from its persistent key: tickets and reset tokens. Both survive the process.
//!
//! A *ticket* is a leg, sealed for the TRS itself and kept by the leg's owner. A TRS that has lost its state
//! opens it and has the leg again, with the same connection IDs, so the nodes' tunnels go on. It is sealed
//! and not only signed, since it tells where the other end is. A *reset token* proves that a stateless reset
//! comes from this TRS.
//!
//! **Invariants.** A ticket says nothing to anybody else, and is worth nothing to any other device than its
//! owner under the key that it had. Each is sealed under a key of its own, so no nonce is ever used twice.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

pub use cyphonic_common::limits::RESET_TOKEN_LEN;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::hmac;

use crate::ConnectionId;
use crate::id::SetupId;
use crate::identity::{KeyHash, sha256};
use crate::message::endpoint;

/// Largest ticket that a node keeps.
pub const MAX_TICKET: usize = 256;

const VERSION: u8 = 1;
const SALT: usize = 16;
const TAG: usize = 16;
/// The fields of a ticket, all of fixed length.
const BODY: usize = 3 * 8 + 16 + 3 * 32 + 8 + 18 + 16;

/// What a TRS seals tickets and makes reset tokens with.
#[derive(Clone)]
pub struct TrsKeys {
    tickets: Prk,
    resets: hmac::Key,
}

impl TrsKeys {
    /// From a secret that outlives the process: the private key of the TRS's certificate. Another secret
    /// means that legs are not restored, and that nothing worse happens.
    pub fn derive(secret: &[u8]) -> Self {
        let root = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"cyphonic trs v1"), secret);
        let root = hmac::Key::new(hmac::HMAC_SHA256, root.as_ref());
        let tickets = hmac::sign(&root, b"tickets");
        let resets = hmac::sign(&root, b"resets");
        Self {
            tickets: Salt::new(HKDF_SHA256, b"").extract(tickets.as_ref()),
            resets: hmac::Key::new(hmac::HMAC_SHA256, resets.as_ref()),
        }
    }

    /// What ends a stateless reset that answers packets with this connection ID.
    pub fn reset_token(&self, cid: ConnectionId) -> [u8; RESET_TOKEN_LEN] {
        let tag = hmac::sign(&self.resets, cid.as_bytes());
        let mut token = [0; RESET_TOKEN_LEN];
        token.iter_mut().zip(tag.as_ref()).for_each(|(out, byte)| *out = *byte);
        token
    }

    /// Seals; `salt` must be random. Empty where the crypto library refuses, which leaves the leg without a
    /// ticket.
    pub(super) fn seal(&self, ticket: &Ticket, salt: [u8; SALT]) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + SALT + BODY + TAG);
        out.push(VERSION);
        out.extend_from_slice(&salt);
        let mut body = ticket.encode();
        let Some(key) = self.key(salt) else { return Vec::new() };
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let Ok(tag) = key.seal_in_place_separate_tag(nonce, Aad::from([VERSION]), &mut body) else {
            return Vec::new();
        };
        out.extend_from_slice(&body);
        out.extend_from_slice(tag.as_ref());
        out
    }

    /// The ticket, if this TRS sealed it.
    pub(super) fn open(&self, sealed: &[u8]) -> Option<Ticket> {
        let (version, rest) = sealed.split_first()?;
        if *version != VERSION || rest.len() != SALT + BODY + TAG {
            return None;
        }
        let (salt, body) = rest.split_first_chunk::<SALT>()?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let opened = self.key(*salt)?.open_in_place(nonce, Aad::from([VERSION]), &mut body).ok()?;
        Ticket::decode(opened)
    }

    fn key(&self, salt: [u8; SALT]) -> Option<LessSafeKey> {
        let info: [&[u8]; 1] = [&salt];
        let okm = self.tickets.expand(&info, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

impl fmt::Debug for TrsKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrsKeys").finish_non_exhaustive()
    }
}

/// Real time for machines that know only a clock without a date: tickets outlive the process, and so must
/// their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    at: Instant,
    unix: u64,
}

impl WallClock {
    /// It was `unix` seconds after 1970 at `at`.
    pub const fn new(at: Instant, unix: u64) -> Self {
        Self { at, unix }
    }

    pub(super) fn unix(&self, now: Instant) -> u64 {
        self.unix.saturating_add(now.saturating_duration_since(self.at).as_secs())
    }

    pub(super) fn unix_after(&self, now: Instant, wait: Duration) -> u64 {
        self.unix(now).saturating_add(wait.as_secs())
    }
}

/// A device, in a ticket and in a leg: the hash of its name, which has a fixed and smaller size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder([u8; 32]);

impl Holder {
    pub(super) fn of(fqdn: &str) -> Self {
        Self(sha256(fqdn.as_bytes()))
    }
}

/// Where a node is, and which of the TRS's addresses it talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePath {
    /// The node's address, validated by QUIC.
    pub remote: SocketAddr,
    /// The TRS's own address that the node sends to, where the system tells.
    pub local: Option<IpAddr>,
}

impl NodePath {
    /// The same with addresses in their canonical form.
    pub fn canonical(self) -> Self {
        Self { remote: endpoint::canonical(self.remote), local: self.local.map(|ip| ip.to_canonical()) }
    }
}

/// What a sealed ticket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The leg's connection ID.
    pub(super) cid: ConnectionId,
    /// That of the other end's leg.
    pub(super) partner: ConnectionId,
    pub(super) data_cid: ConnectionId,
    pub(super) setup: SetupId,
    pub(super) owner: Holder,
    pub(super) owner_key: KeyHash,
    pub(super) peer: Holder,
    /// Seconds since 1970.
    pub(super) expires: u64,
    /// Where the other end was.
    pub(super) peer_path: Option<NodePath>,
}

impl Ticket {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BODY);
        for cid in [self.cid, self.partner, self.data_cid] {
            out.extend_from_slice(cid.as_bytes());
        }
        out.extend_from_slice(&self.setup.0);
        for hash in [&self.owner.0, &self.owner_key.0, &self.peer.0] {
            out.extend_from_slice(hash);
        }
        out.extend_from_slice(&self.expires.to_be_bytes());
        // Port 0 and the unspecified address mean "not known".
        let remote = self.peer_path.map(|path| path.remote);
        let local = self.peer_path.and_then(|path| path.local);
        out.extend_from_slice(&mapped(remote.map(|remote| remote.ip())).octets());
        out.extend_from_slice(&remote.map_or(0, |remote| remote.port()).to_be_bytes());
        out.extend_from_slice(&mapped(local).octets());
        out
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut rest = body;
        let mut cid = || take(&mut rest).map(ConnectionId::from_bytes).filter(ConnectionId::is_data);
        let (cid, partner, data_cid) = (cid()?, cid()?, cid()?);
        let setup = SetupId(take(&mut rest)?);
        let owner = Holder(take(&mut rest)?);
        let owner_key = KeyHash(take(&mut rest)?);
        let peer = Holder(take(&mut rest)?);
        let expires = u64::from_be_bytes(take(&mut rest)?);
        let remote = Ipv6Addr::from_octets(take(&mut rest)?);
        let port = u16::from_be_bytes(take(&mut rest)?);
        let local = Ipv6Addr::from_octets(take(&mut rest)?);
        if !rest.is_empty() {
            return None;
        }
        let local = (!local.is_unspecified()).then(|| IpAddr::from(local).to_canonical());
        let path = NodePath { remote: SocketAddr::new(IpAddr::from(remote).to_canonical(), port), local };
        let peer_path = (port != 0).then_some(path);
        Some(Self { cid, partner, data_cid, setup, owner, owner_key, peer, expires, peer_path })
    }
}

fn mapped(ip: Option<IpAddr>) -> Ipv6Addr {
    match ip {
        None => Ipv6Addr::UNSPECIFIED,
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped(),
        Some(IpAddr::V6(v6)) => v6,
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cid(n: u8) -> ConnectionId {
        ConnectionId::from_random_data([n; 8])
    }

    fn ticket(peer_path: Option<NodePath>) -> Ticket {
        Ticket {
            cid: cid(1),
            partner: cid(2),
            data_cid: cid(3),
            setup: SetupId([4; 16]),
            owner: Holder::of("a.lab"),
            owner_key: KeyHash([5; 32]),
            peer: Holder::of("b.lab"),
            expires: 6,
            peer_path,
        }
    }

    fn paths() -> [Option<NodePath>; 4] {
        let path = |remote: &str, local: Option<&str>| {
            Some(NodePath { remote: remote.parse().unwrap(), local: local.map(|ip| ip.parse().unwrap()) })
        };
        [
            None,
            path("192.0.2.1:7000", None),
            path("192.0.2.1:7000", Some("198.51.100.1")),
            path("[2001:db8::1]:1", Some("2001:db8::2")),
        ]
    }

    #[test]
    fn what_was_sealed_is_opened_by_the_same_key_alone() {
        let keys = TrsKeys::derive(b"secret");
        for path in paths() {
            let sealed = keys.seal(&ticket(path), [9; 16]);
            assert!(sealed.len() <= MAX_TICKET, "{}", sealed.len());
            assert_eq!(TrsKeys::derive(b"secret").open(&sealed), Some(ticket(path)), "a later process");
            assert_eq!(TrsKeys::derive(b"other").open(&sealed), None);
        }
    }

    #[test]
    fn a_ticket_tells_nobody_what_is_in_it() {
        let keys = TrsKeys::derive(b"secret");
        let [a, b] = [[1; 16], [2; 16]].map(|salt| keys.seal(&ticket(paths()[1]), salt));
        let body = ticket(paths()[1]).encode();
        assert!(!a.windows(8).any(|window| body.windows(8).any(|plain| plain == window)));
        assert_ne!(a[17..], b[17..], "each has a key of its own");
    }

    #[test]
    fn tokens_differ_by_key_and_connection_id() {
        let keys = TrsKeys::derive(b"secret");
        assert_eq!(keys.reset_token(cid(1)), TrsKeys::derive(b"secret").reset_token(cid(1)));
        assert_ne!(keys.reset_token(cid(1)), keys.reset_token(cid(2)));
        assert_ne!(keys.reset_token(cid(1)), TrsKeys::derive(b"other").reset_token(cid(1)));
    }

    proptest! {
        #[test]
        fn any_change_makes_a_ticket_worthless(at in 0..(1 + SALT + BODY + TAG), flip in 1..=255u8) {
            let keys = TrsKeys::derive(b"secret");
            let mut sealed = keys.seal(&ticket(None), [7; 16]);
            sealed[at] ^= flip;
            prop_assert_eq!(keys.open(&sealed), None);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(TrsKeys::derive(b"secret").open(&bytes), None);
            let _ = Ticket::decode(&bytes);
        }
    }
}
