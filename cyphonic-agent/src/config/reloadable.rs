//! Settings that a running daemon takes over.

use cyphonic_proto::access::AccessRule;
use serde_yaml::Value;

use super::Config;

/// The keys of [`Reloadable`], as they are written.
const KEYS: [&str; 2] = ["access", "keep_open"];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloadable {
    /// What [`Config::access`] means.
    pub access: Option<Vec<AccessRule>>,
    /// As [`Config::keep_open`].
    pub keep_open: Vec<String>,
}

impl Config {
    /// What a running daemon takes over of these settings.
    pub fn reloadable(&self) -> Reloadable {
        Reloadable { access: self.rules(), keep_open: self.keep_open.clone() }
    }

    /// The keys in which these settings differ from others and which are read at the start only.
    pub fn differences_at_start(&self, others: &Self) -> Vec<String> {
        // Both can be written: `cyphonicd config check` does it.
        let as_written = |config| serde_yaml::to_value(config).unwrap_or_default();
        let (Value::Mapping(own), others) = (as_written(self), as_written(others)) else { return Vec::new() };
        let keys = own.iter().filter(|(key, value)| others.get(key) != Some(value));
        let names = keys.filter_map(|(key, _)| key.as_str()).filter(|key| !KEYS.contains(key));
        names.map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_running_daemon_does_not_take_over_is_named() {
        let running = Config::default();
        assert_eq!(running.differences_at_start(&running), Vec::<String>::new());
        let access = Some(Vec::new());
        let taken = Config { access, keep_open: vec!["a".into()], ..Config::default() };
        assert_eq!(running.differences_at_start(&taken), Vec::<String>::new());
        assert_ne!(running.reloadable(), taken.reloadable());
        let mut other = Config { port: 7, interface: "x".into(), ..taken };
        other.dns.listen.set_port(5300);
        assert_eq!(running.differences_at_start(&other), ["interface", "port", "dns"]);
        let keys = serde_yaml::to_value(&running).unwrap();
        assert!(KEYS.iter().all(|key| keys.get(key).is_some()), "{KEYS:?}");
    }
}
