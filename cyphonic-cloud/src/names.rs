//! Names that operators write: the zone, and devices' names with or without it; patterns of such names.

mod pattern;

use cyphonic_proto::name;

pub use self::pattern::NamePattern;
use crate::pki::services_zone;

/// Longest zone: leaves room for a device's name within DNS's 253 characters.
const MAX_ZONE: usize = 160;

/// Checks a zone and gives its canonical form: lowercase, no final dot.
///
/// # Errors
/// If DNS or certificates could not hold it.
pub fn parse_zone(text: &str) -> Result<String, String> {
    let zone = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let wrong = |reason: &str| format!("{text:?} cannot be the zone: {reason}");
    if zone.len() > MAX_ZONE {
        return Err(wrong("it is too long"));
    }
    if zone.parse::<std::net::IpAddr>().is_ok() {
        return Err(wrong("it is an IP address"));
    }
    let label_is_sound = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !zone.split('.').all(label_is_sound) {
        return Err(wrong("each part between dots is 1 to 63 letters, digits or hyphens"));
    }
    if zone == "local" || zone.ends_with(".local") {
        return Err(wrong("local belongs to multicast DNS (RFC 6762)"));
    }
    Ok(zone)
}

/// The full name of a device: `press-7.plant` and `press-7.plant.ZONE` are the same.
///
/// # Errors
/// If it is no name, not below the zone, or one of the services'.
pub fn device_fqdn(text: &str, zone: &str) -> Result<String, String> {
    let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let in_zone = lower.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
    let full = if in_zone { lower } else { format!("{lower}.{zone}") };
    let fqdn = name::canonical_in_zone(&full, zone)
        .map_err(|error| format!("{text:?} cannot name a device: {error}"))?;
    let services = services_zone(zone);
    if fqdn == services || fqdn.ends_with(&format!(".{services}")) {
        return Err(format!("{text:?} cannot name a device: names below {services} are the services'"));
    }
    Ok(fqdn)
}

/// The full name for a device that is to be. A full name is itself; one with the zone in it twice, or of the
/// zone alone, is a slip.
///
/// # Errors
/// As [`device_fqdn`], and of such a slip.
pub fn new_device_fqdn(text: &str, zone: &str) -> Result<String, String> {
    let fqdn = device_fqdn(text, zone)?;
    let own = fqdn.strip_suffix(zone).and_then(|rest| rest.strip_suffix('.')).unwrap_or(&fqdn);
    if own == zone || own.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.')) {
        return Err(format!(
            "{text:?} cannot name a device: {fqdn} would have the zone in it twice; write the device's name, with {zone} behind it or without"
        ));
    }
    Ok(fqdn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_checked() {
        assert_eq!(parse_zone("Cyphonic.Internal.").unwrap(), "cyphonic.internal");
        for bad in ["", ".", "a..b", "-a.b", "a_b", "plant.local", "192.0.2.1", "ä.example"] {
            assert!(parse_zone(bad).is_err(), "{bad}");
        }
        assert!(parse_zone(&"a.".repeat(81)).is_err());
    }

    #[test]
    fn device_names_may_leave_the_zone_out() {
        let zone = "cyphonic.internal";
        for text in ["press-7.plant", "PRESS-7.plant.cyphonic.internal", "press-7.plant.cyphonic.internal."] {
            assert_eq!(device_fqdn(text, zone).unwrap(), "press-7.plant.cyphonic.internal");
        }
        for bad in
            ["", ".", "a..b", "press_7", "svc", "nms.svc", "x.y.svc.cyphonic.internal", "*.plant", "a b"]
        {
            assert!(device_fqdn(bad, zone).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_new_name_has_the_zone_in_it_twice() {
        let zone = "home.internal";
        for text in ["pi-1", "pi-1.home.internal", "pi-1.home", "home", "internal"] {
            let fqdn = new_device_fqdn(text, zone).unwrap();
            assert!(fqdn.ends_with(".home.internal"), "{fqdn}");
        }
        for slip in ["home.internal", "home.internal.home.internal", "pi-1.Home.internal.home.internal."] {
            assert!(new_device_fqdn(slip, zone).unwrap_err().contains("twice"), "{slip}");
            // One that is there can be named.
            device_fqdn(slip, zone).unwrap();
        }
    }
}
