//! Whether the host's network translates IPv6 to IPv4 (NAT64), and within which prefix: when to ask, and what
//! to believe.
//!
//! A host that has IPv6 and no way out over IPv4 asks its network's resolvers for the AAAA records of
//! `ipv4only.arpa` (RFC 7050). What they answer is asked for again now and then, and given up only when it
//! stays away: resolvers fail more often than translators go. Whoever forges an answer (RFC 7050 §3.1, §7)
//! can have this node's datagrams to IPv4 take another way, as every router on the way can; all of them are
//! authenticated end to end, so that they are lost at worst.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use cyphonic_common::Nat64Prefix;

/// After an answer that named no prefix, or none at all: at first soon, since a network's resolvers may not
/// be known yet a moment after it came, then ever more rarely, since most networks will never have one.
const RETRY_LEAST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(600);

/// How often a prefix is asked for again (RFC 7050 §3: before the records end, which live for an hour or a
/// day).
const REFRESH: Duration = Duration::from_secs(1_800);

/// So many answers without the prefix, one after the other, mean that it is gone.
const FORGET_AFTER: u32 = 3;

/// See the module. Time comes in as an argument.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Whether there is IPv6 and no IPv4.
    wanted: bool,
    prefix: Option<Nat64Prefix>,
    /// Questions in a row that named no prefix.
    empty: u32,
    ask_at: Option<Instant>,
}

impl Discovery {
    /// The host's networks changed; `wanted` says whether it has IPv6 and no way out over IPv4. A prefix that
    /// was found stays while it is asked for again.
    pub fn handle_network(&mut self, now: Instant, wanted: bool) {
        self.wanted = wanted;
        self.empty = 0;
        self.ask_at = wanted.then_some(now);
        if !wanted {
            self.prefix = None;
        }
    }

    /// When to ask; nothing while there is nothing to ask.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ask_at
    }

    /// What a question brought: the AAAA records of `ipv4only.arpa`, none where it failed.
    pub fn handle_answer(&mut self, now: Instant, answers: &[Ipv6Addr]) {
        if !self.wanted {
            return;
        }
        match Nat64Prefix::from_well_known(answers.iter().copied()) {
            Some(prefix) => {
                self.prefix = Some(prefix);
                self.empty = 0;
                self.ask_at = Some(now + REFRESH);
            }
            None => {
                self.ask_at = Some(now + RETRY_LEAST.saturating_mul(1 << self.empty.min(16)).min(RETRY_MOST));
                self.empty = self.empty.saturating_add(1);
                if self.empty >= FORGET_AFTER {
                    self.prefix = None;
                }
            }
        }
    }

    /// The translator's prefix, as far as is known.
    pub fn prefix(&self) -> Option<Nat64Prefix> {
        self.prefix
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    fn answers(of: Nat64Prefix) -> Vec<Ipv6Addr> {
        cyphonic_common::nat64::WELL_KNOWN_ADDRESSES.iter().filter_map(|ip| of.embed(*ip)).collect()
    }

    fn prefix(text: &str) -> Nat64Prefix {
        Nat64Prefix::new(text.parse().unwrap(), 96).unwrap()
    }

    #[test]
    fn only_a_host_without_ipv4_asks() {
        let (mut discovery, now) = (Discovery::default(), Instant::now());
        assert_eq!(discovery.poll_timeout(), None);
        discovery.handle_network(now, false);
        assert_eq!(discovery.poll_timeout(), None);
        discovery.handle_answer(now, &answers(prefix("64:ff9b::")));
        assert_eq!(discovery.prefix(), None, "the answer to a question of another network");
        discovery.handle_network(now, true);
        assert_eq!(discovery.poll_timeout(), Some(now));
        discovery.handle_answer(now, &answers(prefix("64:ff9b::")));
        assert_eq!(discovery.prefix(), Some(prefix("64:ff9b::")));
        discovery.handle_network(now, false);
        assert_eq!(
            (discovery.prefix(), discovery.poll_timeout()),
            (None, None),
            "IPv4 came: no detour any more"
        );
    }

    #[test]
    fn a_prefix_stays_until_it_is_replaced_or_stays_away() {
        let (mut discovery, mut now) = (Discovery::default(), Instant::now());
        discovery.handle_network(now, true);
        discovery.handle_answer(now, &answers(prefix("64:ff9b::")));
        assert_eq!(discovery.poll_timeout(), Some(now + REFRESH));
        discovery.handle_network(now, true);
        assert_eq!((discovery.prefix(), discovery.poll_timeout()), (Some(prefix("64:ff9b::")), Some(now)));
        discovery.handle_answer(now, &answers(prefix("2001:db8::")));
        assert_eq!(discovery.prefix(), Some(prefix("2001:db8::")));
        for left in (0..FORGET_AFTER).rev() {
            now = discovery.poll_timeout().unwrap();
            discovery.handle_answer(now, &["2001:db8::1".parse().unwrap()]);
            assert_eq!(discovery.prefix().is_some(), left > 0, "{left}");
        }
    }

    #[test]
    fn a_network_without_a_translator_is_asked_ever_more_rarely() {
        let (mut discovery, start) = (Discovery::default(), Instant::now());
        discovery.handle_network(start, true);
        let mut waits = Vec::new();
        for _ in 0..20 {
            let now = discovery.poll_timeout().unwrap();
            discovery.handle_answer(now, &[]);
            waits.push(discovery.poll_timeout().unwrap() - now);
        }
        assert!(
            waits.is_sorted() && waits.first() == Some(&RETRY_LEAST) && waits.last() == Some(&RETRY_MOST)
        );
    }
}
