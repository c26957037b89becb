//! The overlay's rules of who may open what, as they are written.

use cyphonic_proto::access::{AccessRule, OverlayRule, Service, Who};
use cyphonic_transport::settings::written;
use serde::Deserialize;

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
