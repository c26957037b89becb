//! What an NMS must know of its overlay besides the devices.

use prost::Message as _;
use thiserror::Error;

use super::Standby;
use crate::access::{AccessRule, MAX_OVERLAY_RULES, OverlayRule, read_words};
use crate::message::{self, OverlayResponse};
use crate::node::Relay;

/// The overlay, as its own configuration has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its relays.
    pub relays: Vec<Relay>,
    /// Its standbys.
    pub standbys: Vec<Standby>,
    /// Who may open what at which devices; `None`: nothing is restricted.
    pub access: Option<Vec<OverlayRule>>,
}

/// The bytes are no facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("what was kept of the overlay is damaged; it is copied anew from the NMS")]
pub struct DamagedFacts;

impl Facts {
    /// As messages carry them.
    pub fn to_wire(&self) -> OverlayResponse {
        let rule = |rule: &OverlayRule| message::OverlayRule {
            at: rule.at.iter().map(ToString::to_string).collect(),
            rule: Some(rule.rule.to_wire()),
        };
        OverlayResponse {
            relays: self.relays.iter().map(Relay::to_wire).collect(),
            standbys: self.standbys.iter().map(Standby::to_wire).collect(),
            unrestricted: self.access.is_none(),
            rules: self.access.iter().flatten().map(rule).collect(),
        }
    }

    /// Of a message. Words that this version does not understand allow nothing, nowhere.
    pub fn from_wire(told: &OverlayResponse) -> Self {
        let rules = told.rules.iter().take(MAX_OVERLAY_RULES).filter_map(|told| {
            let mut unread = 0;
            let rule = AccessRule::from_wire(told.rule.as_ref()?, &mut unread);
            let at = read_words(&told.at, &mut unread);
            let says_something = !at.is_empty() && !rule.from.is_empty() && !rule.to.is_empty();
            says_something.then_some(OverlayRule { at, rule })
        });
        Self {
            relays: Relay::list_from_wire(&told.relays),
            standbys: Standby::list_from_wire(&told.standbys),
            access: if told.unrestricted { None } else { Some(rules.collect()) },
        }
    }

    /// As bytes for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_wire().encode_to_vec()
    }

    /// Of a file's bytes.
    ///
    /// # Errors
    /// They are not what [`Self::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedFacts> {
        if bytes.len() > message::MAX_MESSAGE_BYTES {
            return Err(DamagedFacts);
        }
        OverlayResponse::decode(bytes).map(|told| Self::from_wire(&told)).map_err(|_| DamagedFacts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::MAX_RELAYS;
    use crate::standby::MAX_STANDBYS;

    fn rule(at: &[&str], from: &[&str], to: &[&str]) -> OverlayRule {
        OverlayRule {
            at: at.iter().map(|who| who.parse().unwrap()).collect(),
            rule: AccessRule {
                from: from.iter().map(|who| who.parse().unwrap()).collect(),
                to: to.iter().map(|service| service.parse().unwrap()).collect(),
            },
        }
    }

    fn facts() -> Facts {
        let addresses = vec!["192.0.2.9:443".parse().unwrap(), "[2001:db8::9]:443".parse().unwrap()];
        Facts {
            relays: vec![Relay { name: "trs1.svc.lab".into(), addresses: addresses.clone() }],
            standbys: vec![Standby { name: "nms2.svc.lab".into(), addresses }],
            access: Some(vec![rule(&["press-*.hall", "all"], &[".office"], &["ping", "tcp/20-30"])]),
        }
    }

    #[test]
    fn facts_survive_the_file() {
        for facts in [facts(), Facts::default(), Facts { access: Some(Vec::new()), ..facts() }] {
            assert_eq!(Facts::from_bytes(&facts.to_bytes()), Ok(facts));
        }
        assert_eq!(Facts::from_bytes(&[0xff; 9]), Err(DamagedFacts));
    }

    #[test]
    fn words_of_a_later_version_allow_nothing() {
        let mut told = facts().to_wire();
        told.rules[0].at = vec!["site:north".into()];
        assert_eq!(Facts::from_wire(&told).access, Some(Vec::new()), "a rule that holds nowhere");
        let mut told = facts().to_wire();
        told.rules[0].rule.as_mut().unwrap().to = vec!["quic/443".into(), "ping".into()];
        assert_eq!(Facts::from_wire(&told).access.unwrap()[0].rule.to.len(), 1);
        told.rules[0].rule = None;
        assert_eq!(Facts::from_wire(&told).access, Some(Vec::new()));
    }

    #[test]
    fn the_longest_rules_fit_a_message() {
        let long = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
        let addresses: Vec<_> = (1..=8).map(|n| format!("[2001:db8::{n}]:443").parse().unwrap()).collect();
        let relay = Relay { name: long.clone(), addresses: addresses.clone() };
        let standbys = (0..MAX_STANDBYS)
            .map(|n| Standby { name: long.replacen('a', &n.to_string(), 1), addresses: addresses.clone() });
        let standbys: Vec<_> = standbys.collect();
        for word in ["a", "all", &long] {
            let fits = |words: &usize| {
                let words = vec![word; *words];
                let mut rules = vec![rule(&["a"], &["a"], &["tcp"]); MAX_OVERLAY_RULES - 1];
                rules.push(rule(&words, &words, &["tcp"]));
                OverlayRule::check(&rules).is_ok().then_some(rules)
            };
            let rules = (1..10_000).rev().step_by(9).find_map(|words| fits(&words)).unwrap();
            let facts = Facts {
                relays: vec![relay.clone(); MAX_RELAYS],
                standbys: standbys.clone(),
                access: Some(rules),
            };
            let bytes = facts.to_bytes();
            assert!(bytes.len() + 8 < message::MAX_MESSAGE_BYTES, "{word}: {}", bytes.len());
            // They are too long to be shown.
            assert!(Facts::from_bytes(&bytes) == Ok(facts), "{word}");
        }
    }
}
