//! Certificates that were issued to devices.

use std::net::Ipv6Addr;

use cyphonic_proto::identity::KeyHash;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::devices::DeviceRecord;
use super::{Register, RegisterError, UnixSeconds, forgetting, from_sql, to_sql};

/// Of one name, this many are on record at most, apart from revoked ones: more than can be valid at once
/// ([`YOUTH`]). A revocation has to meet the key of each of those.
const OF_ONE_NAME: i64 = 32;

/// A certificate is young for this part of its life. A device asks when it has lived for two thirds of it.
const YOUTH: UnixSeconds = 24;

/// A certificate that has been made for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The device's name.
    pub fqdn: String,
    /// Its virtual address.
    pub virtual_address: Ipv6Addr,
    /// The certificate.
    pub der: Vec<u8>,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// SHA-256 of its subject public key info.
    pub spki_sha256: KeyHash,
    /// From when it is valid.
    pub not_before: UnixSeconds,
    /// Until when it is valid.
    pub not_after: UnixSeconds,
}

const COLUMNS: &str = "fqdn, der, serial, spki_sha256, not_before, not_after";

impl Register {
    /// How many certificates are on record for a name.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn certificate_count(&self, fqdn: &str) -> Result<u64, RegisterError> {
        let count: i64 =
            self.lock()
                .query_row("SELECT count(*) FROM certificates WHERE fqdn = ?1", [fqdn], |row| row.get(0))?;
        Ok(from_sql(count))
    }
}

/// Puts a certificate on record, and takes off what need not be any more.
pub(super) fn store(
    transaction: &Transaction<'_>,
    issued: &IssuedCertificate,
    now: UnixSeconds,
) -> Result<(), RegisterError> {
    if let Some(until) = forgetting::until(transaction, now)? {
        transaction
            .prepare_cached("DELETE FROM certificates WHERE not_after < ?1")?
            .execute([to_sql(until)])?;
    }
    // Those of the future first: they were made while this machine's clock was wrong.
    let mut statement = transaction.prepare_cached(
        "DELETE FROM certificates WHERE serial IN (
             SELECT serial FROM certificates WHERE fqdn = ?1 AND NOT revoked
             ORDER BY issued_at > ?2, issued_at DESC LIMIT -1 OFFSET ?3)",
    )?;
    statement.execute(params![issued.fqdn, to_sql(now), OF_ONE_NAME - 1])?;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO certificates (serial, fqdn, spki_sha256, der, not_before, not_after, issued_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    statement.execute(params![
        issued.serial,
        issued.fqdn,
        issued.spki_sha256.0,
        issued.der,
        to_sql(issued.not_before),
        to_sql(issued.not_after),
        to_sql(now)
    ])?;
    Ok(())
}

/// A young certificate of this device (not of who had the name before), for this key if there is one.
pub(super) fn youngest(
    transaction: &Transaction<'_>,
    device: &DeviceRecord,
    spki_sha256: &KeyHash,
    now: UnixSeconds,
) -> Result<Option<IssuedCertificate>, RegisterError> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM certificates
         WHERE fqdn = ?1 AND NOT revoked AND NOT former AND issued_at <= ?3 AND (?3 - issued_at) * ?4 < not_after - issued_at
         ORDER BY spki_sha256 = ?2 DESC, issued_at DESC LIMIT 1"
    ))?;
    let parameters = params![device.fqdn, spki_sha256.0, to_sql(now), to_sql(YOUTH)];
    Ok(statement.query_row(parameters, |row| issued(row, device)).optional()?)
}

/// The one with this serial number, which is this device's.
pub(super) fn by_serial(
    transaction: &Transaction<'_>,
    serial: &[u8],
    device: &DeviceRecord,
) -> Result<IssuedCertificate, RegisterError> {
    let mut statement =
        transaction.prepare_cached(&format!("SELECT {COLUMNS} FROM certificates WHERE serial = ?1"))?;
    Ok(statement.query_row([serial], |row| issued(row, device))?)
}

fn issued(row: &Row<'_>, device: &DeviceRecord) -> rusqlite::Result<IssuedCertificate> {
    Ok(IssuedCertificate {
        fqdn: row.get(0)?,
        virtual_address: device.virtual_address,
        der: row.get(1)?,
        serial: row.get(2)?,
        spki_sha256: KeyHash(row.get(3)?),
        not_before: from_sql(row.get(4)?),
        not_after: from_sql(row.get(5)?),
    })
}
