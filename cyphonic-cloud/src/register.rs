//! The register: what the cloud has promised, on disk.
//!
//! One SQLite file holds the enrolment tokens, the devices and the certificates issued to them. Every write
//! is one transaction with `synchronous = FULL` in WAL mode: once a method returns, what it did survives a
//! power cut, and a process killed in the middle leaves nothing half done. Several processes (the running
//! cloud, `token create`, `device revoke`) may have it open at once; each reads the others' writes by
//! [`Register::changes_since`].
//!
//! This module is the only place that speaks SQL.
//!
//! Invariants:
//! - a token is used no more often than it may be: uses are counted in the transactions that store certificates;
//! - a token's secret is never stored, only its hash;
//! - every change to a device that matters to a running service carries a greater `revision` than all before
//!   it.

mod certificates;
mod copy;
mod devices;
mod enrolments;
mod error;
#[cfg(test)]
mod fixture;
mod forgetting;
mod keys;
mod numbers;
mod schema;
mod state;
mod tokens;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use cyphonic_dataplane::sync;
use cyphonic_proto::address::Prefix;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

pub use self::certificates::IssuedCertificate;
pub use self::copy::Copied;
pub use self::devices::{DeviceRecord, KeyChange, Members, Revocation, Visit};
pub use self::enrolments::{Asker, Enrolled, Enrolment};
pub use self::error::{EnrolmentRefused, Presented, RegisterError, RenewalRefused};
pub use self::state::DeviceState;
pub use self::tokens::{MAX_USES, NewToken, TokenRecord, TokenState};
use crate::seldom::{HOURLY, Seldom};

/// Seconds since 1970-01-01T00:00:00Z, as certificates count them.
pub type UnixSeconds = u64;

/// How long a write waits for another process's transaction. Writes take milliseconds; five seconds is a slow
/// SD card.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The open register. Cheap to share behind an `Arc`; calls block for the time of one disk write.
#[derive(Debug)]
pub struct Register {
    connection: Mutex<Connection>,
    /// Who uses it, to be kept with what they make and revoke.
    operator: Option<String>,
    /// Devices, and the how manieth of the versions that are noted at once.
    versions_at_once: Seldom<(String, u8)>,
}

/// What [`Register::check`] finds; nothing in a register of an older release.
#[derive(Debug, Default)]
pub struct Inside {
    /// As [`Register::condemned`].
    pub condemned: Vec<DeviceRecord>,
    /// The names of all devices that are not revoked.
    pub names: Vec<String>,
}

impl Register {
    /// Makes a new, empty register readable by its owner only.
    ///
    /// # Errors
    /// If the file exists (it is left untouched) or cannot be made.
    pub fn create(path: &Path) -> Result<Self, RegisterError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| RegisterError::Create { path: path.to_owned(), source })?;
        Self::open(path)
    }

    /// Opens the register and brings its schema up to date.
    ///
    /// # Errors
    /// If there is none, it is no register, or a newer release wrote it.
    pub fn open(path: &Path) -> Result<Self, RegisterError> {
        if !path.exists() {
            return Err(RegisterError::Missing { path: path.to_owned() });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = |source| RegisterError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open_with_flags(path, flags).map_err(open)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        // Who is the last to close it would remove the files beside it, which could not be made again on a disk
        // that is full by then: nothing could be read.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        connection.pragma_update(None, "foreign_keys", "ON").map_err(open)?;
        schema::migrate(&mut connection, path)?;
        let (connection, versions_at_once) = (Mutex::new(connection), Seldom::new(HOURLY));
        Ok(Self { connection, operator: None, versions_at_once })
    }

    /// The same, for the services of an overlay with this prefix.
    ///
    /// # Errors
    /// As [`Self::open`], and if a device's address is of another prefix.
    pub fn open_for(path: &Path, prefix: Prefix) -> Result<Self, RegisterError> {
        let register = Self::open(path)?;
        devices::check_prefix(&register.lock(), prefix)?;
        Ok(register)
    }

    /// Writes into the register itself what stands beside it, so that a copy of the one file is whole. For the
    /// end of a process, which closing does not do ([`Self::open`]).
    ///
    /// # Errors
    /// If it cannot be written, as on a full disk, or somebody reads for long: then nothing is lost, and who
    /// opens it next reads both.
    pub fn gather(&self) -> Result<(), RegisterError> {
        let is_busy: bool = self.lock().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy { Err(RegisterError::InUse) } else { Ok(()) }
    }

    /// The register in the hands of an operator: tokens and revocations will have this name.
    #[must_use]
    pub fn used_by(mut self, operator: String) -> Self {
        self.operator = Some(operator);
        self
    }

    /// Copies a register that may be in use, as it stands at one moment. Changes nothing of it.
    ///
    /// # Errors
    /// If it cannot be read, or the copy not be written: then there is none.
    pub fn back_up(path: &Path, to: &Path) -> Result<(), RegisterError> {
        schema::write_copy(path, to).map_err(|error| RegisterError::BackUp {
            path: path.to_owned(),
            to: to.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Whether [`Self::open_for`] would open it, and what would be in it. Changes nothing: an older release may
    /// be using it.
    ///
    /// # Errors
    /// As [`Self::open_for`].
    pub fn check(path: &Path, prefix: Prefix) -> Result<Inside, RegisterError> {
        if !path.exists() {
            return Err(RegisterError::Missing { path: path.to_owned() });
        }
        let open = |source| RegisterError::Open { path: path.to_owned(), source };
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(open)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        let version = schema::version(&connection, path).map_err(|error| match error {
            RegisterError::Sqlite(source) => open(source),
            error => error,
        })?;
        // The first has no tables yet.
        if version > 0 {
            devices::check_prefix(&connection, prefix)?;
        }
        if version < schema::supported() {
            return Ok(Inside::default());
        }
        Ok(Inside { condemned: keys::condemned(&connection)?, names: devices::names(&connection)? })
    }

    /// Changes whenever another connection has written to the file: a cheap test before
    /// [`Self::changes_since`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn data_version(&self) -> Result<i64, RegisterError> {
        Ok(self.lock().query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back: the connection is sound.
        sync::lock(&self.connection)
    }

    /// Runs `work` in one write transaction; an error rolls everything back.
    ///
    /// IMMEDIATE takes the write lock before the first read, so that what was read is still true when it is
    /// written.
    fn write<T, E: From<RegisterError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.lock();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(RegisterError::from)?;
        let result = work(&transaction)?;
        transaction.commit().map_err(RegisterError::from)?;
        Ok(result)
    }
}

/// SQLite's integers are signed; a time past the year 292 billion is nobody's intention.
fn to_sql(seconds: UnixSeconds) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn from_sql(seconds: i64) -> UnixSeconds {
    u64::try_from(seconds).unwrap_or(0)
}

impl Drop for Register {
    /// Commands end so, and wait for nobody.
    fn drop(&mut self) {
        let wrote = self.lock().total_changes() > 0;
        let gather = || {
            self.lock().busy_timeout(Duration::ZERO)?;
            self.gather()
        };
        if wrote && let Err(error) = gather() {
            tracing::debug!(%error, "the latest changes stay in the file beside the register");
        }
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::KeyHash;

    use super::*;

    const PREFIX: Prefix = Prefix::from_random([1, 2, 3, 4, 5]);

    /// SQLite 3.51.1 had two of its locks taken in either order, and stood still for good.
    #[test]
    fn registers_that_are_opened_and_closed_at_the_same_time_do_not_stop_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a.db", "b.db"].map(|name| dir.path().join(name));
        paths.iter().for_each(|path| drop(Register::create(path).unwrap()));
        let (done, finished) = std::sync::mpsc::channel();
        for worker in 0..4 {
            let (path, done) = (paths[worker % 2].clone(), done.clone());
            std::thread::spawn(move || {
                for _ in 0..100 {
                    Register::open(&path).unwrap().data_version().unwrap();
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..4 {
            finished.recv_timeout(Duration::from_secs(120)).expect("all come to their end");
        }
    }

    #[test]
    fn a_register_of_another_prefix_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let register = Register::create(&path).unwrap();
        let checked =
            || [Register::check(&path, PREFIX).map(drop), Register::open_for(&path, PREFIX).map(drop)];
        assert!(checked().iter().all(Result::is_ok), "no device yet");
        for (name, prefix) in [("a.lab", PREFIX), ("b.lab", Prefix::from_random([9; 5]))] {
            let mut address = prefix.address().octets();
            address[15] = 7;
            let issued = IssuedCertificate {
                fqdn: name.into(),
                virtual_address: address.into(),
                der: vec![0x30],
                serial: name.into(),
                spki_sha256: KeyHash([address[1]; 32]),
                not_before: 0,
                not_after: 1,
            };
            register.take_up(&[issued], 0).unwrap();
            let refused = |result: &Result<(), RegisterError>| matches!(result, Err(error @ RegisterError::OtherPrefix { .. }) if error.needs_a_person());
            assert!(checked().iter().all(|result| refused(result) == (prefix != PREFIX)), "{:?}", checked());
        }
    }

    #[test]
    fn a_register_is_private_and_durable() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let register = Register::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let connection = register.lock();
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        let synchronous: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        assert_eq!((mode.as_str(), synchronous), ("wal", 2));
    }

    #[test]
    fn creating_over_a_register_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        Register::create(&path).unwrap();
        assert!(matches!(Register::create(&path), Err(RegisterError::Create { .. })));
    }

    #[test]
    fn a_missing_register_and_a_text_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let opened = || [Register::open(&path).map(drop), Register::check(&path, PREFIX).map(drop)];
        assert!(opened().iter().all(|result| matches!(result, Err(RegisterError::Missing { .. }))));
        std::fs::write(&path, "this is no database, only a text of some length".repeat(40)).unwrap();
        assert!(opened().iter().all(|result| matches!(result, Err(RegisterError::Open { .. }))));
    }

    #[test]
    fn a_check_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        drop(Register::create(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        Register::check(&path, PREFIX).unwrap();
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, 1);
        connection.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Register::check(&path, PREFIX), Err(RegisterError::Newer { .. })));
    }
}
