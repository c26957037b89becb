//! Names of devices and services.
//!
//! A name is compared, hashed and stored in its canonical form only: lowercase ASCII, no trailing dot. Labels
//! follow the host name rules of RFC 1123 §2.1 (letters, digits, hyphens inside), lengths those of RFC 1035
//! §2.3.4.

use thiserror::Error;

/// Longest name in its dotted form (RFC 1035 §2.3.4: 255 octets on the wire, so 253 characters).
pub const MAX_NAME: usize = 253;
/// Longest label (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// Why a string is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing but dots, or nothing at all.
    #[error("the name is empty")]
    Empty,
    /// Over [`MAX_NAME`] characters.
    #[error("the name is longer than {MAX_NAME} characters")]
    TooLong,
    /// A label is empty, over [`MAX_LABEL`] characters, or starts or ends with a hyphen.
    #[error("a label is empty, longer than {MAX_LABEL} characters, or starts or ends with a hyphen")]
    BadLabel,
    /// A character other than letters, digits, hyphens and the dots between labels.
    #[error("the character {0:?} is not allowed: use letters, digits and hyphens")]
    BadCharacter(char),
    /// The name does not lie below the zone.
    #[error("the name is not in this network's zone")]
    NotInZone,
}

/// The canonical form of a fully qualified name, with or without its trailing dot.
///
/// # Errors
/// Says what is wrong with the name.
pub fn canonical(name: &str) -> Result<String, NameError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    name.split('.').try_for_each(check_label)?;
    Ok(name.to_ascii_lowercase())
}

/// The canonical form of a device's name in `zone` (itself canonical): one or more labels below it.
///
/// # Errors
/// Says what is wrong with the name; [`NameError::NotInZone`] for the zone itself and all that lies outside.
pub fn canonical_in_zone(name: &str, zone: &str) -> Result<String, NameError> {
    let name = canonical(name)?;
    if is_below(&name, zone) { Ok(name) } else { Err(NameError::NotInZone) }
}

/// Whether the canonical `name` lies strictly below the canonical `zone`.
pub fn is_below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
}

fn check_label(label: &str) -> Result<(), NameError> {
    if let Some(bad) = label.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
        return Err(NameError::BadCharacter(bad));
    }
    let bad = label.is_empty() || label.len() > MAX_LABEL || label.starts_with('-') || label.ends_with('-');
    if bad { Err(NameError::BadLabel) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZONE: &str = "plant.cyphonic.internal";

    #[test]
    fn names_become_lowercase_and_lose_the_trailing_dot() {
        assert_eq!(canonical("Press-7.Plant.Cyphonic.Internal.").unwrap(), "press-7.plant.cyphonic.internal");
        assert_eq!(
            canonical_in_zone("PRESS-7.plant.cyphonic.internal", ZONE).unwrap(),
            format!("press-7.{ZONE}")
        );
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        assert_eq!(canonical(""), Err(NameError::Empty));
        assert_eq!(canonical("."), Err(NameError::Empty));
        assert_eq!(canonical("a..b"), Err(NameError::BadLabel));
        assert_eq!(canonical("-a.b"), Err(NameError::BadLabel));
        assert_eq!(canonical("a-.b"), Err(NameError::BadLabel));
        assert_eq!(canonical(&"a".repeat(64)), Err(NameError::BadLabel));
        assert_eq!(canonical("a_b"), Err(NameError::BadCharacter('_')));
        assert_eq!(canonical("ä.b"), Err(NameError::BadCharacter('ä')));
        assert_eq!(canonical("a b"), Err(NameError::BadCharacter(' ')));
        assert_eq!(canonical(&"a.".repeat(127)), Ok("a.".repeat(126) + "a"));
        assert_eq!(canonical(&("a.".repeat(126) + "ab")), Err(NameError::TooLong));
    }

    #[test]
    fn a_name_outside_the_zone_is_refused() {
        for outside in
            [ZONE, "example.com", "evilplant.cyphonic.internal", "plant.cyphonic.internal.evil.com"]
        {
            assert_eq!(canonical_in_zone(outside, ZONE), Err(NameError::NotInZone), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_its_own_canonical_form(name in "\\PC{0,300}") {
            if let Ok(once) = canonical(&name) {
                prop_assert_eq!(canonical(&once).unwrap(), once);
            }
        }
    }
}
