//! Keys: whose they are, and which were revoked.

use cyphonic_proto::identity::KeyHash;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::devices::{self, DeviceRecord};
use super::{Register, RegisterError};

impl Register {
    /// Devices with a key that a revocation has met under another name: they cannot renew their certificates.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn condemned(&self) -> Result<Vec<DeviceRecord>, RegisterError> {
        condemned(&self.lock())
    }
}

/// Whether a key was this name's when it was revoked: a certificate for it may still be about, on a copy of
/// the device's disk for example, and would count again with the key.
pub(super) fn is_revoked(
    transaction: &Transaction<'_>,
    fqdn: &str,
    spki_sha256: &KeyHash,
) -> Result<bool, RegisterError> {
    let device = devices::find(transaction, fqdn)?;
    if device.is_some_and(|device| device.revoked_at.is_some() && device.has_key(spki_sha256)) {
        return Ok(true);
    }
    Ok(transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM certificates WHERE fqdn = ?1 AND spki_sha256 = ?2 AND revoked)",
        params![fqdn, spki_sha256.0],
        |row| row.get(0),
    )?)
}

/// All keys that a device has, or has a certificate for since it enrolled: an earlier holder of the name may be
/// a member under another one by now.
const KEYS: &str = "SELECT spki_sha256 FROM certificates WHERE fqdn = ?1 AND NOT former
     UNION SELECT spki_sha256 FROM devices WHERE fqdn = ?1
     UNION SELECT next_spki_sha256 FROM devices WHERE fqdn = ?1 AND next_spki_sha256 IS NOT NULL";

/// Devices of other names that may authenticate with one of those.
pub(super) fn same_key(transaction: &Transaction<'_>, fqdn: &str) -> Result<Vec<String>, RegisterError> {
    let mut statement = transaction.prepare(&format!(
        "SELECT fqdn FROM devices WHERE fqdn <> ?1 AND revoked_at IS NULL
             AND (spki_sha256 IN ({KEYS}) OR next_spki_sha256 IN ({KEYS})) ORDER BY fqdn"
    ))?;
    Ok(statement.query_map([fqdn], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Notes that those are revoked.
pub(super) fn revoke(transaction: &Transaction<'_>, fqdn: &str) -> Result<(), RegisterError> {
    transaction.execute(&format!("INSERT OR IGNORE INTO revoked_keys {KEYS}"), [fqdn])?;
    Ok(())
}

/// Whether a revocation has met a key, under whatever name: who has the revoked device has the key.
pub(super) fn was_revoked(
    transaction: &Transaction<'_>,
    spki_sha256: &KeyHash,
) -> Result<bool, RegisterError> {
    let mut statement = transaction.prepare_cached("SELECT 1 FROM revoked_keys WHERE spki_sha256 = ?1")?;
    Ok(statement.exists([spki_sha256.0])?)
}

/// A device of another name that may authenticate with this key. Each half goes by an index.
const OTHER_HOLDER: &str =
    "SELECT fqdn FROM devices WHERE spki_sha256 = ?1 AND fqdn <> ?2 AND revoked_at IS NULL
     UNION ALL
     SELECT fqdn FROM devices WHERE next_spki_sha256 = ?1 AND fqdn <> ?2 AND revoked_at IS NULL";

/// Which other device has a key, as on copied disks: who is revoked would go on under the other name.
pub(super) fn other_holder(
    transaction: &Transaction<'_>,
    fqdn: &str,
    spki_sha256: &KeyHash,
) -> Result<Option<String>, RegisterError> {
    let mut statement = transaction.prepare_cached(OTHER_HOLDER)?;
    Ok(statement.query_row(params![spki_sha256.0, fqdn], |row| row.get(0)).optional()?)
}

/// From the revoked keys to the devices, by their index.
const CONDEMNED: &str = "SELECT fqdn FROM revoked_keys CROSS JOIN devices USING (spki_sha256)";

/// Devices that are not revoked, and have a key that was. One of which only the next key was goes on with the
/// key that it has.
pub(super) fn condemned(connection: &Connection) -> Result<Vec<DeviceRecord>, RegisterError> {
    let mut statement = connection.prepare(&format!(
        "SELECT {} FROM devices WHERE fqdn IN ({CONDEMNED}) AND revoked_at IS NULL ORDER BY fqdn",
        devices::COLUMNS
    ))?;
    let records = statement.query_map([], devices::record)?.collect::<Result<_, _>>()?;
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::register::fixture::{
        KEY, NOW, OTHER_KEY, SECRET, asker, certificate, register, secret, token,
    };
    use crate::register::{EnrolmentRefused, IssuedCertificate, KeyChange, NewToken, RenewalRefused};

    fn key(n: u8) -> KeyHash {
        KeyHash([n; 32])
    }

    fn change(old: KeyHash, new: KeyHash) -> KeyChange {
        KeyChange { old, new }
    }

    #[test]
    fn who_else_has_a_key_is_found_without_a_look_at_every_device() {
        let (_dir, register) = register();
        let connection = register.lock();
        let plan = |query, parameters: &[&dyn rusqlite::ToSql]| {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let steps = statement.query_map(parameters, |row| row.get(3)).unwrap();
            steps.map(Result::unwrap).collect::<Vec<String>>()
        };
        let of_holder = plan(OTHER_HOLDER, params![KEY.0, "press-7.plant.example"]);
        assert!(of_holder.iter().any(|step| step.contains("devices_by_next_key")), "{of_holder:?}");
        for plan in [of_holder, plan(CONDEMNED, &[])] {
            assert!(plan.iter().any(|step| step.contains("devices_by_key")), "{plan:?}");
            assert!(!plan.iter().any(|step| step.contains("SCAN devices")), "{plan:?}");
        }
    }

    /// A copy of a device asks for as many certificates as it gets, so that the one for the key that both
    /// have is forgotten.
    #[test]
    fn a_revocation_meets_every_key_that_has_a_valid_certificate() {
        let (_dir, register) = register();
        let (name, hour, day) = ("press-7.plant.example", 3600, 86_400);
        let made = |n, now| Ok(IssuedCertificate { not_after: now + day, ..certificate(n, key(n)) });
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| made(1, NOW)).unwrap();
        for n in 2..25u8 {
            let now = NOW + hour * u64::from(n - 1);
            register.renew(name, change(key(n - 1), key(n)), now, || made(n, now)).unwrap();
            let device = register.device(name).unwrap().unwrap();
            register.note_login(&device, &key(n), "1", now).unwrap();
        }
        let now = NOW + day - 1;
        register.revoke_device(name, now).unwrap();
        register.create_token(&NewToken { expires_at: now + 60, ..token(secret(9), true) }, now).unwrap();
        for n in 1..25u8 {
            let refused = register.enrol(&secret(9), asker(&key(n)), now, |_| panic!("issued"));
            assert!(matches!(refused, Err(EnrolmentRefused::RevokedKey(_))), "{n}: {refused:?}");
        }
    }

    #[test]
    fn a_revoked_key_does_not_come_back_and_spends_no_token() {
        let (_dir, register) = register();
        let name = "press-7.plant.example";
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        // The next key has a certificate too.
        let later = NOW + 10 * 86_400;
        let next = key(3);
        register.renew(name, change(KEY, next), later, || Ok(certificate(3, next))).unwrap();
        register.revoke_device(name, later).unwrap();
        let replacing = |secret| NewToken { expires_at: later + 3600, ..token(secret, true) };
        register.create_token(&replacing(secret(8)), later).unwrap();
        for key in [KEY, next] {
            let refused = register.enrol(&secret(8), asker(&key), later, |_| panic!("issued"));
            assert!(matches!(refused, Err(EnrolmentRefused::RevokedKey(_))), "{refused:?}");
        }
        register.enrol(&secret(8), asker(&OTHER_KEY), later, |_| Ok(certificate(2, OTHER_KEY))).unwrap();
        // Nor when the device is not revoked any more.
        register.create_token(&replacing(secret(9)), later).unwrap();
        let refused = register.enrol(&secret(9), asker(&KEY), later, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedKey(_))), "{refused:?}");
        let refused = register.renew(name, change(OTHER_KEY, KEY), later + 10 * 86_400, || panic!("issued"));
        assert!(matches!(refused, Err(RenewalRefused::Gone)), "{refused:?}");
        register.enrol(&secret(9), asker(&OTHER_KEY), later, |_| Ok(certificate(4, OTHER_KEY))).unwrap();
    }

    #[test]
    fn a_key_is_one_devices_and_another_spends_no_token_with_it() {
        let (_dir, register) = register();
        let other = |serial, key| IssuedCertificate {
            fqdn: "press-8.plant.example".into(),
            virtual_address: Ipv6Addr::from([8; 16]),
            ..certificate(serial, key)
        };
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let (later, next) = (NOW + 10 * 86_400, key(3));
        register
            .renew("press-7.plant.example", change(KEY, next), later, || Ok(certificate(3, next)))
            .unwrap();
        let for_other = |secret, replaces| NewToken {
            name: "press-8.plant.example".into(),
            expires_at: later + 3600,
            ..token(secret, replaces)
        };
        register.create_token(&for_other(secret(8), false), later).unwrap();
        for key in [KEY, next] {
            let refused = register.enrol(&secret(8), asker(&key), later, |_| panic!("issued"));
            let Err(EnrolmentRefused::KeyInUse { holder, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(holder.as_deref(), Some("press-7.plant.example"));
        }
        register.enrol(&secret(8), asker(&OTHER_KEY), later, |_| Ok(other(2, OTHER_KEY))).unwrap();
        // Its own it may have again.
        register.create_token(&for_other(secret(9), true), later).unwrap();
        register.enrol(&secret(9), asker(&OTHER_KEY), later, |_| Ok(other(4, OTHER_KEY))).unwrap();
    }

    /// Of an image that carries a key, one device was revoked.
    #[test]
    fn a_revoked_key_does_not_come_back_under_another_name() {
        let (_dir, register) = register();
        let name = "press-7.plant.example";
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let other = |serial, key| IssuedCertificate {
            fqdn: "press-8.plant.example".into(),
            virtual_address: Ipv6Addr::from([8; 16]),
            ..certificate(serial, key)
        };
        register.revoke_device(name, NOW).unwrap();
        let later = NOW + 3 * 365 * 86_400;
        let token = |secret, fqdn: &str| NewToken {
            name: fqdn.into(),
            expires_at: later + 3600,
            ..token(secret, true)
        };
        register.create_token(&token(secret(8), "press-8.plant.example"), NOW).unwrap();
        let refused = register.enrol(&secret(8), asker(&KEY), NOW, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::KeyInUse { holder: None, .. })), "{refused:?}");
        // Nor when the name has another key, and the certificate is forgotten.
        register.create_token(&token(secret(9), name), NOW).unwrap();
        register.enrol(&secret(9), asker(&key(5)), NOW, |_| Ok(certificate(5, key(5)))).unwrap();
        let forgotten = register.lock().execute("DELETE FROM certificates WHERE revoked", []).unwrap();
        assert_eq!(forgotten, 1);
        let refused = register.enrol(&secret(8), asker(&KEY), later, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::KeyInUse { holder: None, .. })), "{refused:?}");
        register.enrol(&secret(8), asker(&OTHER_KEY), later, |_| Ok(other(2, OTHER_KEY))).unwrap();
        let renewed =
            register.renew("press-8.plant.example", change(OTHER_KEY, KEY), later, || panic!("issued"));
        assert!(matches!(renewed, Err(RenewalRefused::KeyInUse)), "{renewed:?}");
    }

    /// As older releases let in.
    #[test]
    fn a_revocation_tells_who_else_has_the_key() {
        let (_dir, register) = register();
        let names = ["press-7", "press-8", "press-9"].map(|name| format!("{name}.plant.example"));
        for (n, (fqdn, key)) in (0u8..).zip(names.iter().zip([KEY, OTHER_KEY, key(3)])) {
            let new = NewToken { name: fqdn.clone(), ..token(secret(10 + n), false) };
            register.create_token(&new, NOW).unwrap();
            let issued = IssuedCertificate {
                fqdn: fqdn.clone(),
                virtual_address: Ipv6Addr::from([n; 16]),
                ..certificate(n, key)
            };
            register.enrol(&secret(10 + n), asker(&key), NOW, |_| Ok(issued)).unwrap();
        }
        let copy = "UPDATE devices SET next_spki_sha256 = ?1 WHERE fqdn = ?2";
        register.lock().execute(copy, params![KEY.0, names[1]]).unwrap();
        for _ in 0..2 {
            let revocation = register.revoke_device(&names[0], NOW).unwrap();
            assert_eq!(revocation.same_key, names[1..2]);
        }
        // Who came in with that key gets no other by it; who came in with the device's own goes on.
        let renew = |old| {
            let issued = || Ok(IssuedCertificate { fqdn: names[1].clone(), ..certificate(9, key(9)) });
            register.renew(&names[1], change(old, key(9)), NOW + 10 * 86_400, issued)
        };
        let washed = renew(KEY);
        assert!(matches!(washed, Err(RenewalRefused::KeyInUse)), "{washed:?}");
        renew(OTHER_KEY).unwrap();
        assert!(register.revoke_device(&names[2], NOW).unwrap().same_key.is_empty());
    }

    /// Two devices change names, and the clock is set back between.
    #[test]
    fn a_revocation_leaves_the_keys_of_who_had_the_name_before() {
        let (_dir, register) = register();
        let names = ["press-1.plant.example", "press-2.plant.example"];
        let made = |n: usize, serial, key| IssuedCertificate {
            fqdn: names[n].into(),
            virtual_address: Ipv6Addr::from([serial % 2; 16]),
            ..certificate(serial, key)
        };
        let ahead = NOW + 5 * 365 * 86_400;
        for (serial, n, key, now) in
            [(2u8, 0, KEY, ahead), (3, 1, OTHER_KEY, ahead), (5, 1, key(5), NOW), (4, 0, OTHER_KEY, NOW)]
        {
            let new = NewToken { name: names[n].into(), expires_at: now + 60, ..token(secret(serial), true) };
            register.create_token(&new, now).unwrap();
            register.enrol(&secret(serial), asker(&key), now, |_| Ok(made(n, serial, key))).unwrap();
        }
        let later = NOW + 10 * 86_400;
        let next = key(7);
        register.renew(names[1], change(key(5), next), later, || Ok(made(1, 7, next))).unwrap();
        assert!(register.revoke_device(names[1], later).unwrap().same_key.is_empty());
        register.renew(names[0], change(OTHER_KEY, OTHER_KEY), later, || Ok(made(0, 6, OTHER_KEY))).unwrap();
        // Its own are refused under every name, and the earlier holder's under this one.
        for key in [key(5), next] {
            let refused = register.renew(names[0], change(OTHER_KEY, key), later, || panic!("issued"));
            assert!(matches!(refused, Err(RenewalRefused::KeyInUse)), "{refused:?}");
        }
        let new = NewToken { name: names[1].into(), expires_at: later + 60, ..token(secret(8), true) };
        register.create_token(&new, later).unwrap();
        let refused = register.enrol(&secret(8), asker(&OTHER_KEY), later, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedKey(_))), "{refused:?}");
    }

    #[test]
    fn a_clock_that_is_ahead_brings_no_revoked_key_back() {
        let (_dir, register) = register();
        let name = "press-7.plant.example";
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        register.revoke_device(name, NOW).unwrap();
        register.create_token(&token(secret(8), true), NOW).unwrap();
        register.enrol(&secret(8), asker(&OTHER_KEY), NOW, |_| Ok(certificate(2, OTHER_KEY))).unwrap();
        // Another device enrols, twice, while it is.
        for (n, now) in [(9, NOW + 100_000_000), (10, NOW + 100_003_600)] {
            let fqdn = format!("press-{n}.plant.example");
            let new = NewToken { name: fqdn.clone(), expires_at: now + 3600, ..token(secret(n), false) };
            register.create_token(&new, now).unwrap();
            let made = IssuedCertificate {
                fqdn,
                virtual_address: Ipv6Addr::from([n; 16]),
                ..certificate(n, key(n))
            };
            register.enrol(&secret(n), asker(&key(n)), now, |_| Ok(made)).unwrap();
        }
        register.create_token(&token(secret(11), true), NOW).unwrap();
        let refused = register.enrol(&secret(11), asker(&KEY), NOW, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedKey(_))), "{refused:?}");
    }
}
