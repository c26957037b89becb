//! Access rules that mean nobody: most likely a name was mistyped, or its device has another one.

use cyphonic_proto::access::Who;

use crate::config::Config;

/// What is to be said of the rules where these are the devices' names. Without any device yet, nothing is.
pub(super) fn notes(config: &Config, names: &[String]) -> Vec<String> {
    let zone = &config.network.zone;
    let is_there = |who: &Who| *who == Who::All || names.iter().any(|name| who.includes(name, zone));
    let mut notes = Vec::new();
    if names.is_empty() {
        return notes;
    }
    for (n, rule) in config.access.iter().flatten().enumerate() {
        for (key, all) in [("from", &rule.rule.from), ("at", &rule.at)] {
            let nobody = all.iter().filter(|who| !is_there(who));
            notes.extend(nobody.map(|who| format!("access: rule {}: no device is `{key}: {who}`", n + 1)));
        }
    }
    notes
}
