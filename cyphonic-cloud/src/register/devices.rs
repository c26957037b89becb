//! Devices.

use std::net::Ipv6Addr;

use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::KeyHash;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::certificates::{self, IssuedCertificate};
use super::{Register, RegisterError, RenewalRefused, UnixSeconds, from_sql, keys, to_sql, tokens};

/// A login is written down at most this often per device: a register on an SD card must not wear it out.
const LOGIN_RESOLUTION: UnixSeconds = 3600;

/// At most this often where it says that it runs another version: a device may say another one each time.
const VERSION_RESOLUTION: UnixSeconds = 300;

/// Besides, so often an hour at once: who was upgraded soon after a login may stay logged in for weeks.
const VERSIONS_AT_ONCE: u8 = 4;

/// Longest software version kept: it comes from the device and is shown to the operator.
const MAX_SOFTWARE_VERSION: usize = 64;

/// A device as the register knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Its name.
    pub fqdn: String,
    /// Its virtual address.
    pub virtual_address: Ipv6Addr,
    /// The key it has.
    pub spki_sha256: KeyHash,
    /// The key it asked to have next, until it has used it.
    pub next_spki_sha256: Option<KeyHash>,
    /// When it (last) enrolled.
    pub enrolled_at: UnixSeconds,
    /// When it was revoked.
    pub revoked_at: Option<UnixSeconds>,
    /// Who revoked it, where that is known.
    pub revoked_by: Option<String>,
    /// When it last logged in, to the hour.
    pub last_login_at: Option<UnixSeconds>,
    /// When its last connection to the NMS ended, as far as that is noted.
    pub last_seen_at: Option<UnixSeconds>,
    /// What it said it runs.
    pub software_version: Option<String>,
    /// Until when it has a certificate for a key of its own, as far as that is known.
    pub certificate_not_after: Option<UnixSeconds>,
    /// The number of the token by which it (last) enrolled, where that is known.
    pub token: Option<i64>,
    /// Position among all changes to all devices.
    pub revision: i64,
}

impl DeviceRecord {
    /// Whether the device may authenticate with the key of this hash.
    pub fn has_key(&self, spki_sha256: &KeyHash) -> bool {
        self.spki_sha256 == *spki_sha256 || self.next_spki_sha256.as_ref() == Some(spki_sha256)
    }
}

/// Who there was as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The names of all devices that were not revoked.
    pub names: Vec<String>,
    /// The names of those that were revoked lately, the oldest first.
    pub revoked: Vec<String>,
    /// The revision as of which they were: [`Register::changes_since`] goes on from there.
    pub revision: i64,
}

/// A connection of a device to the NMS, from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// Since when it stood.
    pub since: UnixSeconds,
    /// When it was found to be gone.
    pub until: UnixSeconds,
}

/// Of a renewal: both are the same where only the certificate ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyChange {
    /// The key that the device has come with.
    pub old: KeyHash,
    /// The key that it asks a certificate for.
    pub new: KeyHash,
}

/// What a revocation met besides the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// How many unused tokens for its name are void.
    pub void_tokens: usize,
    /// Other devices with a key that was this one's, as on copied disks: whoever has this one can be them.
    pub same_key: Vec<String>,
}

pub(super) const COLUMNS: &str =
    "fqdn, virtual_address, spki_sha256, next_spki_sha256, enrolled_at, revoked_at, last_login_at, software_version,
     revision, revoked_by, nullif(max(coalesce(certificate_seen_until, 0), coalesce(
         (SELECT max(not_after) FROM certificates WHERE certificates.fqdn = devices.fqdn
              AND certificates.spki_sha256 IN (devices.spki_sha256, devices.next_spki_sha256)),
     0)), 0) AS certificate_not_after, token, last_seen_at";

impl Register {
    /// The device of this name.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn device(&self, fqdn: &str) -> Result<Option<DeviceRecord>, RegisterError> {
        find(&self.lock(), fqdn)
    }

    /// All devices by name.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn devices(&self) -> Result<Vec<DeviceRecord>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM devices ORDER BY fqdn"))?;
        let records = statement.query_map([], record)?.collect::<Result<_, _>>()?;
        Ok(records)
    }

    /// The names of all devices that are not revoked, and of those that were since then.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn members(&self, revoked_since: UnixSeconds) -> Result<Members, RegisterError> {
        let mut connection = self.lock();
        // All of the same moment.
        let transaction = connection.transaction()?;
        let revision = newest_revision(&transaction)?;
        let names = names(&transaction)?;
        let mut statement =
            transaction.prepare("SELECT fqdn FROM devices WHERE revoked_at >= ?1 ORDER BY revoked_at")?;
        let revoked =
            statement.query_map([to_sql(revoked_since)], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Members { names, revoked, revision })
    }

    /// Devices changed after `revision`, oldest change first.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn changes_since(&self, revision: i64) -> Result<Vec<DeviceRecord>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM devices WHERE revision > ?1 ORDER BY revision"
        ))?;
        let records = statement.query_map([revision], record)?.collect::<Result<_, _>>()?;
        Ok(records)
    }

    /// Takes up many devices, all new, whose certificates were made without tokens: in one transaction, since
    /// one for each is paid for with a disk write each.
    ///
    /// # Errors
    /// If a device has one of the names already, or the register cannot be written. Nothing was changed.
    pub fn take_up(&self, issued: &[IssuedCertificate], now: UnixSeconds) -> Result<(), RegisterError> {
        self.write(|transaction| {
            for issued in issued {
                if find(transaction, &issued.fqdn)?.is_some() {
                    return Err(RegisterError::NameTaken(issued.fqdn.clone()));
                }
                certificates::store(transaction, issued, now)?;
                enrol(transaction, issued, None, now)?;
            }
            Ok(())
        })
    }

    /// Takes a device's right to be in the network away: its keys never come back, under whatever name, and
    /// the unused tokens for its name are void. Revoking twice is no error.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn revoke_device(&self, fqdn: &str, now: UnixSeconds) -> Result<Revocation, RegisterError> {
        self.write(|transaction| {
            let device =
                find(transaction, fqdn)?.ok_or_else(|| RegisterError::NoSuchDevice(fqdn.to_owned()))?;
            let revocation = Revocation {
                void_tokens: tokens::revoke(transaction, fqdn, self.operator.as_deref(), now)?,
                same_key: keys::same_key(transaction, fqdn)?,
            };
            if device.revoked_at.is_some() {
                return Ok(revocation);
            }
            keys::revoke(transaction, fqdn)?;
            transaction.execute("UPDATE certificates SET revoked = 1 WHERE fqdn = ?1", [fqdn])?;
            let revision = next_revision(transaction)?;
            transaction.execute(
                "UPDATE devices SET revoked_at = ?1, revoked_by = ?4, next_spki_sha256 = NULL, revision = ?2 WHERE fqdn = ?3",
                params![to_sql(now), revision, fqdn, self.operator],
            )?;
            Ok(revocation)
        })
    }

    /// Notes a login with a key that [`DeviceRecord::has_key`]: the next key becomes the only one once it was
    /// used.
    ///
    /// # Errors
    /// If the register cannot be written.
    pub fn note_login(
        &self,
        device: &DeviceRecord,
        spki_sha256: &KeyHash,
        software_version: &str,
        now: UnixSeconds,
    ) -> Result<(), RegisterError> {
        let software_version: String =
            software_version.chars().filter(|c| c.is_ascii_graphic()).take(MAX_SOFTWARE_VERSION).collect();
        let takes_next_key = device.next_spki_sha256.as_ref() == Some(spki_sha256);
        let other_version = device.software_version.as_ref() != Some(&software_version);
        let resolution = if other_version { VERSION_RESOLUTION } else { LOGIN_RESOLUTION };
        // Either way: one that was noted while the clock was ahead is not recent.
        let recent = device.last_login_at.is_some_and(|last| now.abs_diff(last) < resolution);
        let at_once =
            || (0..VERSIONS_AT_ONCE).any(|nth| self.versions_at_once.is_due((device.fqdn.clone(), nth), now));
        if !takes_next_key && recent && !(other_version && at_once()) {
            return Ok(());
        }
        self.write(|transaction| {
            if takes_next_key {
                let revision = next_revision(transaction)?;
                transaction.execute(
                    "UPDATE devices SET spki_sha256 = ?1, next_spki_sha256 = NULL, certificate_seen_until = NULL,
                         revision = ?2
                     WHERE fqdn = ?3 AND next_spki_sha256 = ?1",
                    params![spki_sha256.0, revision, device.fqdn],
                )?;
            }
            transaction.execute(
                "UPDATE devices SET last_login_at = ?1, software_version = ?2 WHERE fqdn = ?3",
                params![to_sql(now), software_version, device.fqdn],
            )?;
            Ok(())
        })
    }

    /// Notes devices' last visits. Those of devices that nobody knows are left out, and those of who had the name before.
    ///
    /// # Errors
    /// If the register cannot be written: nothing was changed.
    pub fn note_seen(&self, visits: &[(String, Visit)]) -> Result<(), RegisterError> {
        self.write(|transaction| {
            let mut statement = transaction.prepare_cached(
                "UPDATE devices SET last_seen_at = ?1 WHERE fqdn = ?2 AND enrolled_at <= ?3",
            )?;
            for (fqdn, visit) in visits {
                statement.execute(params![to_sql(visit.until), fqdn, to_sql(visit.since)])?;
            }
            Ok(())
        })
    }

    /// Notes until when a device has a certificate for a key of its own, if the register has none on record
    /// that ends as late: it was restored from a backup since that one was made.
    ///
    /// # Errors
    /// If the register cannot be written.
    pub fn note_certificate(
        &self,
        device: &DeviceRecord,
        spki_sha256: &KeyHash,
        not_after: UnixSeconds,
    ) -> Result<(), RegisterError> {
        if device.certificate_not_after >= Some(not_after) {
            return Ok(());
        }
        self.write(|transaction| {
            transaction.execute(
                "UPDATE devices SET certificate_seen_until = max(coalesce(certificate_seen_until, 0), ?1)
                 WHERE fqdn = ?2 AND ?3 IN (spki_sha256, next_spki_sha256)",
                params![to_sql(not_after), device.fqdn, spki_sha256.0],
            )?;
            Ok(())
        })
    }

    /// Gives a device that has the old key a certificate for the new one: a stored one while that is young (its
    /// first answer was lost on the way, or somebody asks all the time), else what `issue` makes, which is
    /// stored. A new key becomes the device's next one.
    ///
    /// # Errors
    /// If the device was revoked or replaced since it asked, has or asks for a key that was revoked, got a
    /// certificate for another key just now, or the register or `issue` failed. Nothing was changed.
    pub fn renew(
        &self,
        fqdn: &str,
        KeyChange { old, new }: KeyChange,
        now: UnixSeconds,
        issue: impl FnOnce() -> Result<IssuedCertificate, String>,
    ) -> Result<IssuedCertificate, RenewalRefused> {
        self.write(|transaction| {
            let device = find(transaction, fqdn)?
                .filter(|device| device.revoked_at.is_none() && device.has_key(&old))
                .ok_or(RenewalRefused::Gone)?;
            if keys::is_revoked(transaction, fqdn, &new)? {
                return Err(RenewalRefused::Gone);
            }
            // Who has another device's revoked key would wash it into a fresh one.
            if keys::was_revoked(transaction, &old)? || keys::was_revoked(transaction, &new)? {
                return Err(RenewalRefused::KeyInUse);
            }
            if let Some(young) = certificates::youngest(transaction, &device, &new, now)? {
                if young.spki_sha256 == new && device.has_key(&new) {
                    return Ok(young);
                }
                return Err(RenewalRefused::TooSoon);
            }
            let issued = issue().map_err(RenewalRefused::Issue)?;
            certificates::store(transaction, &issued, now)?;
            if !device.has_key(&issued.spki_sha256) {
                let revision = next_revision(transaction)?;
                transaction
                    .execute(
                        "UPDATE devices SET spki_sha256 = ?1, next_spki_sha256 = ?2, revision = ?3 WHERE fqdn = ?4",
                        params![old.0, issued.spki_sha256.0, revision, fqdn],
                    )
                    .map_err(RegisterError::from)?;
            }
            Ok(issued)
        })
    }
}

/// Refuses a prefix that is not that of all devices' addresses, which stand in their certificates. The lowest
/// and the highest, by their index, tell of all.
pub(super) fn check_prefix(connection: &Connection, prefix: Prefix) -> Result<(), RegisterError> {
    for outermost in ["min", "max"] {
        let query = format!("SELECT {outermost}(virtual_address) FROM devices");
        let address: Option<[u8; 16]> = connection.query_row(&query, [], |row| row.get(0))?;
        let found = address.map(|address| Prefix::of(address.into())).filter(|found| *found != prefix);
        if let Some(found) = found {
            return Err(RegisterError::OtherPrefix { found, prefix });
        }
    }
    Ok(())
}

/// The names of all devices that are not revoked.
pub(super) fn names(connection: &Connection) -> Result<Vec<String>, RegisterError> {
    let mut statement = connection.prepare("SELECT fqdn FROM devices WHERE revoked_at IS NULL")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names)
}

pub(super) fn find(connection: &Connection, fqdn: &str) -> Result<Option<DeviceRecord>, RegisterError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {COLUMNS} FROM devices WHERE fqdn = ?1"))?;
    Ok(statement.query_row([fqdn], record).optional()?)
}

pub(super) fn enrol(
    transaction: &Transaction<'_>,
    issued: &IssuedCertificate,
    token: Option<i64>,
    now: UnixSeconds,
) -> Result<(), RegisterError> {
    let revision = next_revision(transaction)?;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO devices (fqdn, virtual_address, spki_sha256, enrolled_at, revision, token)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (fqdn) DO UPDATE SET virtual_address = ?2, spki_sha256 = ?3, next_spki_sha256 = NULL,
             enrolled_at = ?4, revoked_at = NULL, revoked_by = NULL, certificate_seen_until = NULL,
             last_login_at = NULL, last_seen_at = NULL, software_version = NULL, revision = ?5, token = ?6",
    )?;
    statement.execute(params![
        issued.fqdn,
        issued.virtual_address.octets(),
        issued.spki_sha256.0,
        to_sql(now),
        revision,
        token
    ])?;
    // Marked, and not told by their times: the clock may have been set since.
    let mut statement =
        transaction.prepare_cached("UPDATE certificates SET former = 1 WHERE fqdn = ?1 AND serial <> ?2")?;
    statement.execute(params![issued.fqdn, issued.serial])?;
    Ok(())
}

pub(super) fn next_revision(transaction: &Transaction<'_>) -> Result<i64, RegisterError> {
    Ok(newest_revision(transaction)? + 1)
}

fn newest_revision(transaction: &Transaction<'_>) -> Result<i64, RegisterError> {
    let mut statement = transaction.prepare_cached("SELECT coalesce(max(revision), 0) FROM devices")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<DeviceRecord> {
    let virtual_address: [u8; 16] = row.get(1)?;
    Ok(DeviceRecord {
        fqdn: row.get(0)?,
        virtual_address: Ipv6Addr::from(virtual_address),
        spki_sha256: KeyHash(row.get(2)?),
        next_spki_sha256: row.get::<_, Option<_>>(3)?.map(KeyHash),
        enrolled_at: from_sql(row.get(4)?),
        revoked_at: row.get::<_, Option<i64>>(5)?.map(from_sql),
        last_login_at: row.get::<_, Option<i64>>(6)?.map(from_sql),
        software_version: row.get(7)?,
        revision: row.get(8)?,
        revoked_by: row.get(9)?,
        certificate_not_after: row.get::<_, Option<i64>>(10)?.map(from_sql),
        token: row.get(11)?,
        last_seen_at: row.get::<_, Option<i64>>(12)?.map(from_sql),
    })
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::token::SecretHash;

    use super::*;
    use crate::register::NewToken;
    use crate::register::fixture::{SECRET, asker, certificate, token};
    use crate::seldom::HOURLY;

    const NOW: UnixSeconds = 1_800_000_000;
    const NAME: &str = "press-7.plant.example";
    /// A certificate of a day is not young any more.
    const LATER: UnixSeconds = 3600;

    fn key(n: u8) -> KeyHash {
        KeyHash([n; 32])
    }

    fn change(old: u8, new: u8) -> KeyChange {
        KeyChange { old: key(old), new: key(new) }
    }

    fn issued(serial: u8, key: u8) -> IssuedCertificate {
        IssuedCertificate {
            fqdn: NAME.into(),
            virtual_address: Ipv6Addr::LOCALHOST,
            der: vec![0x30, serial],
            serial: vec![serial],
            spki_sha256: self::key(key),
            not_before: NOW,
            not_after: NOW + 86_400,
        }
    }

    #[test]
    fn many_devices_are_taken_up_whole_or_not_at_all() {
        let (_dir, register) = register_with_device();
        let device = |n: u8| IssuedCertificate {
            fqdn: format!("press-{n}.hall.example"),
            virtual_address: Ipv6Addr::from([n; 16]),
            ..issued(n, n)
        };
        let many: Vec<_> = (10..20).map(device).collect();
        let taken = IssuedCertificate { fqdn: NAME.into(), ..device(20) };
        let with_taken: Vec<_> = many.iter().cloned().chain([taken]).collect();
        let refused = register.take_up(&with_taken, NOW);
        assert!(matches!(refused, Err(RegisterError::NameTaken(_))), "{refused:?}");
        assert_eq!(register.devices().unwrap().len(), 1, "nothing of it");

        let before = register.changes_since(0).unwrap()[0].revision;
        register.take_up(&many, NOW).unwrap();
        let told = register.changes_since(before).unwrap();
        let names = |devices: &[DeviceRecord]| devices.iter().map(|d| d.fqdn.clone()).collect::<Vec<_>>();
        assert_eq!(names(&told), many.iter().map(|d| d.fqdn.clone()).collect::<Vec<_>>(), "in their order");
        assert!(told[0].has_key(&key(10)));
        assert_eq!(register.certificate_count(&told[0].fqdn).unwrap(), 1);
    }

    fn register_with_device() -> (tempfile::TempDir, Register) {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let token = NewToken {
            secret_hash: SecretHash([0; 32]),
            name: NAME.into(),
            expires_at: NOW + 60,
            replaces: false,
            uses: 1,
        };
        register.create_token(&token, NOW).unwrap();
        register.enrol(&SecretHash([0; 32]), asker(&key(1)), NOW, |_| Ok(issued(1, 1))).unwrap();
        (dir, register)
    }

    #[test]
    fn both_keys_work_until_the_new_one_was_used() {
        let (_dir, register) = register_with_device();
        register.renew(NAME, change(1, 2), NOW + LATER, || Ok(issued(2, 2))).unwrap();
        let device = register.device(NAME).unwrap().unwrap();
        assert!(device.has_key(&key(1)) && device.has_key(&key(2)));
        register.note_login(&device, &key(2), "cyphonic 0.1.0", NOW).unwrap();
        let device = register.device(NAME).unwrap().unwrap();
        assert!(!device.has_key(&key(1)) && device.has_key(&key(2)));
        assert_eq!(device.software_version.as_deref(), Some("cyphonic0.1.0"));
    }

    #[test]
    fn a_revoked_device_cannot_renew() {
        let (_dir, register) = register_with_device();
        register.revoke_device(NAME, NOW).unwrap();
        register.revoke_device(NAME, NOW + 5).unwrap();
        assert_eq!(register.device(NAME).unwrap().unwrap().revoked_at, Some(NOW));
        assert!(matches!(
            register.renew(NAME, change(1, 1), NOW + LATER, || panic!("issued")),
            Err(RenewalRefused::Gone)
        ));
        assert_eq!(register.certificate_count(NAME).unwrap(), 1);
    }

    #[test]
    fn a_device_that_asks_again_at_once_gets_what_it_got() {
        let (_dir, register) = register_with_device();
        let again = register.renew(NAME, change(1, 1), NOW + LATER - 1, || panic!("issued")).unwrap();
        assert_eq!(again, issued(1, 1));
        let next = register.renew(NAME, change(1, 2), NOW + LATER, || Ok(issued(2, 2))).unwrap();
        let lost = register.renew(NAME, change(1, 2), NOW + LATER + 1, || panic!("issued"));
        assert_eq!(lost.unwrap(), next);
        for key in [1, 3] {
            let refused = register.renew(NAME, change(1, key), NOW + LATER + 1, || panic!("issued"));
            assert!(matches!(refused, Err(RenewalRefused::TooSoon)), "{refused:?}");
        }
        let device = register.device(NAME).unwrap().unwrap();
        assert_eq!(device.next_spki_sha256, Some(key(2)));
    }

    #[test]
    fn a_young_certificate_of_who_had_the_name_before_keeps_nobody_from_renewing() {
        let (_dir, register) = register_with_device();
        let long = IssuedCertificate { not_after: NOW + 90 * 86_400, ..issued(2, 1) };
        register.renew(NAME, change(1, 1), NOW + LATER, || Ok(long)).unwrap();
        let secret_hash = SecretHash([9; 32]);
        let (name, now) = (NAME.into(), NOW + LATER + 1);
        let token = NewToken { secret_hash, name, expires_at: now + 60, replaces: true, uses: 1 };
        register.create_token(&token, now).unwrap();
        let short = IssuedCertificate { not_after: now + 86_400, ..issued(3, 3) };
        register.enrol(&secret_hash, asker(&key(3)), now, |_| Ok(short)).unwrap();
        let renewed = register.renew(NAME, change(3, 3), now + LATER, || Ok(issued(4, 3)));
        assert_eq!(renewed.unwrap().serial, [4]);
    }

    #[test]
    fn the_newest_certificates_of_a_name_are_on_record() {
        let (_dir, register) = register_with_device();
        let renew = |n: u8, now| {
            let made = || Ok(IssuedCertificate { not_after: now + 86_400, ..issued(n, 1) });
            register.renew(NAME, change(1, 1), now, made).unwrap().serial
        };
        // The clock is years ahead once.
        assert_eq!(renew(2, NOW + 100_000_000), [2]);
        for n in 3..60 {
            let now = NOW + LATER * u64::from(n);
            assert_eq!((renew(n, now), renew(100 + n, now + 1)), (vec![n], vec![n]));
        }
        assert_eq!(register.certificate_count(NAME).unwrap(), 32);
    }

    #[test]
    fn changes_are_seen_by_other_connections_in_order() {
        let (dir, register) = register_with_device();
        let register = register.used_by("ann".into());
        let other = Register::open(&dir.path().join("register.db")).unwrap();
        let version = other.data_version().unwrap();
        let seen = other.changes_since(0).unwrap();
        assert_eq!(seen.len(), 1);
        assert!(other.changes_since(seen[0].revision).unwrap().is_empty());
        register.revoke_device(NAME, NOW).unwrap();
        assert_ne!(other.data_version().unwrap(), version);
        let changed = other.changes_since(seen[0].revision).unwrap();
        assert_eq!((changed[0].revoked_at, changed[0].revoked_by.as_deref()), (Some(NOW), Some("ann")));
    }

    #[test]
    fn members_are_all_but_the_revoked_as_of_a_revision() {
        let (_dir, register) = register_with_device();
        let second = IssuedCertificate {
            fqdn: "press-8.plant.example".into(),
            virtual_address: Ipv6Addr::from([8; 16]),
            ..issued(8, 8)
        };
        register.take_up(&[second], NOW).unwrap();
        let Members { names, revoked, revision } = register.members(0).unwrap();
        assert_eq!(names, [NAME, "press-8.plant.example"]);
        assert!(revoked.is_empty() && register.changes_since(revision).unwrap().is_empty());
        register.revoke_device(NAME, NOW).unwrap();
        let told = register.changes_since(revision).unwrap();
        assert_eq!(told.iter().map(|device| device.fqdn.as_str()).collect::<Vec<_>>(), [NAME]);
        let now = register.members(NOW).unwrap();
        assert_eq!(
            (now.names, now.revoked),
            (vec!["press-8.plant.example".to_owned()], vec![NAME.to_owned()])
        );
        assert_eq!(now.revision, told[0].revision, "the revoked one's too, or it would be told again");
        assert!(register.members(NOW + 1).unwrap().revoked.is_empty(), "it was revoked before");
    }

    #[test]
    fn a_device_in_anothers_place_has_not_logged_in_yet() {
        let (_dir, register) = register_with_device();
        let device = register.device(NAME).unwrap().unwrap();
        register.note_login(&device, &key(1), "1", NOW).unwrap();
        register.create_token(&token(SECRET, true), NOW).unwrap();
        register.enrol(&SECRET, asker(&key(2)), NOW + 1, |_| Ok(certificate(2, key(2)))).unwrap();
        let device = register.device(NAME).unwrap().unwrap();
        assert_eq!((device.last_login_at, device.software_version.as_deref()), (None, None));
        register.note_login(&device, &key(2), "1", NOW + 2).unwrap();
        assert_eq!(register.device(NAME).unwrap().unwrap().last_login_at, Some(NOW + 2));
    }

    #[test]
    fn frequent_logins_are_written_once_an_hour() {
        let (_dir, register) = register_with_device();
        let device = register.device(NAME).unwrap().unwrap();
        register.note_login(&device, &key(1), "1", NOW).unwrap();
        let device = register.device(NAME).unwrap().unwrap();
        register.note_login(&device, &key(1), "1", NOW + 10).unwrap();
        assert_eq!(register.device(NAME).unwrap().unwrap().last_login_at, Some(NOW));
        register.note_login(&device, &key(1), "1", NOW + 3600).unwrap();
        assert_eq!(register.device(NAME).unwrap().unwrap().last_login_at, Some(NOW + 3600));
    }

    #[test]
    fn whatever_version_a_device_says_it_runs_it_is_written_seldom() {
        let (_dir, register) = register_with_device();
        let log_in = |version: &str, now| {
            let device = register.device(NAME).unwrap().unwrap();
            register.note_login(&device, &key(1), version, now).unwrap();
            register.device(NAME).unwrap().unwrap()
        };
        let mut noted = log_in("1", NOW);
        let mut writes = 0;
        for seconds in 1..HOURLY {
            let now = log_in(if seconds % 2 == 0 { "1" } else { "2" }, NOW + seconds);
            writes += u64::from(now != noted);
            noted = now;
        }
        assert_eq!(writes, u64::from(VERSIONS_AT_ONCE) + HOURLY / VERSION_RESOLUTION - 1);
    }

    #[test]
    fn an_upgrade_soon_after_a_login_is_noted_and_so_is_going_back() {
        let (_dir, register) = register_with_device();
        for (version, now) in [("1", NOW), ("2", NOW + 60), ("1", NOW + 90)] {
            let device = register.device(NAME).unwrap().unwrap();
            register.note_login(&device, &key(1), version, now).unwrap();
            let noted = register.device(NAME).unwrap().unwrap();
            assert_eq!((noted.software_version.as_deref(), noted.last_login_at), (Some(version), Some(now)));
        }
    }

    #[test]
    fn a_login_that_was_noted_while_the_clock_was_ahead_does_not_stay() {
        let (_dir, register) = register_with_device();
        let ahead = NOW + 100_000_000;
        for now in [ahead, NOW] {
            let device = register.device(NAME).unwrap().unwrap();
            register.note_login(&device, &key(1), "1", now).unwrap();
            assert_eq!(register.device(NAME).unwrap().unwrap().last_login_at, Some(now));
        }
    }

    #[test]
    fn revoking_nobody_is_an_error() {
        let (_dir, register) = register_with_device();
        assert!(matches!(register.revoke_device("x.example", NOW), Err(RegisterError::NoSuchDevice(_))));
    }
}
