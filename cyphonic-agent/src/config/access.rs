//! Who may open conversations with this device, and with which of its services, as it is written.

use cyphonic_proto::access::{AccessRule, Service, Who};
use cyphonic_transport::settings::written;
use serde::{Deserialize, Serialize};

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRule {
    #[serde(deserialize_with = "written::one_or_many", serialize_with = "written::texts")]
    from: Vec<Who>,
    #[serde(deserialize_with = "written::one_or_many", serialize_with = "written::texts")]
    to: Vec<Service>,
}

impl WrittenRule {
    /// What it means.
    pub(super) fn meaning(&self) -> AccessRule {
        AccessRule { from: self.from.clone(), to: self.to.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_yaml_takes_for_a_number_is_refused() {
        for from in ["[12.10]", "12.10", "[7]", "[.7]", "[true]", "null"] {
            let error = serde_yaml::from_str::<WrittenRule>(&format!("from: {from}\nto: ping\n"));
            assert!(from == "null" || error.is_err(), "{from}: {error:?}");
        }
        let quoted = serde_yaml::from_str::<WrittenRule>("from: ['12.10']\nto: ping\n").unwrap();
        assert_eq!(quoted.from, ["12.10".parse().unwrap()]);
        let error = serde_yaml::from_str::<WrittenRule>("from: [12.10]\nto: ping\n").unwrap_err().to_string();
        assert!(error.contains("in quotes") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn one_need_not_be_a_list() {
        let rule = |yaml: &str| serde_yaml::from_str::<WrittenRule>(yaml);
        let short = rule("{from: all, to: ping}").unwrap();
        assert_eq!(short, rule("{from: [all], to: [ping]}").unwrap());
        assert_eq!(rule(&serde_yaml::to_string(&short).unwrap()).unwrap(), short);
        assert!(rule("{from: all}").is_err() && rule("{from: all, to: ping, port: 3}").is_err());
        let error = rule("from: all\nto: [ping, ssh]\n").unwrap_err().to_string();
        assert!(error.contains("ssh") && error.contains("line 2"), "{error}");
    }
}
