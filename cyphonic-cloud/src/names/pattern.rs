//! Names that a token leaves open: a device's name whose first label has one `*`.

use cyphonic_proto::message::bounded;
use cyphonic_proto::name::MAX_NAME;

use super::new_device_fqdn;

/// Stands for one or more characters of the first label.
const STAR: char = '*';

/// The names that one token can give, such as those of `camera-*.gate.cyphonic.internal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    before: String,
    after: String,
    /// What follows the first label.
    rest: String,
}

impl NamePattern {
    /// Whether a text is meant as one, and not as a name.
    pub fn is_meant(text: &str) -> bool {
        text.contains(STAR)
    }

    /// Reads what an operator wrote, with or without the zone.
    ///
    /// # Errors
    /// If there is not one star in the first label, or what it stands in cannot name a device.
    pub fn parse(text: &str, zone: &str) -> Result<Self, String> {
        // A character of names: what is around it is checked as of any name.
        const ANY: &str = "x";
        let wrong = || {
            format!("{text:?} cannot stand for names: write one `*` in the first label, as in camera-*.gate")
        };
        let label = text.split('.').next().unwrap_or(text);
        if text.matches(STAR).count() != 1 || !label.contains(STAR) {
            return Err(wrong());
        }
        let example = new_device_fqdn(&text.replace(STAR, ANY), zone)?;
        let (_, rest) = example.split_once('.').ok_or_else(wrong)?;
        let (before, after) = label.split_once(STAR).ok_or_else(wrong)?;
        let [before, after] = [before, after].map(str::to_ascii_lowercase);
        Ok(Self { before, after, rest: rest.to_owned() })
    }

    /// The name of a device that asks to be called so: by a first label that fits, alone or with some or all of what
    /// follows it.
    ///
    /// # Errors
    /// For who asks: if that does not fit, or cannot name a device.
    pub fn name_for(&self, asked: &str, zone: &str) -> Result<String, String> {
        if asked.len() > MAX_NAME {
            return Err("the name that it told is too long".into());
        }
        let asked = asked.strip_suffix('.').unwrap_or(asked).to_ascii_lowercase();
        let (label, follows) = asked.split_once('.').unwrap_or((&asked, ""));
        let fits_before_rest = follows.is_empty()
            || self.rest.strip_prefix(follows).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let star = label.strip_prefix(self.before.as_str()).and_then(|l| l.strip_suffix(self.after.as_str()));
        if !fits_before_rest || star.is_none_or(str::is_empty) {
            return Err(match asked.is_empty() {
                true => format!("its token is for names like {self}, and it told none"),
                false => format!("its token is for names like {self}, and not for {:?}", bounded(&asked)),
            });
        }
        new_device_fqdn(&format!("{label}.{}", self.rest), zone)
    }
}

impl std::fmt::Display for NamePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{STAR}{}.{}", self.before, self.after, self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: &str = "cyphonic.internal";

    fn pattern(text: &str) -> NamePattern {
        NamePattern::parse(text, ZONE).unwrap()
    }

    #[test]
    fn a_pattern_is_a_name_with_one_star_in_its_first_label() {
        for (text, shown) in [
            ("*", "*.cyphonic.internal"),
            ("Camera-*.gate", "camera-*.gate.cyphonic.internal"),
            ("camera-*.gate.Cyphonic.internal.", "camera-*.gate.cyphonic.internal"),
            ("*-cam", "*-cam.cyphonic.internal"),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.to_string(), shown);
            assert_eq!(NamePattern::parse(shown, ZONE), Ok(pattern), "what the register keeps is read again");
        }
        for wrong in [
            "camera",
            "**",
            "a*b*",
            "a.*",
            "*.*",
            "_*",
            "-*",
            "*.a..b",
            "*.svc",
            "*.cyphonic.internal.cyphonic.internal",
        ] {
            assert!(NamePattern::parse(wrong, ZONE).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_device_gets_the_name_that_it_asks_for_if_it_fits() {
        let cameras = pattern("camera-*.gate");
        for asked in [
            "camera-12",
            "CAMERA-12",
            "camera-12.gate",
            "camera-12.gate.cyphonic.internal",
            "camera-12.gate.cyphonic.internal.",
        ] {
            assert_eq!(
                cameras.name_for(asked, ZONE).as_deref(),
                Ok("camera-12.gate.cyphonic.internal"),
                "{asked}"
            );
        }
        for asked in [
            "",
            ".",
            "camera-",
            "press-7",
            "camera-12.hall",
            "camera-12.ga",
            "camera-12.gate.example",
            "camera-1.2",
            "camera-a_b",
            "camera-12-",
            "xcamera-1",
        ] {
            assert!(cameras.name_for(asked, ZONE).is_err(), "{asked}");
        }
        assert!(
            cameras.name_for(&format!("camera-{}", "x".repeat(57)), ZONE).is_err(),
            "the label is too long"
        );
        let ends = pattern("a*a");
        assert!(ends.name_for("a", ZONE).is_err() && ends.name_for("aa", ZONE).is_err());
        assert_eq!(ends.name_for("aba", ZONE).as_deref(), Ok("aba.cyphonic.internal"));
    }

    #[test]
    fn no_pattern_gives_a_name_of_the_services() {
        let any = pattern("*");
        assert_eq!(any.name_for("pi-1", ZONE).as_deref(), Ok("pi-1.cyphonic.internal"));
        assert!(any.name_for("svc", ZONE).is_err());
    }

    #[test]
    fn what_was_asked_for_is_told_bounded_and_without_control_characters() {
        for asked in ["\u{1b}[31m".into(), "x".repeat(10_000), format!("camera-{}", "\u{1b}".repeat(240))] {
            let told = pattern("camera-*").name_for(&asked, ZONE).unwrap_err();
            assert!(told.len() < 2_000 && !told.contains('\u{1b}'), "{told}");
        }
    }
}
