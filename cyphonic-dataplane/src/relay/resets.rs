//! Stateless resets: how a relay that has lost a leg says so at once (RFC 9000 §10.3).
//!
//! A relay that restarted knows nothing of a packet's connection ID, so it could only drop it, and both nodes
//! would go on until silence tells them. Instead it answers with a token that only the relay can make, and
//! that only the packet's rightful sender was given when the leg was bound. The answer looks like a
//! short-header packet of the *signalling* half: it finds its way to the node's signalling however many
//! workers share the node's port, and a relay that gets one by mistake never answers it with one of these.
//!
//! **Invariants.** A reset is smaller than what it answers, and resets are limited in number, so a relay
//! reflects less than it receives. The token's key never comes here: a function makes tokens.

use std::fmt;
use std::time::Duration;

pub use cyphonic_common::limits::RESET_TOKEN_LEN;
use cyphonic_common::quic::SHORT_HEADER_LEN;
use cyphonic_common::{Account, ConnectionId};
use ring::rand::{SecureRandom, SystemRandom};

/// A longer one would not be taken for a packet of a tunnel any better: RFC 9000 §10.3 finds 42 bytes enough.
pub const MAX_RESET_LEN: usize = 42;
/// Header, connection ID and token.
pub const MIN_RESET_LEN: usize = SHORT_HEADER_LEN + RESET_TOKEN_LEN;

/// Between resets on average: ten thousand a second cost a few hundredths of a core, and tell as many nodes.
const INTERVAL: Duration = Duration::from_micros(100);
/// How many may follow each other at once.
const BURST: u32 = 64;

/// What [`Resets`] makes tokens with.
type TokenOf = dyn Fn(ConnectionId) -> [u8; RESET_TOKEN_LEN] + Send + Sync;

/// Makes resets.
pub struct Resets {
    token: Box<TokenOf>,
    random: SystemRandom,
}

impl Resets {
    /// Of tokens that `token` makes from the virtual connection ID of the lost leg.
    pub fn new(token: impl Fn(ConnectionId) -> [u8; RESET_TOKEN_LEN] + Send + Sync + 'static) -> Self {
        Self { token: Box::new(token), random: SystemRandom::new() }
    }

    /// The reset for a packet of `trigger_len` bytes with this connection ID; none for one so short that the
    /// answer could not be shorter, or where the system has no random numbers.
    pub fn answer(&self, cid: ConnectionId, trigger_len: usize) -> Option<Reset> {
        let len = trigger_len.checked_sub(1)?.min(MAX_RESET_LEN);
        if len < MIN_RESET_LEN {
            return None;
        }
        let mut bytes = [0; MAX_RESET_LEN];
        self.random.fill(&mut bytes).ok()?;
        // Short header, fixed bit (RFC 9000 §17.3.1); a connection ID of the signalling half.
        bytes[0] = 0x40 | (bytes[0] & 0x3f);
        bytes[1] &= 0x7f;
        bytes.get_mut(len - RESET_TOKEN_LEN..len)?.copy_from_slice(&(self.token)(cid));
        Some(Reset { bytes, len })
    }

    /// A reset that answers no packet: to a node that may not know yet that its leg is gone.
    pub fn unasked(&self, cid: ConnectionId) -> Option<Reset> {
        self.answer(cid, MAX_RESET_LEN + 1)
    }
}

impl fmt::Debug for Resets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resets").finish_non_exhaustive()
    }
}

/// One reset, ready to be sent.
#[derive(Clone)]
pub struct Reset {
    bytes: [u8; MAX_RESET_LEN],
    len: usize,
}

impl Reset {
    /// The datagram.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Reset {
    /// Without the token: whoever has it can make a node connect anew.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reset").field("len", &self.len).finish_non_exhaustive()
    }
}

/// How many resets may be sent. Times are those since the relay's start.
#[derive(Debug, Default)]
pub(super) struct Budget(Account);

impl Budget {
    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        self.0.spend(now, INTERVAL, INTERVAL * BURST)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use cyphonic_common::{DatagramKind, classify_datagram};

    use super::*;
    use crate::relay::UserspaceRelay;
    use crate::udp::{SignallingSink, UdpPort};

    fn resets() -> Resets {
        Resets::new(|cid| {
            let mut token = [7; RESET_TOKEN_LEN];
            token[..8].copy_from_slice(cid.as_bytes());
            token
        })
    }

    #[test]
    fn a_reset_is_shorter_than_its_cause_ends_in_the_token_and_is_signalling() {
        let cid = ConnectionId::from_random_data([0xab; 8]);
        for trigger in 0..2000 {
            let Some(reset) = resets().answer(cid, trigger) else {
                assert!(trigger <= MIN_RESET_LEN, "no answer to {trigger} bytes");
                continue;
            };
            let bytes = reset.as_bytes();
            assert!(bytes.len() < trigger && bytes.len() <= MAX_RESET_LEN);
            assert_eq!(classify_datagram(bytes), DatagramKind::Signalling);
            let (_, token) = bytes.split_last_chunk::<RESET_TOKEN_LEN>().expect("long enough");
            assert_eq!((&token[..8], &token[8..]), (cid.as_bytes().as_slice(), [7; 8].as_slice()));
        }
    }

    #[test]
    fn two_resets_differ_in_all_but_the_token() {
        let cid = ConnectionId::from_random_data([1; 8]);
        let [a, b] = [0, 1].map(|_| resets().unasked(cid).expect("random numbers"));
        assert_ne!(a.as_bytes(), b.as_bytes());
        assert_eq!(
            a.as_bytes().last_chunk::<RESET_TOKEN_LEN>(),
            b.as_bytes().last_chunk::<RESET_TOKEN_LEN>()
        );
        assert!(!format!("{a:?} {:?}", resets()).contains(", 7"));
    }

    #[test]
    fn a_budget_allows_a_burst_and_then_a_rate() {
        let mut budget = Budget::default();
        let now = Duration::from_secs(5);
        let burst = (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(burst, BURST as usize);
        let later = (1..=10_000).filter(|step| budget.take(now + INTERVAL / 10 * *step)).count();
        assert!((999..=1001).contains(&later), "{later}");
    }

    /// A relay on loopback, and a socket that talks to it.
    #[test]
    fn a_relay_answers_what_it_does_not_know_and_only_that() {
        let port = Arc::new(UdpPort::bind(0).expect("port"));
        let relay = Arc::new(UserspaceRelay::new(4).with_resets(Arc::new(resets())));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = {
            let (relay, port, stop) = (Arc::clone(&relay), Arc::clone(&port), Arc::clone(&stop));
            std::thread::spawn(move || relay.run(port, Arc::new(Nobody), stop))
        };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("time-out");
        let to = ("127.0.0.1", port.local_port());
        let cid = ConnectionId::from_random_data([9; 8]);
        let packet = |first: u8, cid: ConnectionId, len: usize| {
            let mut packet = vec![first; len];
            packet[1..9].copy_from_slice(cid.as_bytes());
            packet
        };
        // Neither noise nor signalling is answered, nor what is too short for an answer.
        let signalling = ConnectionId::from_random_signalling([9; 8]);
        for silent in [packet(0, cid, 100), packet(0x40, signalling, 100), packet(0x40, cid, 25)] {
            socket.send_to(&silent, to).expect("sent");
        }
        for len in [26, 1400] {
            socket.send_to(&packet(0x40, cid, len), to).expect("sent");
            let mut buffer = [0; 2048];
            let got = socket.recv(&mut buffer).expect("a reset");
            assert_eq!(got, (len - 1).min(MAX_RESET_LEN));
            assert_eq!(buffer[got - RESET_TOKEN_LEN..][..8], *cid.as_bytes());
        }
        stop.store(true, Ordering::Relaxed);
        port.wake();
        worker.join().expect("no panic").expect("no error");
        assert_eq!(relay.counters().resets, 2);
    }

    struct Nobody;

    impl SignallingSink for Nobody {
        fn deliver(&self, _: SocketAddr, _: Option<IpAddr>, _: Option<u8>, _: &[u8], _: usize) {}
    }
}
