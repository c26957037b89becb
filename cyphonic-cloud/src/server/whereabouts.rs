//! Where a device is seen, where it has proved to be, and when to call it for a proof. Pure.
//!
//! QUIC takes a connection to be where its latest packet came from, and tells neither that it moved nor whether
//! the path was validated (RFC 9000 §9.3). What is sent on the connection may be repeated to where it was before. So
//! a number goes in a datagram of its own to where the device is seen, and nowhere else: who has it receives
//! there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cyphonic_proto::stun::Transaction;

/// Between two calls: some of them get lost.
pub(super) const CALL_AGAIN: Duration = Duration::from_millis(300);

/// Whoever does not answer for so long dials anew, which proves where it is as well: the network lets no calls
/// through, or there is nobody.
const OWES_AT_MOST: Duration = Duration::from_secs(5);

/// Of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whereabouts {
    seen: SocketAddr,
    proved: SocketAddr,
    /// Since when it has been seen elsewhere than where it has proved to be.
    away_since: Option<Instant>,
    call: Option<Call>,
}

/// By which number it is called where it is seen.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: Transaction,
    last: Instant,
}

impl Whereabouts {
    /// Of a connection whose handshake has proved this.
    pub(super) fn new(at: SocketAddr) -> Self {
        Self { seen: at, proved: at, away_since: None, call: None }
    }

    /// Where its last packets came from; whether it is there, or somebody repeats them from there, is another
    /// matter.
    pub(super) fn seen(&self) -> SocketAddr {
        self.seen
    }

    /// Where it was for certain.
    pub(super) fn proved(&self) -> SocketAddr {
        self.proved
    }

    /// Notes where it is seen now, and says whether that is elsewhere.
    pub(super) fn see(&mut self, now: Instant, at: SocketAddr) -> bool {
        let moved = std::mem::replace(&mut self.seen, at) != at;
        if moved {
            self.call = None;
        }
        if at == self.proved {
            self.away_since = None;
        } else {
            self.away_since.get_or_insert(now);
        }
        moved
    }

    /// The number to call it by where it is seen, if it is time to. `draw` gives unpredictable numbers, each of
    /// which is for one place.
    pub(super) fn call(
        &mut self,
        now: Instant,
        draw: impl FnOnce() -> Option<Transaction>,
    ) -> Option<Transaction> {
        self.away_since?;
        let is_early = |call: &Call| now.duration_since(call.last) < CALL_AGAIN;
        if self.call.as_ref().is_some_and(is_early) {
            return None;
        }
        let number = self.call.map_or_else(draw, |call| Some(call.number))?;
        self.call = Some(Call { number, last: now });
        Some(number)
    }

    /// Where it proves to be by this number, if it is still seen there.
    pub(super) fn prove(&mut self, number: &[u8]) -> Option<SocketAddr> {
        self.call.take_if(|call| call.number == *number)?;
        self.proved = self.seen;
        self.away_since = None;
        Some(self.proved)
    }

    /// Whether it has owed the proof for too long.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.away_since.is_some_and(|since| now.duration_since(since) >= OWES_AT_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn places() -> [SocketAddr; 3] {
        ["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"].map(|at| at.parse().unwrap())
    }

    #[test]
    fn a_device_is_called_where_it_is_seen_until_it_proves_to_be_there() {
        let ([home, away, _], mut now) = (places(), Instant::now());
        let mut device = Whereabouts::new(home);
        assert!(!device.see(now, home) && device.call(now, || Some([1; 12])).is_none());
        assert!(device.see(now, away) && !device.see(now, away));
        for _ in 0..4 {
            assert_eq!(
                device.call(now, || Some([1; 12])),
                Some([1; 12]),
                "the same number for the same place"
            );
            assert_eq!(device.call(now + CALL_AGAIN - MS, || Some([2; 12])), None);
            now += CALL_AGAIN;
        }
        assert_eq!((device.prove(&[2; 12]), device.prove(&[])), (None, None));
        assert_eq!((device.seen(), device.proved()), (away, home));
        assert_eq!(device.prove(&[1; 12]), Some(away));
        assert_eq!((device.proved(), device.prove(&[1; 12])), (away, None), "once");
        assert!(!device.see(now, away) && device.call(now, || Some([2; 12])).is_none());
    }

    #[test]
    fn a_number_proves_nothing_of_another_place_nor_after_another_place() {
        let ([home, away, elsewhere], now) = (places(), Instant::now());
        let mut device = Whereabouts::new(home);
        let called = |device: &mut Whereabouts, at, number| {
            device.see(now, at);
            assert_eq!(device.call(now, || Some([number; 12])), Some([number; 12]), "a new place at once");
        };
        called(&mut device, away, 1);
        called(&mut device, elsewhere, 2);
        assert_eq!(device.prove(&[1; 12]), None);
        called(&mut device, away, 3);
        assert_eq!((device.prove(&[1; 12]), device.prove(&[2; 12])), (None, None));
        device.see(now, home);
        assert_eq!((device.prove(&[3; 12]), device.proved()), (None, home));
        assert!(device.call(now, || Some([4; 12])).is_none(), "back where it has proved to be");
    }

    #[test]
    fn who_owes_the_proof_for_long_is_not_waited_for_wherever_it_is_seen_meanwhile() {
        let ([home, away, elsewhere], now) = (places(), Instant::now());
        let mut device = Whereabouts::new(home);
        device.see(now, away);
        device.see(now + OWES_AT_MOST - MS, elsewhere);
        assert!(!device.is_overdue(now + OWES_AT_MOST - MS) && device.is_overdue(now + OWES_AT_MOST));
        device.see(now + OWES_AT_MOST, home);
        assert!(!device.is_overdue(now + 2 * OWES_AT_MOST));
    }
}
