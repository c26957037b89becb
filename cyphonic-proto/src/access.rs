//! Who may open conversations with a device, and with which of its services.
//!
//! A device has rules of its own (`access` in `agent.yaml`), and an overlay may have rules for all its devices
//! (`access` in `cloud.yaml`), of which the NMS tells each device those that are for it. What may be opened
//! is what both allow: so the cloud can take away, and never gives what the device itself denies.

mod overlay;
mod service;
mod services;
mod who;

use std::str::FromStr;

pub use overlay::{MAX_OVERLAY_RULES, OverlayAccess, OverlayRule};
pub use service::{InvalidService, Protocol, Service};
pub use services::Services;
pub use who::{InvalidWho, Who};

use crate::message;

/// Most rules of a device's own. More are a programme, for which a packet filter is the better place.
pub const MAX_OWN_RULES: usize = 64;
/// Entries of the port policy that all rules together need. Devices for whom different rules hold need them
/// again, for which the policy's table is larger.
const MAX_ENTRIES: usize = 4_096;
/// Bytes of all rules, words as they are written. Those of an overlay fit a message.
const MAX_TEXT: usize = 32_768;

/// These devices may open conversations with these services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// Who.
    pub from: Vec<Who>,
    /// To what.
    pub to: Vec<Service>,
}

impl AccessRule {
    /// Whether a device is one of those.
    pub fn is_for(&self, fqdn: &str, zone: &str) -> bool {
        self.from.iter().any(|who| who.includes(fqdn, zone))
    }

    /// Whether every device is, whatever its name.
    pub fn is_for_all(&self) -> bool {
        self.from.contains(&Who::All)
    }

    /// Checks that these rules, of which there may be `most`, are not too many, and that each says something:
    /// whoever wrote one that does not meant something else.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check<'a>(
        rules: impl ExactSizeIterator<Item = &'a Self> + Clone,
        most: usize,
    ) -> Result<(), UnfitRules> {
        Self::check_all(rules.clone(), most, rules.map(Self::text).sum())
    }

    fn check_all<'a>(
        rules: impl ExactSizeIterator<Item = &'a Self> + Clone,
        most: usize,
        bytes: usize,
    ) -> Result<(), UnfitRules> {
        if rules.len() > most {
            return Err(UnfitRules::TooMany { rules: rules.len(), most });
        }
        if let Some(n) = rules.clone().position(|rule| rule.from.is_empty() || rule.to.is_empty()) {
            return Err(UnfitRules::Void { rule: n + 1 });
        }
        let entries: usize = rules.map(Self::entries).sum();
        if entries > MAX_ENTRIES {
            return Err(UnfitRules::TooManyPorts { entries });
        }
        if bytes > MAX_TEXT {
            return Err(UnfitRules::TooLong { bytes });
        }
        Ok(())
    }

    /// How many entries of the policy it needs, for each class of devices that it is for.
    fn entries(&self) -> usize {
        self.to.iter().map(Service::entries).sum()
    }

    fn text(&self) -> usize {
        text(&self.from) + text(&self.to)
    }

    pub(crate) fn to_wire(&self) -> message::AccessRule {
        message::AccessRule {
            from: self.from.iter().map(ToString::to_string).collect(),
            to: self.to.iter().map(ToString::to_string).collect(),
        }
    }

    /// Of a message, without the words that this version does not understand, which are counted.
    pub(crate) fn from_wire(told: &message::AccessRule, unread: &mut usize) -> Self {
        Self { from: read_words(&told.from, unread), to: read_words(&told.to, unread) }
    }
}

/// Those of these words that this version understands; the others are counted.
pub(crate) fn read_words<T: FromStr>(words: &[String], unread: &mut usize) -> Vec<T> {
    let read: Vec<T> = words.iter().filter_map(|word| word.parse().ok()).collect();
    *unread += words.len() - read.len();
    read
}

/// Bytes of what is written, with those that a message adds to each word.
fn text(words: &[impl ToString]) -> usize {
    words.iter().map(|word| word.to_string().len() + 2).sum()
}

/// Why rules are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnfitRules {
    /// Too many.
    #[error("there are {rules} rules: at most {most} are taken")]
    TooMany {
        /// How many.
        rules: usize,
        /// How many there may be.
        most: usize,
    },
    /// One that names nobody or nothing.
    #[error("rule {rule} names nobody or nothing: it needs who may open what")]
    Void {
        /// Which, from 1.
        rule: usize,
    },
    /// Too many ports.
    #[error("the rules name {entries} ports: at most {MAX_ENTRIES} are taken")]
    TooManyPorts {
        /// How many.
        entries: usize,
    },
    /// Too much text.
    #[error("the rules' names and services have {bytes} bytes: at most {MAX_TEXT} are taken")]
    TooLong {
        /// How many.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &[&str], to: &[&str]) -> AccessRule {
        AccessRule {
            from: from.iter().map(|who| who.parse().unwrap()).collect(),
            to: to.iter().map(|service| service.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn rules_are_bounded_and_say_something() {
        let check = |rules: &[AccessRule]| AccessRule::check(rules.iter(), 3);
        let sound = rule(&["all"], &["ping", "tcp/1-1000"]);
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&vec![sound.clone(); 3]), Ok(()));
        assert_eq!(check(&vec![sound.clone(); 4]), Err(UnfitRules::TooMany { rules: 4, most: 3 }));
        for void in [rule(&[], &["ping"]), rule(&["all"], &[])] {
            assert_eq!(check(&[sound.clone(), void]), Err(UnfitRules::Void { rule: 2 }));
        }
        let ports = rule(&["all"], &["tcp/1-1000", "tcp/1001-2000", "udp/1-97"]);
        assert_eq!(check(&[ports.clone(), ports.clone()]), Err(UnfitRules::TooManyPorts { entries: 4_194 }));
        let names = vec!["a.name.of.some.length"; 1_600];
        assert_eq!(check(&[rule(&names, &["ping"])]), Err(UnfitRules::TooLong { bytes: 36_806 }));
    }
}
