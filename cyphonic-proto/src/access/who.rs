//! Devices, as rules name them.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use crate::name::{self, NameError};

/// Some devices of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// All.
    All,
    /// All whose names end so: canonical, with the dot in front.
    Below(String),
    /// All whose names look so: canonical labels, in which `*` stands for any characters.
    Named(String),
}

impl Who {
    /// Whether a device is one of them. They may be written with or without the zone, which is no part of
    /// what is compared: it says nothing of a device.
    pub fn includes(&self, fqdn: &str, zone: &str) -> bool {
        let Some(name) = without_zone(fqdn, zone) else { return *self == Self::All };
        let written = |text: &'_ str| without_zone(text, zone).unwrap_or(text).to_owned();
        match self {
            Self::All => true,
            Self::Below(suffix) => {
                let suffix = written(suffix);
                name.len() > suffix.len() && name.ends_with(&suffix)
            }
            Self::Named(pattern) => matches(&written(pattern), name),
        }
    }
}

/// What stands before the zone, if it does.
fn without_zone<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    name.strip_suffix(zone)?.strip_suffix('.')
}

/// Label by label: a `*` stands for no dot.
fn matches(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut labels) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), labels.next()) {
            (None, None) => return true,
            (Some(pattern), Some(label)) if label_matches(pattern, label) => {}
            _ => return false,
        }
    }
}

fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == label };
    label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
}

impl FromStr for Who {
    type Err = InvalidWho;

    fn from_str(text: &str) -> Result<Self, InvalidWho> {
        let invalid = |why| InvalidWho { text: text.to_owned(), why };
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(suffix) = text.strip_prefix('.') {
            let suffix = name::canonical(suffix).map_err(|error| invalid(WhyNobody::Name(error)))?;
            return Ok(Self::Below(format!(".{suffix}")));
        }
        if text.split('.').any(|label| label.matches('*').count() > 1) {
            return Err(invalid(WhyNobody::Stars));
        }
        // What a `*` stands for makes a name of it.
        let name = name::canonical(&text.replace('*', "0"));
        name.map_err(|error| invalid(WhyNobody::Name(error)))?;
        Ok(Self::Named(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()))
    }
}

impl Display for Who {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Below(name) | Self::Named(name) => f.write_str(name),
        }
    }
}

/// A text that says of no device that it is meant.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no device's name: {why}; allowed are names (`press-7.plant`, with or without the zone), `press-*.plant`, \
     `.plant` for all below it, and `all`"
)]
pub struct InvalidWho {
    text: String,
    why: WhyNobody,
}

#[derive(Debug, thiserror::Error)]
enum WhyNobody {
    #[error(transparent)]
    Name(NameError),
    #[error("a part between dots has more than one `*`")]
    Stars,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: &str = "plant.cyphonic.internal";

    fn includes(who: &str, name: &str) -> bool {
        who.parse::<Who>().unwrap().includes(&format!("{name}.{ZONE}"), ZONE)
    }

    #[test]
    fn devices_are_named_by_name_by_pattern_and_by_what_they_are_below() {
        for (who, included, others) in [
            ("all", vec!["a", "a.b.c"], vec![]),
            ("press-7", vec!["press-7"], vec!["press-77", "press-7.hall", "xpress-7"]),
            ("Press-7.Hall.", vec!["press-7.hall"], vec!["press-7", "press-7.hall.x"]),
            ("press-7.plant.cyphonic.internal", vec!["press-7"], vec!["press-7.plant", "press"]),
            ("press-*", vec!["press-7", "press-77", "press-"], vec!["press", "press-7.hall"]),
            ("press-*.hall", vec!["press-7.hall"], vec!["press-7", "press-7.a.hall"]),
            ("*.hall", vec!["x.hall"], vec!["hall", "a.x.hall"]),
            ("*", vec!["x"], vec!["x.hall"]),
            ("a*a", vec!["aa", "aba"], vec!["a"]),
            (".hall", vec!["x.hall", "a.x.hall"], vec!["hall", "x.xhall", "hall.x"]),
            (".plant.cyphonic.internal", vec!["x", "x.hall"], vec![]),
            (".hall.plant.cyphonic.internal", vec!["x.hall"], vec!["hall", "x"]),
            ("*.plant.cyphonic.internal", vec!["x"], vec!["x.hall"]),
            // The zone's own words say nothing of a device.
            (".internal", vec!["x.internal"], vec!["x", "internal"]),
            (".cyphonic.internal", vec!["x.cyphonic.internal"], vec!["x"]),
            ("*.*.*.*", vec!["a.b.c.d"], vec!["x", "a.b.c"]),
            ("plant.cyphonic.internal", vec![], vec!["x", "plant"]),
        ] {
            assert!(included.iter().all(|name| includes(who, name)), "{who}");
            let wrong: Vec<_> = others.iter().filter(|name| includes(who, name)).collect();
            assert!(wrong.is_empty(), "{who} includes {wrong:?}");
        }
    }

    #[test]
    fn what_is_no_name_says_what_would_be() {
        for who in ["", ".", "a b", "a**b", "-a", "..a", "press_7", "a..b"] {
            let error = who.parse::<Who>().unwrap_err().to_string();
            assert!(error.contains(&format!("{who:?}")) && error.contains("`.plant`"), "{error}");
        }
    }
}
