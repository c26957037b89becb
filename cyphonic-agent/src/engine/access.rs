//! Which peers may open what here: rules in the terms of the port policy.
//!
//! A service may be opened where the device's own rules and the overlay's both allow it; at a device that stands
//! for a machine, where that one's services are meant as well. What they allow all
//! devices becomes permissions for every class. What they allow others is looked up when a peer's tunnel
//! stands, by the name in its certificate; peers who may open the same are a class. What this device opens
//! itself is not restricted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;

use cyphonic_common::policy::{Direction, EVERY_CLASS, PolicyKey};
use cyphonic_dataplane::ring::Permissions;
use cyphonic_proto::access::{AccessRule, OverlayAccess, Services};

/// Peers without their class that are told of.
const MAX_REFUSED: usize = 64;

/// Who may open what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    /// The device's own; `None`: it restricts nothing.
    pub(super) own: Option<Vec<AccessRule>>,
    /// The overlay's.
    pub(super) overlay: OverlayAccess,
    /// What there is for peers to open; `None`: all that the host has.
    pub(super) offered: Option<Services>,
}

impl Rules {
    /// Whether they allow nobody anything less than everything.
    fn allow_everything(&self) -> bool {
        self.own.is_none() && self.overlay == OverlayAccess::Unrestricted && self.offered.is_none()
    }

    /// What those for whom `is_theirs` may open.
    fn services(&self, is_theirs: impl Fn(&AccessRule) -> bool) -> Services {
        let overlay = self.overlay.services(&is_theirs);
        let allowed = match &self.own {
            Some(own) => Services::of(own.iter().filter(|rule| is_theirs(rule))).shared_with(&overlay),
            None => overlay,
        };
        match &self.offered {
            Some(offered) => allowed.shared_with(offered),
            None => allowed,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Access {
    rules: Rules,
    zone: String,
    permissions: Permissions,
    /// What all may open.
    for_all: Services,
    /// The classes of those who may open these services beyond what all may. Those of rules that were in
    /// force before are among them, so that peers for whom nothing changes stay in their class.
    classes: HashMap<Services, u32>,
    /// The classes whose permissions the policy has.
    given: HashSet<u32>,
    last_class: u32,
    /// Peers whose class the policy did not take, and why.
    refused: BTreeMap<String, String>,
}

/// A peer's class.
#[derive(Debug)]
pub(super) enum Class {
    /// The policy knows it.
    Known(u32),
    /// The policy must be given these permissions first; then tell [`Access::is_given`].
    New(NewClass),
}

#[derive(Debug)]
pub(super) struct NewClass {
    pub(super) class: u32,
    pub(super) permissions: Permissions,
    services: Services,
}

impl Default for Access {
    /// Where nobody restricts anything.
    fn default() -> Self {
        Self::new(Rules { own: None, overlay: OverlayAccess::Unrestricted, offered: None }, "", None)
    }
}

impl Access {
    /// The rules, for an overlay with this zone, in place of others: no class of those becomes another one.
    pub(super) fn new(rules: Rules, zone: &str, before: Option<&Self>) -> Self {
        let for_all = rules.services(AccessRule::is_for_all);
        let permissions = if rules.allow_everything() {
            Permissions::default()
        } else {
            let mut permissions = nothing();
            allow(&mut permissions, EVERY_CLASS, &for_all);
            permissions
        };
        let used = |before: &Self| {
            let given = |(_, class): &(&Services, &u32)| before.given.contains(class);
            before.classes.iter().filter(given).map(|(services, class)| (services.clone(), *class)).collect()
        };
        Self {
            rules,
            zone: zone.to_owned(),
            permissions,
            for_all,
            classes: before.map(used).unwrap_or_default(),
            given: HashSet::new(),
            last_class: before.map_or(EVERY_CLASS, |before| before.last_class),
            refused: BTreeMap::new(),
        }
    }

    /// The rules.
    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether anything is restricted.
    pub(super) fn restricts(&self) -> bool {
        !self.rules.allow_everything()
    }

    /// What the policy must permit.
    pub(super) fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// What of the rules is not in force, and why.
    pub(super) fn refused(&self) -> Option<String> {
        let (fqdn, why) = self.refused.first_key_value()?;
        let others = match self.refused.len() - 1 {
            0 => String::new(),
            others => format!(" (and {others} others)"),
        };
        Some(format!("what the rules allow {fqdn}{others} but not everybody is denied: {why}"))
    }

    /// The class of a peer with this name.
    pub(super) fn class_of(&self, fqdn: &str) -> Class {
        let services = self.services_of(fqdn).beyond(&self.for_all);
        if services.is_empty() {
            return Class::Known(EVERY_CLASS);
        }
        // Class 0 is every class.
        let class = self.classes.get(&services).copied().unwrap_or(self.last_class.saturating_add(1));
        if self.given.contains(&class) {
            return Class::Known(class);
        }
        let mut permissions = self.permissions.clone();
        allow(&mut permissions, class, &services);
        Class::New(NewClass { class, permissions, services })
    }

    /// The policy has the permissions of a new class, which a peer with this name is of.
    pub(super) fn is_given(&mut self, new: NewClass, fqdn: &str) {
        self.classes.insert(new.services, new.class);
        self.given.insert(new.class);
        self.last_class = self.last_class.max(new.class);
        self.permissions = new.permissions;
        self.refused.remove(fqdn);
    }

    /// The policy has had the permissions of this peer's class before.
    pub(super) fn is_known(&mut self, fqdn: &str) {
        self.refused.remove(fqdn);
    }

    /// The policy did not take those that a peer with this name needs.
    pub(super) fn is_refused(&mut self, fqdn: &str, why: &dyn Display) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(fqdn.to_owned(), why.to_string());
        }
    }

    /// The policy took none of the permissions: peers may open nothing, and what comes next has their room.
    pub(super) fn is_denied(&mut self) {
        self.permissions = nothing();
    }

    /// For a report on many devices.
    pub(super) fn openings(&self) -> Openings<'_> {
        Openings { access: self, known: HashMap::new() }
    }

    /// Whether each of the rules is for a device with this name.
    fn rules_for(&self, fqdn: &str) -> Vec<bool> {
        let Rules { own, overlay, .. } = &self.rules;
        let all = own.iter().flatten().chain(overlay.rules().into_iter().flatten());
        all.map(|rule| rule.is_for(fqdn, &self.zone)).collect()
    }

    fn services_of(&self, fqdn: &str) -> Services {
        self.rules.services(|rule| rule.is_for(fqdn, &self.zone))
    }
}

/// What devices may open here, in the settings' words. Rules may name thousands of ports, and devices
/// are many more than there are rules: of those to whom the same rules apply the words are found once.
pub(super) struct Openings<'a> {
    access: &'a Access,
    /// By the rules that apply; `None`: those for all, since the policy did not take the others.
    known: HashMap<Option<Vec<bool>>, Vec<String>>,
}

impl Openings<'_> {
    /// What a device with this name may open.
    pub(super) fn to(&mut self, fqdn: &str) -> Vec<String> {
        let access = self.access;
        let applying = (!access.refused.contains_key(fqdn)).then(|| access.rules_for(fqdn));
        let words = self.known.entry(applying).or_insert_with_key(|applying| match applying {
            Some(_) => access.services_of(fqdn).words(),
            None => access.for_all.words(),
        });
        words.clone()
    }
}

/// The permissions where peers may open nothing: what this device opens itself is not restricted.
pub(super) fn nothing() -> Permissions {
    Permissions::from_iter([PolicyKey::everything(Direction::Out)])
}

fn allow(permissions: &mut Permissions, class: u32, services: &Services) {
    for (protocol, port) in services.entries() {
        permissions.allow(PolicyKey::new(Direction::In, class, protocol, port));
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_common::packet::icmpv6::ECHO_REQUEST;
    use cyphonic_common::packet::protocol::{ICMPV6, TCP};
    use cyphonic_common::policy::{EVERY_PORT, EVERY_PROTOCOL, PolicyTable as _};

    use super::*;
    use crate::config::Config;

    const ZONE: &str = "cyphonic.internal";

    fn own(yaml: &str) -> Vec<AccessRule> {
        let config: Config = serde_yaml::from_str(&format!("access: {yaml}")).unwrap();
        config.rules().unwrap()
    }

    fn rules(yaml: &str) -> Rules {
        Rules { own: Some(own(yaml)), overlay: OverlayAccess::Unrestricted, offered: None }
    }

    fn access(yaml: &str) -> Access {
        Access::new(rules(yaml), ZONE, None)
    }

    /// By rules of the overlay that say this, and the device's own if there are any.
    fn told(overlay: &str, yaml: Option<&str>) -> Access {
        let overlay = OverlayAccess::Rules { rules: own(overlay), unread: 0 };
        Access::new(Rules { own: yaml.map(own), overlay, offered: None }, ZONE, None)
    }

    /// The class of a peer, as it is when its tunnel has been installed.
    fn class(access: &mut Access, name: &str) -> u32 {
        match access.class_of(&format!("{name}.{ZONE}")) {
            Class::Known(class) => class,
            Class::New(new) => {
                let class = new.class;
                access.is_given(new, &format!("{name}.{ZONE}"));
                class
            }
        }
    }

    fn holds(access: &Access, class: u32, protocol: u8, port: u16) -> bool {
        access.permissions().holds(&PolicyKey::new(Direction::In, class, protocol, port))
    }

    fn open(access: &Access, name: &str) -> Vec<String> {
        access.openings().to(&format!("{name}.{ZONE}"))
    }

    #[test]
    fn of_many_peers_the_words_are_found_once_for_each_set_of_rules_that_applies() {
        let overlay = "[{from: all, to: tcp/1-900}, {from: .office, to: udp}, {from: refused, to: sctp}]";
        let mut access = told(overlay, Some("[{from: all, to: tcp/22-1000}, {from: .office, to: udp/53}]"));
        access.is_refused(&format!("refused.{ZONE}"), &"the map is full");
        let mut openings = access.openings();
        for number in 0..1_000 {
            assert_eq!(openings.to(&format!("a{number}.{ZONE}")), ["tcp/22-900"]);
            assert_eq!(openings.to(&format!("a{number}.office.{ZONE}")), ["tcp/22-900", "udp/53"]);
        }
        assert_eq!(openings.to(&format!("refused.{ZONE}")), ["tcp/22-900"], "what all may");
        assert_eq!(openings.known.len(), 3);
    }

    #[test]
    fn without_a_rule_nobody_may_open_anything_and_this_device_all() {
        let mut none = access("[]");
        assert_eq!(class(&mut none, "a"), EVERY_CLASS);
        let expected = Permissions::from_iter([PolicyKey::everything(Direction::Out)]);
        assert_eq!((none.permissions(), none.restricts()), (&expected, true));
        assert!(open(&none, "a").is_empty());
    }

    #[test]
    fn what_is_for_all_is_of_every_class() {
        let mut access = access("[{from: [x, all], to: [ping, tcp/80-81, udp]}]");
        assert_eq!(class(&mut access, "x"), EVERY_CLASS);
        for (protocol, port) in [(ICMPV6, u16::from(ECHO_REQUEST)), (TCP, 80), (TCP, 81), (17, EVERY_PORT)] {
            assert!(holds(&access, EVERY_CLASS, protocol, port));
        }
        assert_eq!(access.permissions().len(), 5);
    }

    #[test]
    fn peers_who_may_open_the_same_are_a_class() {
        let mut access = access(
            "[{from: [hmi, .office], to: tcp/22}, {from: hmi*, to: tcp/502}, {from: x, to: all}, {from: y, to: [tcp/502, tcp/502]}]",
        );
        let classes: Vec<_> = ["hmi", "hmi2", "hmi3", "a.office", "x", "other", "y"]
            .map(|name| class(&mut access, name))
            .into();
        assert_eq!(classes, [1, 2, 2, 3, 4, EVERY_CLASS, 2]);
        for (class, ports) in [(1, [true, true]), (2, [false, true]), (3, [true, false]), (4, [false, false])]
        {
            assert_eq!([22, 502].map(|port| holds(&access, class, TCP, port)), ports, "{class}");
        }
        assert!(holds(&access, 4, EVERY_PROTOCOL, EVERY_PORT));
        assert_eq!(open(&access, "hmi"), ["tcp/22", "tcp/502"]);
    }

    #[test]
    fn who_may_open_no_more_than_all_is_of_no_class_of_its_own() {
        let mut access = access("[{from: all, to: [tcp, ping]}, {from: a, to: tcp/22}, {from: b, to: all}]");
        assert_eq!(["a", "b", "c"].map(|name| class(&mut access, name)), [EVERY_CLASS, 1, EVERY_CLASS]);
        assert_eq!(
            (open(&access, "a").join(" "), open(&access, "b").join(" ")),
            ("ping tcp".into(), "all".into())
        );
    }

    #[test]
    fn what_may_be_opened_is_what_device_and_overlay_allow() {
        let overlay = "[{from: all, to: [ping, udp/53]}, {from: [a, b], to: [tcp, udp]}, {from: c, to: all}]";
        let mut both =
            told(overlay, Some("[{from: all, to: ping}, {from: [a, c, d], to: [tcp/22, udp/53]}]"));
        for (name, may) in
            [("a", "ping tcp/22 udp/53"), ("b", "ping"), ("c", "ping tcp/22 udp/53"), ("d", "ping udp/53")]
        {
            assert_eq!(open(&both, name).join(" "), may, "{name}");
        }
        assert_eq!(["a", "b", "c", "d"].map(|name| class(&mut both, name)), [1, EVERY_CLASS, 1, 2]);
        assert!(holds(&both, 1, TCP, 22) && holds(&both, 2, 17, 53) && !holds(&both, EVERY_CLASS, 17, 53));
        let without_own = told(overlay, None);
        assert_eq!(open(&without_own, "c").join(" "), "all");
        assert_eq!(open(&without_own, "d").join(" "), "ping udp/53");
        let nothing = told("[]", Some("[{from: all, to: all}]"));
        assert!(nothing.restricts() && open(&nothing, "a").is_empty(), "the overlay allows nothing here");
    }

    #[test]
    fn at_a_device_that_stands_for_a_machine_only_that_ones_services_may_be_opened() {
        let offered = |own: Option<&str>, overlay| {
            let words: Vec<_> = ["ping", "tcp/502"].map(|word| word.parse().unwrap()).into();
            let rules = Rules { own: own.map(self::own), overlay, offered: Some(Services::named(&words)) };
            Access::new(rules, ZONE, None)
        };
        let all = offered(None, OverlayAccess::Unrestricted);
        assert!(all.restricts() && !all.permissions().are_all());
        assert_eq!(open(&all, "a"), ["ping", "tcp/502"]);
        let some = offered(Some("[{from: a, to: all}, {from: b, to: tcp/22}]"), OverlayAccess::Unrestricted);
        assert_eq!((open(&some, "a").join(" "), open(&some, "b").len()), ("ping tcp/502".into(), 0));
        let overlay = OverlayAccess::Rules { rules: own("[{from: all, to: tcp}]"), unread: 0 };
        assert_eq!(open(&offered(None, overlay), "a"), ["tcp/502"]);
    }

    #[test]
    fn where_nobody_restricts_nothing_is_even_looked_at() {
        let unrestricted = |own| {
            Access::new(
                Rules { own, overlay: OverlayAccess::Unrestricted, offered: None },
                ZONE,
                Some(&access("[]")),
            )
        };
        let mut lifted = unrestricted(None);
        assert!(!lifted.restricts() && lifted.permissions().are_all());
        assert_eq!(class(&mut lifted, "a"), EVERY_CLASS);
        assert!(unrestricted(Some(own("[{from: all, to: all}]"))).restricts(), "answers are looked for");
    }

    #[test]
    fn until_the_nms_has_told_nobody_may_open_anything() {
        for own in [None, Some(own("[{from: all, to: all}]"))] {
            let access =
                Access::new(Rules { own, overlay: OverlayAccess::Unknown, offered: None }, ZONE, None);
            assert!(access.restricts() && open(&access, "a").is_empty());
        }
    }

    #[test]
    fn under_other_rules_who_may_open_the_same_stays_in_its_class_and_none_becomes_another() {
        let mut before = access("[{from: a, to: tcp/22}, {from: b, to: tcp/80}]");
        assert_eq!(["a", "b"].map(|name| class(&mut before, name)), [1, 2]);
        let after = rules("[{from: all, to: ping}, {from: a, to: tcp/22}, {from: b, to: tcp/23}]");
        let mut after = Access::new(after, ZONE, Some(&before));
        assert!(
            matches!(after.class_of("a.cyphonic.internal"), Class::New(_)),
            "its permissions are to be given"
        );
        assert_eq!(["a", "b"].map(|name| class(&mut after, name)), [1, 3]);
        assert!(holds(&after, 1, TCP, 22) && !holds(&after, 2, TCP, 80) && holds(&after, 3, TCP, 23));
        let mut last = Access::new(rules("[{from: b, to: tcp/80}]"), ZONE, Some(&after));
        assert_eq!(class(&mut last, "b"), 4, "the numbers of what is not used are forgotten");
    }

    #[test]
    fn a_class_that_the_policy_did_not_take_is_new_again() {
        let mut access = access("[{from: a, to: tcp/22}, {from: all, to: ping}, {from: b, to: tcp/1}]");
        for _ in 0..2 {
            assert!(matches!(access.class_of("a.cyphonic.internal"), Class::New(NewClass { class: 1, .. })));
            access.is_refused("a.cyphonic.internal", &"the map is full");
            assert!(access.refused().is_some_and(|why| why.ends_with("the map is full")));
            assert_eq!(open(&access, "a"), ["ping"], "what is in force");
        }
        assert_eq!(access.permissions().len(), 2);
        access.is_refused("c.cyphonic.internal", &"the map is full");
        access.is_known("c.cyphonic.internal");
        assert!(access.refused().is_some_and(|why| why.contains(" a.cyphonic.internal ")), "and no others");
        assert_eq!(class(&mut access, "b"), 1);
        assert!(access.refused().is_some(), "another one's class is not theirs");
        assert_eq!((class(&mut access, "a"), access.refused()), (2, None));
    }
}
