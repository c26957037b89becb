//! How many requests are answered: a bounded share for each network, and a bound for all.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cyphonic_common::Account;

/// Networks share this many accounts, by a hash that nobody outside can steer.
const ACCOUNTS: usize = 1024;

const SECOND: Duration = Duration::from_secs(1);

/// Requests a second for one account. A node that looks at its network asks some sixty times within a few
/// seconds, once in many minutes; a carrier's NAT hides hundreds of nodes behind one address.
const PER_ACCOUNT: u32 = 100;

/// Requests a second for all. Each costs the port's worker a few microseconds, which forwarding lacks.
const IN_ALL: u32 = 5_000;

/// How far ahead of its rate an account may be.
const BURST: Duration = Duration::from_secs(4);

/// Decides which requests are answered. Its memory is fixed.
#[derive(Debug)]
pub(super) struct Limit {
    hash: RandomState,
    start: Instant,
    /// By the time since `start`.
    accounts: Vec<Account>,
    all: Account,
}

impl Limit {
    /// Nobody has asked yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            hash: RandomState::new(),
            start: now,
            accounts: vec![Account::default(); ACCOUNTS],
            all: Account::default(),
        }
    }

    /// Whether to answer one more request from this address: IPv4 addresses have an account each, IPv6 ones
    /// share that of their /56, as one customer often has one.
    pub(super) fn admit(&mut self, now: Instant, from: IpAddr) -> bool {
        let network = match from.to_canonical() {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip) >> 72 << 72,
        };
        let place = usize::try_from(self.hash.hash_one(network) % ACCOUNTS as u64).unwrap_or_default();
        let passed = now.saturating_duration_since(self.start);
        let Some(account) = self.accounts.get_mut(place) else { return false };
        account.spend(passed, SECOND / PER_ACCOUNT, BURST) && self.all.spend(passed, SECOND / IN_ALL, BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_bounded_and_others_are_not_hurt() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let greedy: IpAddr = "2001:db8:0:ff::1".parse().unwrap();
        let admitted = (0..10_000).filter(|_| limit.admit(start, greedy)).count();
        assert_eq!(admitted, (BURST.as_secs() as usize) * PER_ACCOUNT as usize);
        assert!(!limit.admit(start, "2001:db8:0:fe::2".parse().unwrap()), "the same /56");
        let others = (0..64).map(|n| IpAddr::from([192, 0, 2, n]));
        assert!(others.filter(|ip| limit.admit(start, *ip)).count() >= 60, "hashes collide rarely");
        assert!(limit.admit(start + Duration::from_secs(1), greedy));
    }
}
