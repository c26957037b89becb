//! Sets of services.

use std::collections::BTreeSet;

use cyphonic_common::packet::icmpv6::ECHO_REQUEST;
use cyphonic_common::packet::protocol::ICMPV6;
use cyphonic_common::policy::{EVERY_PORT, EVERY_PROTOCOL};

use super::{AccessRule, Protocol, Service};

/// What a ping is to the policy: ICMPv6, and the type of an echo request.
const PING: (u8, u16) = (ICMPV6, ECHO_REQUEST as u16);
const ALL: (u8, u16) = (EVERY_PROTOCOL, EVERY_PORT);

/// Services as protocol and port, either of which may stand for all, as the port policy has them. No one is
/// part of another one, so two sets of the same services are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Services(BTreeSet<(u8, u16)>);

impl Services {
    /// All there are.
    pub fn all() -> Self {
        Self([ALL].into())
    }

    /// What these rules name.
    pub fn of<'a>(rules: impl Iterator<Item = &'a AccessRule>) -> Self {
        Self::named(rules.flat_map(|rule| &rule.to))
    }

    /// What these words name.
    pub fn named<'a>(services: impl IntoIterator<Item = &'a Service>) -> Self {
        Self::of_entries(services.into_iter().flat_map(entries).collect())
    }

    fn of_entries(entries: BTreeSet<(u8, u16)>) -> Self {
        let is_part = |entry: &(u8, u16)| {
            let (protocol, port) = *entry;
            *entry != ALL
                && (entries.contains(&ALL)
                    || (port != EVERY_PORT && entries.contains(&(protocol, EVERY_PORT))))
        };
        Self(entries.iter().filter(|entry| !is_part(entry)).copied().collect())
    }

    /// Protocols and ports; 0 stands for all.
    pub fn entries(&self) -> impl Iterator<Item = (u8, u16)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The services that are in both.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Self {
        let own = self.entries().filter(|entry| other.holds(*entry));
        Self::of_entries(own.chain(other.entries().filter(|entry| self.holds(*entry))).collect())
    }

    /// Those that `other` has not. What it has in part stays whole.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        Self(self.entries().filter(|entry| !other.holds(*entry)).collect())
    }

    /// As rules have them, with adjacent ports in one.
    pub fn words(&self) -> Vec<String> {
        if self.0.contains(&ALL) {
            return vec![Service::All.to_string()];
        }
        let mut words = Vec::from_iter(self.0.contains(&PING).then(|| Service::Ping.to_string()));
        for protocol in Protocol::ALL {
            let number = protocol.number();
            let ports = self.0.range((number, 0)..=(number, u16::MAX)).map(|(_, port)| *port);
            words.extend(runs(ports).map(|(first, last)| match first {
                EVERY_PORT => Service::Protocol(protocol).to_string(),
                first => Service::Ports(protocol, first..=last).to_string(),
            }));
        }
        words
    }

    fn holds(&self, (protocol, port): (u8, u16)) -> bool {
        [ALL, (protocol, EVERY_PORT), (protocol, port)].iter().any(|entry| self.0.contains(entry))
    }
}

/// As the policy has them.
fn entries(service: &Service) -> Vec<(u8, u16)> {
    match service {
        Service::All => vec![ALL],
        Service::Ping => vec![PING],
        Service::Protocol(protocol) => vec![(protocol.number(), EVERY_PORT)],
        Service::Ports(protocol, ports) => ports.clone().map(|port| (protocol.number(), port)).collect(),
    }
}

/// Ascending numbers as first and last of each run without a gap.
fn runs(numbers: impl Iterator<Item = u16>) -> impl Iterator<Item = (u16, u16)> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs.into_iter()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn services(words: &[&str]) -> Services {
        let to = words.iter().map(|word| word.parse().unwrap()).collect();
        Services::of([AccessRule { from: Vec::new(), to }].iter())
    }

    #[test]
    fn what_is_part_of_another_one_is_not_told_twice() {
        for (written, told) in [
            (&["udp/5", "tcp", "tcp/22", "ping"][..], &["ping", "tcp", "udp/5"][..]),
            (&["tcp/80-82", "tcp/83", "tcp/85", "tcp/82"], &["tcp/80-83", "tcp/85"]),
            (&["tcp/22", "all", "ping"], &["all"]),
            (&["sctp", "udp/65534-65535"], &["udp/65534-65535", "sctp"]),
            (&[], &[]),
        ] {
            assert_eq!(services(written).words(), told);
        }
        assert_eq!(services(&["tcp", "tcp/22"]), services(&["tcp"]));
        assert_eq!(services(&["ping", "all"]), Services::all());
    }

    #[test]
    fn two_sets_share_the_narrower_of_both() {
        for (one, other, shared) in [
            (&["all"][..], &["tcp/22", "ping"][..], &["ping", "tcp/22"][..]),
            (&["tcp", "udp/53"], &["tcp/22", "udp", "sctp"], &["tcp/22", "udp/53"]),
            (&["tcp/1-10"], &["tcp/5-20"], &["tcp/5-10"]),
            (&["tcp"], &["udp", "ping"], &[]),
            (&[], &["all"], &[]),
        ] {
            for (one, other) in [(one, other), (other, one)] {
                assert_eq!(services(one).shared_with(&services(other)).words(), shared);
            }
        }
    }

    #[test]
    fn beyond_what_all_may_is_what_no_word_of_theirs_means() {
        let own = services(&["tcp", "udp/53", "ping"]);
        assert_eq!(own.beyond(&services(&["tcp/22", "udp"])).words(), ["ping", "tcp"]);
        assert!(own.beyond(&Services::all()).is_empty());
        assert_eq!(own.beyond(&Services::default()), own);
    }

    fn any_services() -> impl Strategy<Value = Services> {
        let entry = prop_oneof![
            1 => Just("all".to_owned()),
            3 => Just("ping".to_owned()),
            3 => prop_oneof![Just("tcp"), Just("udp"), Just("sctp")].prop_map(str::to_owned),
            9 => (prop_oneof![Just("tcp"), Just("udp")], 1u16..9, 0u16..3)
                .prop_map(|(protocol, first, more)| format!("{protocol}/{first}-{}", first + more)),
        ];
        proptest::collection::vec(entry, 0..6)
            .prop_map(|words| services(&words.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    proptest! {
        /// Packet by packet.
        #[test]
        fn both_allow_what_they_share(one in any_services(), other in any_services()) {
            let shared = one.shared_with(&other);
            let rest = one.beyond(&other);
            for protocol in [6, 17, 58, 132, 47] {
                for port in (1..14).chain([u16::from(ECHO_REQUEST)]) {
                    let entry = (protocol, port);
                    prop_assert_eq!(shared.holds(entry), one.holds(entry) && other.holds(entry));
                    prop_assert_eq!(one.holds(entry) || other.holds(entry), rest.holds(entry) || other.holds(entry));
                }
            }
        }
    }
}
