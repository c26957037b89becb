//! The overlay's rules, and what a device is told of them.

use super::{AccessRule, MAX_ENTRIES, Services, UnfitRules, Who};
use crate::message;

/// Most rules of an overlay.
pub const MAX_OVERLAY_RULES: usize = 256;

/// A rule, and the devices at which it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayRule {
    /// At which devices.
    pub at: Vec<Who>,
    /// Who may open what with them.
    pub rule: AccessRule,
}

impl OverlayRule {
    /// Whether it holds at a device.
    pub fn is_at(&self, fqdn: &str, zone: &str) -> bool {
        self.at.iter().any(|who| who.includes(fqdn, zone))
    }

    /// Checks that rules of an overlay are not too many or too long, and that each says something.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(rules: &[Self]) -> Result<(), UnfitRules> {
        let text = |rule: &Self| rule.rule.text() + super::text(&rule.at);
        AccessRule::check_all(
            rules.iter().map(|rule| &rule.rule),
            MAX_OVERLAY_RULES,
            rules.iter().map(text).sum(),
        )
    }
}

/// What the overlay's rules say of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OverlayAccess {
    /// The NMS has not told yet: until it does, nobody may open anything.
    #[default]
    Unknown,
    /// The overlay has no rules.
    Unrestricted,
    /// Others may open with the device what these allow.
    Rules {
        /// Those that hold at the device.
        rules: Vec<AccessRule>,
        /// Names and services that this device does not understand, or rules too many: what they would allow
        /// is denied.
        unread: usize,
    },
}

impl OverlayAccess {
    /// At a device, by these rules of the overlay; `None`: it has none.
    pub fn at(fqdn: &str, zone: &str, rules: Option<&[OverlayRule]>) -> Self {
        let Some(rules) = rules else { return Self::Unrestricted };
        let there = rules.iter().filter(|rule| rule.is_at(fqdn, zone)).map(|rule| rule.rule.clone());
        Self::Rules { rules: there.collect(), unread: 0 }
    }

    /// The rules; none where there is nothing to restrict.
    pub fn rules(&self) -> Option<&[AccessRule]> {
        match self {
            Self::Unknown => Some(&[]),
            Self::Unrestricted => None,
            Self::Rules { rules, .. } => Some(rules),
        }
    }

    /// What those for whom `is_theirs` may open.
    pub fn services(&self, is_theirs: impl Fn(&AccessRule) -> bool) -> Services {
        self.rules()
            .map_or_else(Services::all, |rules| Services::of(rules.iter().filter(|rule| is_theirs(rule))))
    }

    /// As messages carry it, under the number that orders what one NMS tells; `None` where nothing is known.
    pub(crate) fn to_wire(&self, revision: u64) -> Option<message::AccessRules> {
        match self {
            Self::Unknown => None,
            Self::Unrestricted => {
                Some(message::AccessRules { revision, unrestricted: true, rules: Vec::new() })
            }
            Self::Rules { rules, .. } => Some(message::AccessRules {
                revision,
                unrestricted: false,
                rules: rules.iter().map(AccessRule::to_wire).collect(),
            }),
        }
    }

    /// Of a message, as far as this version understands it.
    pub(crate) fn from_wire(told: &message::AccessRules) -> Self {
        if told.unrestricted {
            return Self::Unrestricted;
        }
        let (mut rules, mut unread, mut entries) = (Vec::new(), 0, 0);
        for rule in &told.rules {
            let rule = AccessRule::from_wire(rule, &mut unread);
            if rule.from.is_empty() || rule.to.is_empty() {
                continue;
            }
            if rules.len() == MAX_OVERLAY_RULES || entries + rule.entries() > MAX_ENTRIES {
                unread += 1;
                continue;
            }
            entries += rule.entries();
            rules.push(rule);
        }
        Self::Rules { rules, unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: &str = "cyphonic.internal";

    fn rule(from: &str, to: &str) -> AccessRule {
        AccessRule { from: vec![from.parse().unwrap()], to: vec![to.parse().unwrap()] }
    }

    fn told(rules: &[(&[&str], &[&str])]) -> OverlayAccess {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let rules =
            rules.iter().map(|(from, to)| message::AccessRule { from: texts(from), to: texts(to) }).collect();
        OverlayAccess::from_wire(&message::AccessRules { revision: 1, unrestricted: false, rules })
    }

    #[test]
    fn a_device_is_told_the_rules_that_hold_there() {
        let at =
            |at: &str, from: &str| OverlayRule { at: vec![at.parse().unwrap()], rule: rule(from, "ping") };
        let rules = [at("press-*", "hmi"), at(".hall", "all"), at("all", "admin")];
        let access = |name: &str| OverlayAccess::at(&format!("{name}.{ZONE}"), ZONE, Some(&rules));
        let of = |from: &[&str]| OverlayAccess::Rules {
            rules: from.iter().map(|from| rule(from, "ping")).collect(),
            unread: 0,
        };
        assert_eq!(access("press-1"), of(&["hmi", "admin"]));
        assert_eq!(access("x.hall"), of(&["all", "admin"]));
        assert_eq!(access("hmi"), of(&["admin"]));
        assert_eq!(OverlayAccess::at("hmi", ZONE, Some(&[])), of(&[]), "nobody may open anything");
        assert_eq!(OverlayAccess::at("hmi", ZONE, None), OverlayAccess::Unrestricted);
    }

    #[test]
    fn what_is_told_survives_the_way() {
        let rules = vec![rule("press-*.hall", "tcp/22"), rule("all", "ping"), rule(".office", "udp/5-10")];
        for access in [OverlayAccess::Unrestricted, OverlayAccess::Rules { rules, unread: 0 }] {
            assert_eq!(OverlayAccess::from_wire(&access.to_wire(7).unwrap()), access);
        }
        assert_eq!(OverlayAccess::Unknown.to_wire(7), None);
    }

    #[test]
    fn what_is_not_understood_is_not_allowed() {
        let rules = vec![rule("a", "ping")];
        let partly =
            told(&[(&["a", "group:press"], &["ping", "icmp/8"]), (&["@all"], &["all"]), (&["a"], &[])]);
        assert_eq!(partly, OverlayAccess::Rules { rules, unread: 3 });
        assert_eq!(told(&[]).rules(), Some(&[][..]));
    }

    #[test]
    fn rules_too_many_are_not_taken() {
        let many = vec![(&["a"][..], &["ping"][..]); MAX_OVERLAY_RULES + 2];
        let OverlayAccess::Rules { rules, unread } = told(&many) else { panic!() };
        assert_eq!((rules.len(), unread), (MAX_OVERLAY_RULES, 2));
        let large = vec![(&["a"][..], &["tcp/1-1000"][..]); 6];
        let OverlayAccess::Rules { rules, unread } = told(&large) else { panic!() };
        assert_eq!((rules.len(), unread), (4, 2));
    }

    #[test]
    fn until_the_nms_has_told_nobody_may_open_anything() {
        assert!(OverlayAccess::default().services(|_| true).is_empty());
        assert_eq!(OverlayAccess::Unrestricted.services(|_| false), Services::all());
    }
}
