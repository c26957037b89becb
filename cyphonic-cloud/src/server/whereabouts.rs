//! Where a device is seen, where it has proved to be, and when to ask it for a proof. Pure.

use std::net::SocketAddr;
use std::time::Instant;

use cyphonic_transport::connection::EXCHANGE_TIMEOUT;

/// Of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whereabouts {
    seen: SocketAddr,
    proved: SocketAddr,
    /// Where it was asked last, and when.
    asked: Option<(SocketAddr, Instant)>,
}

impl Whereabouts {
    /// Of a connection whose handshake has proved this.
    pub(super) fn new(at: SocketAddr) -> Self {
        Self { seen: at, proved: at, asked: None }
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
    pub(super) fn see(&mut self, at: SocketAddr) -> bool {
        std::mem::replace(&mut self.seen, at) != at
    }

    /// Notes a proof, unless the device is seen elsewhere by now; says whether it counts.
    pub(super) fn prove(&mut self, at: SocketAddr) -> bool {
        if self.seen == at {
            self.proved = at;
        }
        self.seen == at
    }

    /// Whether to ask now: for as long as it takes, and each time for as long as an exchange may.
    pub(super) fn ask(&mut self, now: Instant) -> bool {
        let under_way = |(at, since): (SocketAddr, Instant)| {
            at == self.seen && now.duration_since(since) < EXCHANGE_TIMEOUT
        };
        if self.seen == self.proved || self.asked.is_some_and(under_way) {
            return false;
        }
        self.asked = Some((self.seen, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_device_is_asked_until_it_proves_to_be_where_it_is_seen() {
        let [home, away, elsewhere] =
            ["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"].map(|at| at.parse::<SocketAddr>().unwrap());
        let mut now = Instant::now();
        let mut device = Whereabouts::new(home);
        assert!(!device.see(home) && !device.ask(now));
        assert!(device.see(away) && !device.see(away));
        for _ in 0..1_000 {
            assert!(device.ask(now), "it never gives up");
            now += EXCHANGE_TIMEOUT - Duration::from_millis(1);
            assert!(!device.ask(now), "one question at a time");
            now += Duration::from_millis(1);
        }
        assert!(!device.prove(elsewhere));
        assert_eq!((device.seen(), device.proved()), (away, home));
        assert!(device.prove(away) && !device.ask(now));
        assert_eq!(device.proved(), away);
        // A late answer of another place does not count; a new place is asked about at once.
        assert!(device.see(elsewhere) && device.ask(now) && device.see(home) && device.ask(now));
        assert!(
            !device.prove(elsewhere) && device.see(away) && !device.ask(now),
            "back where it has proved to be"
        );
    }
}
