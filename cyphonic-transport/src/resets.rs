//! Stateless resets of relays: recognised by the tokens that the tunnels through them were given.
//!
//! A TRS that has lost a leg answers the leg's packets with a token that only it can make (RFC 9000 §10.3).
//! What arrives looks like a short-header packet of no known connection; without this table quinn would drop
//! it.
//!
//! **Invariants.** Only a datagram from the very relay of a tunnel, with the very token, is taken for its
//! reset. Tokens are found by a hash under a random key, so that no timing tells how near a guess was (RFC
//! 9000 §10.3.1).

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use cyphonic_dataplane::relay::{MAX_RESET_LEN, MIN_RESET_LEN, RESET_TOKEN_LEN};
use cyphonic_dataplane::sync;
use cyphonic_proto::TunnelId;

/// A relay answers every packet; its tunnel's owner need not hear of each.
const INTERVAL: Duration = Duration::from_millis(50);

/// Who is told of a reset. Called from the thread that receives: it must not block.
pub type ResetSink = Arc<dyn Fn(TunnelId) + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(crate) struct Resets(Mutex<Table>);

#[derive(Default)]
struct Table {
    key: RandomState,
    by_token: HashMap<u64, Expected>,
    by_tunnel: HashMap<TunnelId, u64>,
    sink: Option<ResetSink>,
}

struct Expected {
    token: [u8; RESET_TOKEN_LEN],
    from: SocketAddr,
    tunnel: TunnelId,
    reported: Option<Instant>,
}

impl Resets {
    pub(crate) fn report_to(&self, sink: ResetSink) {
        self.table().sink = Some(sink);
    }

    pub(crate) fn expect(&self, tunnel: TunnelId, from: SocketAddr, token: [u8; RESET_TOKEN_LEN]) {
        let mut table = self.table();
        let hash = table.key.hash_one(token);
        table.by_token.insert(hash, Expected { token, from, tunnel, reported: None });
        table.by_tunnel.insert(tunnel, hash);
    }

    /// The tunnel's relay is elsewhere now; nothing if no reset was expected of it.
    pub(crate) fn follow(&self, tunnel: TunnelId, from: SocketAddr) {
        let mut table = self.table();
        let Some(hash) = table.by_tunnel.get(&tunnel).copied() else { return };
        if let Some(expected) = table.by_token.get_mut(&hash) {
            expected.from = from;
        }
    }

    pub(crate) fn forget(&self, tunnel: TunnelId) {
        let mut table = self.table();
        if let Some(hash) = table.by_tunnel.remove(&tunnel) {
            table.by_token.remove(&hash);
        }
    }

    /// Whether a signalling datagram is a reset of a tunnel's relay; reports it if so.
    pub(crate) fn take(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        let short_header = datagram.first().is_some_and(|first| first & 0x80 == 0);
        if !short_header || !(MIN_RESET_LEN..=MAX_RESET_LEN).contains(&datagram.len()) {
            return false;
        }
        let Some(token) = datagram.last_chunk::<RESET_TOKEN_LEN>() else { return false };
        let mut table = self.table();
        let hash = table.key.hash_one(token);
        let Some(expected) = table.by_token.get_mut(&hash) else { return false };
        let difference = expected.token.iter().zip(token).fold(0, |acc, (a, b)| acc | (a ^ b));
        if difference != 0 || expected.from != from {
            return false;
        }
        let now = Instant::now();
        if expected.reported.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return true;
        }
        expected.reported = Some(now);
        let tunnel = expected.tunnel;
        let sink = table.sink.clone();
        drop(table);
        if let Some(sink) = sink {
            sink(tunnel);
        }
        true
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        sync::lock(&self.0)
    }
}

impl fmt::Debug for Resets {
    /// Without the tokens: whoever has one can make this node connect anew.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resets").field("expected", &self.table().by_tunnel.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_common::ConnectionId;

    use super::*;

    const TOKEN: [u8; RESET_TOKEN_LEN] = [7; RESET_TOKEN_LEN];

    fn relay() -> SocketAddr {
        "192.0.2.1:443".parse().unwrap()
    }

    fn reset() -> Vec<u8> {
        let resets = cyphonic_dataplane::relay::Resets::new(|_| TOKEN);
        let cid = ConnectionId::from_random_data([1; 8]);
        resets.answer(cid, 100).unwrap().as_bytes().to_vec()
    }

    fn table() -> (Resets, Arc<Mutex<Vec<TunnelId>>>) {
        let (resets, told) = (Resets::default(), Arc::new(Mutex::new(Vec::new())));
        let sink = told.clone();
        resets.report_to(Arc::new(move |tunnel| sink.lock().unwrap().push(tunnel)));
        resets.expect(TunnelId(5), relay(), TOKEN);
        (resets, told)
    }

    #[test]
    fn a_reset_of_the_relay_is_reported_once_in_a_while() {
        let (resets, told) = table();
        for _ in 0..10 {
            assert!(resets.take(relay(), &reset()), "it is not for quinn");
        }
        assert_eq!(*told.lock().unwrap(), [TunnelId(5)]);
    }

    #[test]
    fn forged_and_late_ones_are_not() {
        let (resets, told) = table();
        let real = reset();
        assert!(!resets.take("192.0.2.1:444".parse().unwrap(), &real), "from elsewhere");
        for at in real.len() - RESET_TOKEN_LEN..real.len() {
            let mut forged = real.clone();
            forged[at] ^= 1;
            assert!(!resets.take(relay(), &forged), "byte {at}");
        }
        assert!(!resets.take(relay(), &[&real[..], &[0; 40]].concat()), "longer than any");
        assert!(!resets.take(relay(), &real[real.len() - RESET_TOKEN_LEN..]), "the token alone");
        assert!(!resets.take(relay(), &[]));
        let elsewhere = "[2001:db8::1]:443".parse().unwrap();
        resets.follow(TunnelId(5), elsewhere);
        assert!(!resets.take(relay(), &real) && resets.take(elsewhere, &real), "the relay is elsewhere now");
        told.lock().unwrap().clear();
        resets.forget(TunnelId(5));
        assert!(!resets.take(relay(), &real), "the tunnel is gone");
        assert!(!resets.take(elsewhere, &real), "the tunnel is gone");
        assert_eq!(*told.lock().unwrap(), []);
        assert!(!format!("{resets:?}").contains("7, 7"));
    }
}
