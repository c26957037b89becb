//! Which peers may open what here: the settings' rules in the terms of the port policy.
//!
//! A rule for all devices becomes permissions for every class. Of the others it is looked up when a peer's tunnel
//! stands, by the name in its certificate, which of them are for it; peers for whom the same rules hold are a
//! class. What this device opens itself is not restricted.

use std::collections::HashMap;

use cyphonic_common::policy::{Direction, EVERY_CLASS, EVERY_PORT, EVERY_PROTOCOL, PolicyKey};
use cyphonic_dataplane::ring::Permissions;

use crate::config::{AccessRule, Protocol, Service, Who};

/// What a ping is to the policy: ICMPv6, and the type of an echo request.
const PING: (u8, u16) = (58, 128);

/// See the module.
#[derive(Debug)]
pub struct Access {
    rules: Vec<AccessRule>,
    zone: String,
    permissions: Permissions,
    /// The class of those for whom these rules hold, a bit each.
    classes: HashMap<u64, u32>,
    last_class: u32,
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
    rules: u64,
}

impl Access {
    /// The rules, for an overlay with this zone, in place of others: while peers go from classes of those to classes
    /// of these, none means two things.
    pub(super) fn new(rules: Vec<AccessRule>, zone: &str, before: Option<&Self>) -> Self {
        let mut permissions = Permissions::from_iter([PolicyKey::everything(Direction::Out)]);
        for rule in rules.iter().filter(|rule| rule.from.contains(&Who::All)) {
            allow(&mut permissions, EVERY_CLASS, rule);
        }
        let last_class = before.map_or(EVERY_CLASS, |before| before.last_class);
        Self { rules, zone: zone.to_owned(), permissions, classes: HashMap::new(), last_class }
    }

    /// The rules.
    pub(super) fn rules(&self) -> &[AccessRule] {
        &self.rules
    }

    /// What the policy must permit.
    pub(super) fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// The class of a peer with this name.
    pub(super) fn class_of(&self, fqdn: &str) -> Class {
        let rules = self.rules_for(fqdn);
        if rules == 0 {
            return Class::Known(EVERY_CLASS);
        }
        if let Some(class) = self.classes.get(&rules) {
            return Class::Known(*class);
        }
        let class = self.last_class.saturating_add(1);
        let mut permissions = self.permissions.clone();
        for (_, rule) in self.rules.iter().enumerate().filter(|(n, _)| rules & 1 << n != 0) {
            allow(&mut permissions, class, rule);
        }
        Class::New(NewClass { class, permissions, rules })
    }

    /// The policy has the permissions of a new class.
    pub(super) fn is_given(&mut self, new: NewClass) {
        self.classes.insert(new.rules, new.class);
        self.last_class = new.class;
        self.permissions = new.permissions;
    }

    /// What a device with this name may open here, in the settings' words, without doubles.
    pub(super) fn open_to(&self, fqdn: &str) -> Vec<String> {
        let mut open = Vec::new();
        for rule in self.rules.iter().filter(|rule| self.is_for(rule, fqdn)) {
            for service in rule.to.iter().map(Service::to_string) {
                if !open.contains(&service) {
                    open.push(service);
                }
            }
        }
        open
    }

    /// The rules that hold for this name but not for all, a bit each.
    fn rules_for(&self, fqdn: &str) -> u64 {
        let special = |rule: &AccessRule| !rule.from.contains(&Who::All) && self.is_for(rule, fqdn);
        self.rules.iter().enumerate().filter(|(_, rule)| special(rule)).fold(0, |bits, (n, _)| bits | 1 << n)
    }

    fn is_for(&self, rule: &AccessRule, fqdn: &str) -> bool {
        rule.from.iter().any(|who| who.includes(fqdn, &self.zone))
    }
}

fn allow(permissions: &mut Permissions, class: u32, rule: &AccessRule) {
    let mut allow = |protocol, port| permissions.allow(PolicyKey::new(Direction::In, class, protocol, port));
    for service in &rule.to {
        match service {
            Service::All => allow(EVERY_PROTOCOL, EVERY_PORT),
            Service::Ping => allow(PING.0, PING.1),
            Service::Protocol(protocol) => allow(protocol.number(), EVERY_PORT),
            Service::Ports(protocol, ports) => {
                ports.clone().for_each(|port| allow(Protocol::number(*protocol), port));
            }
        }
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
                access.is_given(new);
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
    fn peers_for_whom_the_same_rules_hold_are_a_class() {
        let mut access =
            access("[{from: [hmi, .office], to: tcp/22}, {from: hmi*, to: tcp/502}, {from: x, to: all}]");
        let classes: Vec<_> =
            ["hmi", "hmi2", "hmi3", "a.office", "x", "other"].map(|name| class(&mut access, name)).into();
        assert_eq!(classes, [1, 2, 2, 3, 4, EVERY_CLASS]);
        for (class, ports) in [(1, [true, true]), (2, [false, true]), (3, [true, false]), (4, [false, false])]
        {
            assert_eq!([22, 502].map(|port| holds(&access, class, TCP, port)), ports, "{class}");
        }
        assert!(holds(&access, 4, EVERY_PROTOCOL, EVERY_PORT));
        assert_eq!(access.open_to("hmi.cyphonic.internal"), ["tcp/22", "tcp/502"]);
    }

    #[test]
    fn classes_of_other_rules_are_not_used_again() {
        let mut before = access("[{from: a, to: tcp/22}]");
        assert_eq!(class(&mut before, "a"), 1);
        let rules = serde_yaml::from_str("[{from: a, to: tcp/23}]").unwrap();
        let mut after = Access::new(rules, ZONE, Some(&before));
        assert_eq!(class(&mut after, "a"), 2);
        let both = before.permissions().and(after.permissions());
        assert_eq!((before.permissions().len(), both.len()), (2, 3));
    }

    #[test]
    fn a_class_that_the_policy_did_not_take_is_new_again() {
        let access = access("[{from: a, to: tcp/22}]");
        for _ in 0..2 {
            assert!(matches!(access.class_of("a.cyphonic.internal"), Class::New(NewClass { class: 1, .. })));
        }
        assert_eq!(access.permissions().len(), 1);
    }
}
