//! The overlay's rules of who may open what, as they are written.

use cyphonic_proto::access::{AccessRule, OverlayAccess, OverlayRule, Service, Services, Who};
use cyphonic_transport::settings::written;
use serde::Deserialize;

use crate::names::device_fqdn;

/// A rule.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenRule {
    #[serde(deserialize_with = "written::one_or_many")]
    from: Vec<Who>,
    #[serde(deserialize_with = "written::one_or_many")]
    at: Vec<Who>,
    #[serde(deserialize_with = "written::one_or_many")]
    to: Vec<Service>,
}

/// What they mean together.
///
/// # Errors
/// If they are too many, or one says nothing.
pub(super) fn check(rules: Vec<WrittenRule>) -> Result<Vec<OverlayRule>, String> {
    if let Some(n) = rules.iter().position(|rule| rule.at.is_empty()) {
        return Err(format!("rule {} holds nowhere: give it `at`", n + 1));
    }
    let meaning = |WrittenRule { from, at, to }| OverlayRule { at, rule: AccessRule { from, to } };
    let rules: Vec<_> = rules.into_iter().map(meaning).collect();
    OverlayRule::check(&rules).map_err(|unfit| unfit.to_string())?;
    Ok(rules)
}

/// What the rules are to come to, of each of these devices with each of those.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenTest {
    #[serde(deserialize_with = "written::one_or_many")]
    from: Vec<String>,
    #[serde(deserialize_with = "written::one_or_many")]
    at: Vec<String>,
    #[serde(default, deserialize_with = "written::one_or_many")]
    may: Vec<Service>,
    #[serde(default, deserialize_with = "written::one_or_many")]
    may_not: Vec<Service>,
}

/// Whether the rules come to what the tests say.
///
/// # Errors
/// What they come to instead, or a test that tests nothing.
pub(super) fn try_rules(
    tests: &[WrittenTest],
    rules: Option<&[OverlayRule]>,
    zone: &str,
) -> Result<(), String> {
    for (n, test) in tests.iter().enumerate() {
        test.run(rules, zone).map_err(|reason| format!("test {}: {reason}", n + 1))?;
    }
    Ok(())
}

impl WrittenTest {
    fn run(&self, rules: Option<&[OverlayRule]>, zone: &str) -> Result<(), String> {
        if self.from.is_empty() || self.at.is_empty() || (self.may.is_empty() && self.may_not.is_empty()) {
            return Err("it tests nothing: it needs `from`, `at`, and `may` or `may_not`".to_owned());
        }
        for at in &self.at {
            let at = device_fqdn(at, zone)?;
            let access = OverlayAccess::at(&at, zone, rules);
            for from in &self.from {
                let from = device_fqdn(from, zone)?;
                let allowed = access.services(|rule| rule.is_for(&from, zone));
                self.compare(&allowed).map_err(|(verb, service)| {
                    let all = allowed.words().join(", ");
                    let all = if all.is_empty() { "nothing".to_owned() } else { all };
                    format!("{from} {verb} open {service} with {at}: by `access` it may open {all} there")
                })?;
            }
        }
        Ok(())
    }

    /// The first service that is not as the test says.
    fn compare(&self, allowed: &Services) -> Result<(), (&'static str, &Service)> {
        for service in &self.may {
            let tested = Services::named([service]);
            if allowed.shared_with(&tested) != tested {
                return Err(("may not", service));
            }
        }
        for service in &self.may_not {
            // Not in part either.
            if !allowed.shared_with(&Services::named([service])).is_empty() {
                return Err(("may", service));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::access::MAX_OVERLAY_RULES;

    use super::*;

    fn read(yaml: &str) -> Result<Vec<OverlayRule>, String> {
        check(serde_yaml::from_str(yaml).map_err(|error| error.to_string())?)
    }

    #[test]
    fn a_rule_says_who_may_open_what_at_which_devices() {
        let rules =
            read("[{from: [hmi, .office], at: press-*, to: [ping, tcp/502]}, {from: all, at: all, to: all}]");
        let rules = rules.unwrap();
        let holds = |n: usize, name| rules[n].is_at(name, "cyphonic.internal");
        assert!(holds(0, "press-7.cyphonic.internal") && !holds(0, "hmi.cyphonic.internal"));
        assert!(holds(1, "hmi.cyphonic.internal"));
        assert!(rules[0].rule.is_for("a.office.cyphonic.internal", "cyphonic.internal"));
        assert_eq!(read("[]").unwrap(), []);
    }

    #[test]
    fn tests_say_what_the_rules_are_to_come_to() {
        let rules =
            read("[{from: all, at: all, to: ping}, {from: hmi, at: press-*, to: [tcp/20-25, udp]}]").unwrap();
        let run = |tests: &str, rules: Option<&[OverlayRule]>| {
            try_rules(&serde_yaml::from_str::<Vec<WrittenTest>>(tests).unwrap(), rules, "cyphonic.internal")
        };
        for sound in [
            "[]",
            "[{from: hmi, at: [press-1, press-2], may: [tcp/22, tcp/20-25, udp/53, ping], may_not: [tcp/80, sctp]}]",
            "[{from: [press-1, gate], at: hmi, may: ping, may_not: [tcp, udp]}]",
        ] {
            assert_eq!(run(sound, Some(&rules)), Ok(()), "{sound}");
        }
        for (wrong, why) in [
            (
                "[{from: hmi, at: press-1, may: tcp/80}]",
                "test 1: hmi.cyphonic.internal may not open tcp/80 with press-1.cyphonic.internal: by `access` it may open ping, tcp/20-25, udp there",
            ),
            ("[{from: hmi, at: press-1, may: tcp}]", "may not open tcp with"),
            ("[{from: hmi, at: press-1, may: tcp/24-26}]", "may not open tcp/24-26 with"),
            (
                "[{from: hmi, at: press-1, may: ping}, {from: hmi, at: press-1, may_not: tcp/24-26}]",
                "test 2: hmi.cyphonic.internal may open tcp/24-26 with",
            ),
            ("[{from: hmi, at: press-1, may_not: all}]", "may open all with"),
            ("[{from: gate, at: press-1, may: all}]", "may open ping there"),
            (
                "[{from: [hmi, press-2], at: press-1, may: tcp/22}]",
                "press-2.cyphonic.internal may not open tcp/22",
            ),
            ("[{from: hmi, at: press-1}]", "it tests nothing"),
            ("[{from: [], at: press-1, may: ping}]", "it tests nothing"),
            ("[{from: press-*, at: press-1, may: ping}]", "cannot name a device"),
        ] {
            let error = run(wrong, Some(&rules)).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
        assert_eq!(run("[{from: a, at: b, may: all}]", None), Ok(()), "nothing is restricted");
        assert!(run("[{from: a, at: b, may_not: tcp/22}]", None).unwrap_err().contains("may open all there"));
        let none = run("[{from: a, at: b, may: ping}]", Some(&[])).unwrap_err();
        assert!(none.contains("may open nothing there"), "{none}");
    }

    #[test]
    fn what_says_nothing_or_too_much_is_refused() {
        for (yaml, why) in [
            ("[{from: a, to: ping}]", "missing field `at`"),
            ("[{from: a, at: [], to: ping}]", "rule 1 holds nowhere"),
            ("[{from: a, at: b, to: []}]", "rule 1 names nobody or nothing"),
            ("[{from: a, at: b, to: ssh}]", "\"ssh\" is no service"),
            ("[{from: [12.10], at: b, to: ping}]", "in quotes where it looks like a number"),
            ("[{from: a, at: b, to: ping, via: c}]", "unknown field `via`"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(why), "{yaml}: {error}");
        }
        let many = vec!["{from: a, at: b, to: ping}"; MAX_OVERLAY_RULES + 1].join(",");
        assert!(read(&format!("[{many}]")).unwrap_err().contains("at most 256"));
    }
}
