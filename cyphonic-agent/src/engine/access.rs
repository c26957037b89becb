//! Which peers may open what here: the settings' rules in the terms of the port policy.
//!
//! A rule for all devices becomes permissions for every class. Of the others it is looked up when a peer's
//! tunnel stands, by the name in its certificate, which of them are for it; peers who may open the same are a
//! class. What this device opens itself is not restricted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::iter::once;

use cyphonic_common::policy::{
    Direction, ECHO_REQUEST, EVERY_CLASS, EVERY_PORT, EVERY_PROTOCOL, ICMPV6, PolicyKey,
};
use cyphonic_dataplane::ring::Permissions;

use crate::config::{AccessRule, Service, Who};

/// What a ping is to the policy: ICMPv6, and the type of an echo request.
const PING: (u8, u16) = (ICMPV6, ECHO_REQUEST as u16);

/// Peers without their class that are told of.
const MAX_REFUSED: usize = 64;

/// Services of this device, as protocol and port, sorted.
type Services = Vec<(u8, u16)>;

/// See the module.
#[derive(Debug)]
pub struct Access {
    rules: Vec<AccessRule>,
    zone: String,
    permissions: Permissions,
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

impl Access {
    /// The rules, for an overlay with this zone, in place of others: no class of those becomes another one.
    pub(super) fn new(rules: Vec<AccessRule>, zone: &str, before: Option<&Self>) -> Self {
        let mut permissions = Permissions::from_iter([PolicyKey::everything(Direction::Out)]);
        let for_all = rules.iter().filter(|rule| rule.from.contains(&Who::All));
        allow(&mut permissions, EVERY_CLASS, &services(for_all));
        let used = |before: &Self| {
            let given = |(_, class): &(&Services, &u32)| before.given.contains(class);
            before.classes.iter().filter(given).map(|(services, class)| (services.clone(), *class)).collect()
        };
        Self {
            rules,
            zone: zone.to_owned(),
            permissions,
            classes: before.map(used).unwrap_or_default(),
            given: HashSet::new(),
            last_class: before.map_or(EVERY_CLASS, |before| before.last_class),
            refused: BTreeMap::new(),
        }
    }

    /// The rules.
    pub(super) fn rules(&self) -> &[AccessRule] {
        &self.rules
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
        Some(format!("what `access` allows {fqdn}{others} but not everybody is denied: {why}"))
    }

    /// The class of a peer with this name.
    pub(super) fn class_of(&self, fqdn: &str) -> Class {
        let special = |rule: &&AccessRule| !rule.from.contains(&Who::All) && self.is_for(rule, fqdn);
        let services = services(self.rules.iter().filter(special));
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

    /// The policy did not take those that a peer with this name needs.
    pub(super) fn is_refused(&mut self, fqdn: &str, why: &dyn Display) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(fqdn.to_owned(), why.to_string());
        }
    }

    /// What a device with this name may open here, in the settings' words, without doubles.
    pub(super) fn open_to(&self, fqdn: &str) -> Vec<String> {
        let mut open = Vec::new();
        let in_force = |rule: &&AccessRule| rule.from.contains(&Who::All) || !self.refused.contains_key(fqdn);
        for rule in self.rules.iter().filter(|rule| self.is_for(rule, fqdn)).filter(in_force) {
            for service in rule.to.iter().map(Service::to_string) {
                if !open.contains(&service) {
                    open.push(service);
                }
            }
        }
        open
    }

    fn is_for(&self, rule: &AccessRule, fqdn: &str) -> bool {
        rule.from.iter().any(|who| who.includes(fqdn, &self.zone))
    }
}

/// What these rules name, once each.
fn services<'a>(rules: impl Iterator<Item = &'a AccessRule>) -> Services {
    let mut all: Services = rules.flat_map(|rule| &rule.to).flat_map(entries).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// As the policy has them.
fn entries(service: &Service) -> Box<dyn Iterator<Item = (u8, u16)> + '_> {
    match service {
        Service::All => Box::new(once((EVERY_PROTOCOL, EVERY_PORT))),
        Service::Ping => Box::new(once(PING)),
        Service::Protocol(protocol) => Box::new(once((protocol.number(), EVERY_PORT))),
        Service::Ports(protocol, ports) => Box::new(ports.clone().map(|port| (protocol.number(), port))),
    }
}

fn allow(permissions: &mut Permissions, class: u32, services: &Services) {
    for (protocol, port) in services {
        permissions.allow(PolicyKey::new(Direction::In, class, *protocol, *port));
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_common::policy::PolicyTable as _;

    use super::*;

    const ZONE: &str = "cyphonic.internal";
    const TCP: u8 = 6;

    fn access(yaml: &str) -> Access {
        Access::new(serde_yaml::from_str(yaml).unwrap(), ZONE, None)
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

    #[test]
    fn without_a_rule_nobody_may_open_anything_and_this_device_all() {
        let mut none = access("[]");
        assert_eq!(class(&mut none, "a"), EVERY_CLASS);
        let expected = Permissions::from_iter([PolicyKey::everything(Direction::Out)]);
        assert_eq!((none.permissions(), none.rules().len()), (&expected, 0));
        assert_eq!(none.open_to("a.cyphonic.internal"), Vec::<String>::new());
    }

    #[test]
    fn what_is_for_all_is_of_every_class() {
        let mut access = access("[{from: [x, all], to: [ping, tcp/80-81, udp]}]");
        assert_eq!(class(&mut access, "x"), EVERY_CLASS);
        for (protocol, port) in [PING, (TCP, 80), (TCP, 81), (17, EVERY_PORT)] {
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
        assert_eq!(access.open_to("hmi.cyphonic.internal"), ["tcp/22", "tcp/502"]);
    }

    #[test]
    fn under_other_rules_who_may_open_the_same_stays_in_its_class_and_none_becomes_another() {
        let mut before = access("[{from: a, to: tcp/22}, {from: b, to: tcp/80}]");
        assert_eq!(["a", "b"].map(|name| class(&mut before, name)), [1, 2]);
        let rules =
            serde_yaml::from_str("[{from: all, to: ping}, {from: a, to: tcp/22}, {from: b, to: tcp/23}]");
        let mut after = Access::new(rules.unwrap(), ZONE, Some(&before));
        assert!(
            matches!(after.class_of("a.cyphonic.internal"), Class::New(_)),
            "its permissions are to be given"
        );
        assert_eq!(["a", "b"].map(|name| class(&mut after, name)), [1, 3]);
        assert!(holds(&after, 1, TCP, 22) && !holds(&after, 2, TCP, 80) && holds(&after, 3, TCP, 23));
        let rules = serde_yaml::from_str("[{from: b, to: tcp/80}]").unwrap();
        let mut last = Access::new(rules, ZONE, Some(&after));
        assert_eq!(class(&mut last, "b"), 4, "the numbers of what is not used are forgotten");
    }

    #[test]
    fn a_class_that_the_policy_did_not_take_is_new_again() {
        let mut access = access("[{from: a, to: tcp/22}, {from: all, to: ping}, {from: b, to: tcp/1}]");
        for _ in 0..2 {
            assert!(matches!(access.class_of("a.cyphonic.internal"), Class::New(NewClass { class: 1, .. })));
            access.is_refused("a.cyphonic.internal", &"the map is full");
            assert!(access.refused().is_some_and(|why| why.ends_with("the map is full")));
            assert_eq!(access.open_to("a.cyphonic.internal"), ["ping"], "what is in force");
        }
        assert_eq!(access.permissions().len(), 2);
        assert_eq!(class(&mut access, "b"), 1);
        assert!(access.refused().is_some(), "another one's class is not theirs");
        assert_eq!((class(&mut access, "a"), access.refused()), (2, None));
    }
}
