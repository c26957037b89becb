//! What is to be said of devices that cannot renew their certificates.

use super::clock::rfc3339;
use crate::register::{DeviceRecord, UnixSeconds};

/// So many are named at most.
const NAMED: usize = 20;

/// Of those whose certificates have not ended: the others are out, and enrol anew in any case.
pub(super) fn notes(condemned: &[DeviceRecord], now: UnixSeconds) -> Vec<String> {
    let mut ends = condemned.iter().filter_map(|device| {
        let end = device.certificate_not_after.filter(|end| *end > now)?;
        Some((&device.fqdn, end))
    });
    let note = |(fqdn, end)| {
        format!(
            "the key of {fqdn} was revoked under another name, so that its certificate cannot be renewed: enrol it anew before {}",
            rfc3339(end)
        )
    };
    let mut notes: Vec<_> = ends.by_ref().take(NAMED).map(note).collect();
    let others = ends.count();
    if others > 0 {
        notes.push(format!("the same holds for {others} others: `cyphonic-cloud device list` shows them"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::KeyHash;

    use super::*;

    #[test]
    fn a_few_are_named_and_the_others_counted() {
        let device = |n: usize| DeviceRecord {
            fqdn: format!("press-{n}.lab"),
            virtual_address: std::net::Ipv6Addr::LOCALHOST,
            spki_sha256: KeyHash([1; 32]),
            next_spki_sha256: None,
            enrolled_at: 0,
            revoked_at: None,
            revoked_by: None,
            last_login_at: None,
            last_seen_at: None,
            software_version: None,
            certificate_not_after: Some(1_800_000_000 - u64::from(n == 0)),
            token: None,
            revision: 1,
        };
        let devices: Vec<_> = (0..=NAMED + 2).map(device).collect();
        let notes = |count: usize| notes(&devices[..count], 1_800_000_000 - 1);
        assert!(notes(1).is_empty(), "it has lapsed");
        let few = notes(NAMED + 1);
        assert!(few.len() == NAMED && few[0].contains("press-1.lab"), "{few:?}");
        assert!(few[0].ends_with("before 2027-01-15T08:00:00Z"), "{few:?}");
        let many = notes(NAMED + 3);
        assert!(many.len() == NAMED + 1 && many[NAMED].contains("2 others"), "{many:?}");
    }
}
