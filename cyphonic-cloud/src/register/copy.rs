//! The devices of a register, as a standby copies them.
//!
//! A copy numbers changes by itself: what follows it is told of each change in it, and of nothing else. A
//! register that was restored from a backup is behind its copies, which then go back as well: those that it
//! does not know have no right to be here, by the copy too.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use cyphonic_proto::standby::Member;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::devices::{self, COLUMNS};
use super::{DeviceRecord, Register, RegisterError, UnixSeconds, to_sql};

/// A device of the copied register, and the address that follows from its name.
#[derive(Debug, Clone)]
pub struct Copied {
    /// The device.
    pub member: Member,
    /// Its virtual address.
    pub virtual_address: Ipv6Addr,
}

impl Register {
    /// So many devices that were changed after a revision, the oldest change first.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn members_since(&self, revision: u64, most: usize) -> Result<Vec<Member>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM devices WHERE revision > ?1 ORDER BY revision LIMIT ?2"
        ))?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![to_sql(revision), most], devices::record)?;
        Ok(rows.map(|record| record.map(to_member)).collect::<Result<_, _>>()?)
    }

    /// Takes over devices of the copied register, in one transaction. Returns how many were not as they are there.
    ///
    /// # Errors
    /// If the copy cannot be written: nothing was changed.
    pub fn copy_members(&self, copied: &[Copied]) -> Result<usize, RegisterError> {
        // A write costs the disk something even where nothing is written.
        let differs = |Copied { member, .. }: &&Copied| {
            Ok::<_, RegisterError>(self.device(&member.fqdn)?.is_none_or(|known| !is_as(&known, member)))
        };
        let mut others = Vec::new();
        for copied in copied {
            if differs(&copied)? {
                others.push(copied);
            }
        }
        if !others.is_empty() {
            self.write(|transaction| others.iter().try_for_each(|copied| put(transaction, copied)))?;
        }
        Ok(others.len())
    }

    /// After a copy from the beginning: devices with other addresses are not in the copied register, and count as
    /// revoked from now on. They stay on record, since no change may have a number that one before had. Returns how many
    /// there were.
    ///
    /// # Errors
    /// If the copy cannot be written: nothing was changed.
    pub fn keep_members(
        &self,
        addresses: &BTreeSet<Ipv6Addr>,
        now: UnixSeconds,
    ) -> Result<usize, RegisterError> {
        let others = {
            let connection = self.lock();
            let mut statement =
                connection.prepare("SELECT fqdn, virtual_address FROM devices WHERE revoked_at IS NULL")?;
            let row = |row: &Row<'_>| Ok((row.get(0)?, Ipv6Addr::from(row.get::<_, [u8; 16]>(1)?)));
            let is_other =
                |row: &rusqlite::Result<(String, _)>| !matches!(row, Ok((_, a)) if addresses.contains(a));
            statement.query_map([], row)?.filter(is_other).collect::<Result<Vec<_>, _>>()?
        };
        if !others.is_empty() {
            self.write(|transaction| {
                for (fqdn, _) in &others {
                    let revision = devices::next_revision(transaction)?;
                    transaction.execute(
                        "UPDATE devices SET revoked_at = ?2, revision = ?3 WHERE fqdn = ?1",
                        params![fqdn, to_sql(now), revision],
                    )?;
                }
                Ok::<_, RegisterError>(())
            })?;
        }
        Ok(others.len())
    }

    /// Whether it is a copy that has had everything.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn is_whole_copy(&self) -> Result<bool, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached("SELECT value FROM numbers WHERE name = ?1")?;
        Ok(statement.query_row([WHOLE], |row| row.get::<_, i64>(0)).optional()?.is_some())
    }

    /// Notes whether it is.
    ///
    /// # Errors
    /// If the copy cannot be written.
    pub fn note_whole_copy(&self, is_whole: bool) -> Result<(), RegisterError> {
        if self.is_whole_copy()? == is_whole {
            return Ok(());
        }
        let note = match is_whole {
            true => "INSERT INTO numbers (name, value) VALUES (?1, 1) ON CONFLICT (name) DO NOTHING",
            false => "DELETE FROM numbers WHERE name = ?1",
        };
        self.write(|transaction| Ok(transaction.execute(note, [WHOLE]).map(drop)?))
    }
}

/// By which a copy says that it has had everything.
const WHOLE: &str = "whole-copy";

fn to_member(device: DeviceRecord) -> Member {
    Member {
        fqdn: device.fqdn,
        key: device.spki_sha256,
        next_key: device.next_spki_sha256,
        enrolled_at: device.enrolled_at,
        revoked_at: device.revoked_at,
        revision: u64::try_from(device.revision).unwrap_or(0),
        certificate_until: device.certificate_not_after,
    }
}

/// Whether a device is known as it is, but for the numbers of changes. A certificate that ends later than any there is known
/// by what the device came with.
fn is_as(known: &DeviceRecord, member: &Member) -> bool {
    known.spki_sha256 == member.key
        && known.next_spki_sha256 == member.next_key
        && known.enrolled_at == member.enrolled_at
        && known.revoked_at == member.revoked_at
        && known.certificate_not_after >= member.certificate_until
}

fn put(transaction: &Transaction<'_>, copied: &Copied) -> Result<(), RegisterError> {
    let revision = devices::next_revision(transaction)?;
    let Copied { member, virtual_address } = copied;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO devices (fqdn, virtual_address, spki_sha256, next_spki_sha256, enrolled_at, revoked_at, revision,
             certificate_seen_until)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (fqdn) DO UPDATE SET virtual_address = ?2, spki_sha256 = ?3, next_spki_sha256 = ?4,
             last_seen_at = iif(enrolled_at = ?5, last_seen_at, NULL), enrolled_at = ?5, revoked_at = ?6, revoked_by = NULL,
             revision = ?7, certificate_seen_until = ?8",
    )?;
    statement.execute(params![
        member.fqdn,
        virtual_address.octets(),
        member.key.0,
        member.next_key.map(|key| key.0),
        to_sql(member.enrolled_at),
        member.revoked_at.map(to_sql),
        revision,
        member.certificate_until.map(to_sql)
    ])?;
    if member.revoked_at.is_none() {
        // What was revoked here, while nothing was heard, the register did not do.
        let mut statement = transaction.prepare_cached("DELETE FROM revoked_keys WHERE spki_sha256 = ?1")?;
        for key in [Some(member.key), member.next_key].into_iter().flatten() {
            statement.execute([key.0])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::KeyHash;

    use super::*;
    use crate::register::{IssuedCertificate, KeyChange};

    const NOW: UnixSeconds = 1_800_000_000;

    fn address(n: u8) -> Ipv6Addr {
        Ipv6Addr::from([0xfd, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }

    fn name(n: u8) -> String {
        format!("press-{n}.example")
    }

    fn enrol(register: &Register, n: u8) {
        let issued = IssuedCertificate {
            fqdn: name(n),
            virtual_address: address(n),
            der: vec![0x30, n],
            serial: vec![n],
            spki_sha256: KeyHash([n; 32]),
            not_before: NOW,
            not_after: NOW + 86_400,
        };
        register.take_up(&[issued], NOW).unwrap();
    }

    /// A register with three devices, and a copy.
    fn both() -> (tempfile::TempDir, Register, Register) {
        let dir = tempfile::tempdir().unwrap();
        let [register, copy] =
            ["register.db", "copy.db"].map(|file| Register::create(&dir.path().join(file)).unwrap());
        (1..=3).for_each(|n| enrol(&register, n));
        follow(&register, &copy);
        (dir, register, copy)
    }

    fn copied(member: Member) -> Copied {
        let n = member.key.0[0];
        let virtual_address = (1..=9).map(address).find(|a| name(a.octets()[15]) == member.fqdn);
        Copied { virtual_address: virtual_address.unwrap_or(address(n)), member }
    }

    /// From the beginning, two by two. Returns how much was not as it is.
    fn follow(register: &Register, copy: &Register) -> usize {
        let (mut revision, mut changed, mut all) = (0, 0, BTreeSet::new());
        loop {
            let members = register.members_since(revision, 2).unwrap();
            let Some(last) = members.last() else { break };
            revision = last.revision;
            let members: Vec<_> = members.into_iter().map(copied).collect();
            all.extend(members.iter().map(|copied| copied.virtual_address));
            changed += copy.copy_members(&members).unwrap();
        }
        changed + copy.keep_members(&all, NOW + 9).unwrap()
    }

    fn known(register: &Register) -> Vec<Member> {
        let members = register.devices().unwrap().into_iter().map(to_member);
        members.map(|member| Member { revision: 0, ..member }).collect()
    }

    #[test]
    fn a_copy_has_the_devices_and_each_change_of_them() {
        let (_dir, register, copy) = both();
        assert_eq!((known(&copy).len(), known(&copy)), (3, known(&register)));
        let untouched = copy.members(0).unwrap().revision;
        assert_eq!(follow(&register, &copy), 0, "nothing has changed");
        assert_eq!(copy.members(0).unwrap().revision, untouched);

        register.revoke_device(&name(1), NOW + 1).unwrap();
        let renewed = || {
            Ok(IssuedCertificate {
                fqdn: name(2),
                virtual_address: address(2),
                der: vec![0x30, 22],
                serial: vec![22],
                spki_sha256: KeyHash([22; 32]),
                not_before: NOW,
                not_after: NOW + 2 * 86_400,
            })
        };
        let keys = KeyChange { old: KeyHash([2; 32]), new: KeyHash([22; 32]) };
        register.renew(&name(2), keys, NOW + 43_200, renewed).unwrap();
        assert_eq!(follow(&register, &copy), 2);
        assert_eq!(known(&copy), known(&register));
        let changed: Vec<_> = copy.changes_since(untouched).unwrap().into_iter().map(|d| d.fqdn).collect();
        assert_eq!(changed, [name(1), name(2)], "who follows the copy hears of it");
    }

    /// Its revisions begin anew where the backup was made.
    #[test]
    fn a_copy_goes_back_with_a_register_that_was_restored() {
        let (dir, register, copy) = both();
        register.gather().unwrap();
        let backup = dir.path().join("backup.db");
        std::fs::copy(dir.path().join("register.db"), &backup).unwrap();
        enrol(&register, 4);
        register.revoke_device(&name(1), NOW + 1).unwrap();
        follow(&register, &copy);
        assert_eq!(known(&copy), known(&register));
        let before = copy.members(0).unwrap().revision;

        let restored = Register::open(&backup).unwrap();
        assert_eq!(follow(&restored, &copy), 2);
        assert!(copy.device(&name(4)).unwrap().unwrap().revoked_at.is_some(), "nobody knows it any more");
        assert!(copy.device(&name(1)).unwrap().unwrap().revoked_at.is_none(), "it is as the register has it");
        assert_eq!(copy.changes_since(before).unwrap().len(), 2);
        let seen = copy.members(0).unwrap().revision;
        assert_eq!(follow(&restored, &copy), 0);
        restored.revoke_device(&name(2), NOW + 2).unwrap();
        assert_eq!(follow(&restored, &copy), 1);
        let changed = copy.changes_since(seen).unwrap();
        assert_eq!(changed.len(), 1, "who follows the copy hears of everything that comes afterwards");
    }

    #[test]
    fn what_was_revoked_in_a_copy_alone_leaves_no_trace_when_it_is_taken_back() {
        let (_dir, register, copy) = both();
        copy.revoke_device(&name(1), NOW + 1).unwrap();
        assert_eq!(follow(&register, &copy), 1);
        let device = copy.device(&name(1)).unwrap().unwrap();
        assert_eq!((device.revoked_at, device.revoked_by), (None, None));
        assert_eq!(copy.condemned().unwrap(), []);
    }

    #[test]
    fn a_copy_says_whether_it_was_whole() {
        let (dir, _register, copy) = both();
        for is_whole in [true, true, false, false] {
            copy.note_whole_copy(is_whole).unwrap();
            let again = Register::open(&dir.path().join("copy.db")).unwrap();
            assert_eq!(again.is_whole_copy().unwrap(), is_whole);
        }
    }
}
