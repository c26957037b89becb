//! The register's tables, and the steps from each version of them to the next.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::RegisterError;
use crate::pki;

/// "Cyph": tells the register from any other SQLite file.
const APPLICATION_ID: i64 = 0x4379_7068;

/// Step `n` leads from version `n` to `n + 1`. Steps are only ever appended.
const MIGRATIONS: &[&str] = &[
    // 1: tokens, devices, certificates.
    "CREATE TABLE devices (
        fqdn             TEXT PRIMARY KEY,
        virtual_address  BLOB NOT NULL UNIQUE CHECK (length(virtual_address) = 16),
        spki_sha256      BLOB NOT NULL CHECK (length(spki_sha256) = 32),
        -- Set by a renewal with a new key, until the device logs in with it: a lost answer locks nobody out.
        next_spki_sha256 BLOB CHECK (length(next_spki_sha256) = 32),
        enrolled_at      INTEGER NOT NULL,
        revoked_at       INTEGER,
        last_login_at    INTEGER,
        software_version TEXT,
        revision         INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX devices_by_revision ON devices (revision);

    CREATE TABLE tokens (
        id           INTEGER PRIMARY KEY,
        secret_hash  BLOB NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
        fqdn         TEXT NOT NULL,
        replaces     INTEGER NOT NULL CHECK (replaces IN (0, 1)),
        created_at   INTEGER NOT NULL,
        expires_at   INTEGER NOT NULL,
        -- The key that used it; null while it is open.
        spki_sha256  BLOB CHECK (length(spki_sha256) = 32),
        certificate  BLOB REFERENCES certificates (serial) ON DELETE SET NULL
    ) STRICT;
    CREATE INDEX tokens_by_name ON tokens (fqdn);

    CREATE TABLE certificates (
        serial      BLOB PRIMARY KEY,
        fqdn        TEXT NOT NULL,
        spki_sha256 BLOB NOT NULL CHECK (length(spki_sha256) = 32),
        der         BLOB NOT NULL,
        not_before  INTEGER NOT NULL,
        not_after   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX certificates_by_expiry ON certificates (not_after);
    CREATE INDEX certificates_by_name ON certificates (fqdn);

    CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;",
    // 2: when certificates were made, and which ones a revocation met. A certificate that goes is looked for
    // among the tokens.
    "ALTER TABLE certificates ADD COLUMN issued_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE certificates ADD COLUMN revoked INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1));
    UPDATE certificates SET
        issued_at = not_before,
        revoked = fqdn IN (SELECT fqdn FROM devices WHERE revoked_at IS NOT NULL);
    CREATE INDEX tokens_by_certificate ON tokens (certificate);",
    // 3: which device has a key is asked at each enrolment.
    "CREATE INDEX devices_by_key ON devices (spki_sha256);
    CREATE INDEX devices_by_next_key ON devices (next_spki_sha256) WHERE next_spki_sha256 IS NOT NULL;",
    // 4: who made and revoked what; a revoked token stays on record for a while.
    "ALTER TABLE tokens ADD COLUMN created_by TEXT;
    ALTER TABLE tokens ADD COLUMN revoked_at INTEGER;
    ALTER TABLE tokens ADD COLUMN revoked_by TEXT;
    ALTER TABLE devices ADD COLUMN revoked_by TEXT;",
    // 5: keys that a revocation has met are refused under every name, also when their certificates are
    // forgotten.
    "CREATE TABLE revoked_keys (
        spki_sha256 BLOB PRIMARY KEY CHECK (length(spki_sha256) = 32)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO revoked_keys
        SELECT spki_sha256 FROM certificates WHERE revoked
        UNION SELECT spki_sha256 FROM devices WHERE revoked_at IS NOT NULL;",
    // 6: which certificates are of earlier holders of a name, whose keys a revocation does not meet under
    // other names; and until when a device has one that is not on record. Those of the first version count as
    // made when they became valid, which is an hour early.
    "ALTER TABLE certificates ADD COLUMN former INTEGER NOT NULL DEFAULT 0 CHECK (former IN (0, 1));
    UPDATE certificates SET former = 1
        WHERE issued_at + 3600 < (SELECT enrolled_at FROM devices WHERE devices.fqdn = certificates.fqdn);
    ALTER TABLE devices ADD COLUMN certificate_seen_until INTEGER;",
    // 7: tokens for many devices, whose names they leave open; by which token a device enrolled.
    "CREATE TABLE tokens_of_many (
        id           INTEGER PRIMARY KEY,
        secret_hash  BLOB NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
        -- A device's, or a pattern with one star.
        name         TEXT NOT NULL,
        replaces     INTEGER NOT NULL CHECK (replaces IN (0, 1)),
        created_at   INTEGER NOT NULL,
        expires_at   INTEGER NOT NULL,
        created_by   TEXT,
        revoked_at   INTEGER,
        revoked_by   TEXT,
        uses         INTEGER NOT NULL CHECK (uses > 0),
        used         INTEGER NOT NULL DEFAULT 0 CHECK (used <= uses)
    ) STRICT;
    INSERT INTO tokens_of_many
        SELECT id, secret_hash, fqdn, replaces, created_at, expires_at, created_by, revoked_at, revoked_by,
            1, spki_sha256 IS NOT NULL
        FROM tokens;
    CREATE TABLE enrolments (
        token        INTEGER NOT NULL REFERENCES tokens_of_many (id) ON DELETE CASCADE,
        -- The key that used it.
        spki_sha256  BLOB NOT NULL CHECK (length(spki_sha256) = 32),
        fqdn         TEXT NOT NULL,
        certificate  BLOB REFERENCES certificates (serial) ON DELETE SET NULL,
        PRIMARY KEY (token, spki_sha256)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO enrolments
        SELECT id, spki_sha256, fqdn, certificate FROM tokens WHERE spki_sha256 IS NOT NULL;
    DROP TABLE tokens;
    ALTER TABLE tokens_of_many RENAME TO tokens;
    CREATE INDEX tokens_by_name ON tokens (name);
    CREATE INDEX enrolments_by_certificate ON enrolments (certificate);
    ALTER TABLE devices ADD COLUMN token INTEGER;
    -- At the NMS, to some minutes.
    ALTER TABLE devices ADD COLUMN last_seen_at INTEGER;
    UPDATE devices SET token = newest.token
        FROM (SELECT fqdn, max(token) AS token FROM enrolments GROUP BY fqdn) AS newest
        WHERE devices.fqdn = newest.fqdn;
    UPDATE devices SET token = own.token FROM enrolments AS own
        WHERE devices.fqdn = own.fqdn AND devices.spki_sha256 = own.spki_sha256;",
];

/// The version of a register's tables, or why it is none that this release knows.
pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64, RegisterError> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (tables > 0 || version > 0) {
        return Err(RegisterError::Foreign { path: path.to_owned() });
    }
    let supported = supported();
    if version > supported || version < 0 {
        return Err(RegisterError::Newer { path: path.to_owned(), found: version, supported });
    }
    Ok(version)
}

pub(super) fn supported() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Brings the tables to the newest version, in one transaction: two processes that start at once migrate
/// once. What there was is copied first, for whoever goes back to the release that knows it.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), RegisterError> {
    let supported = supported();
    if version(connection, path)? == supported {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = version(&transaction, path)?;
    if version == supported {
        return Ok(());
    }
    if version > 0 {
        copy(path, version)?;
    }
    let done = usize::try_from(version).unwrap_or(0);
    for step in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", supported)?;
    transaction.commit()?;
    Ok(())
}

/// Where the register of an older version is kept.
fn copy_path(path: &Path, version: i64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".v{version}"));
    name.into()
}

/// Copies the register beside it. The caller has its write lock, so nothing changes meanwhile, and nobody
/// else copies.
fn copy(path: &Path, version: i64) -> Result<(), RegisterError> {
    let to = copy_path(path, version);
    let failed =
        |reason: &dyn std::fmt::Display| RegisterError::Copy { to: to.clone(), reason: reason.to_string() };
    write_copy(path, &to).map_err(|error| failed(&error))?;
    tracing::info!(version, copy = %to.display(), "the register of an older release is brought up to date; a copy is kept");
    Ok(())
}

/// One that is there already is replaced by a whole one.
pub(super) fn write_copy(path: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let part = to.with_added_extension("part");
    match fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // It is written into an empty file, too, which is its owner's only.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let name = part.to_str().ok_or("its path is not UTF-8")?;
    let written = connection.execute("VACUUM INTO ?1", [name]);
    if let Err(error) = written {
        // It may have filled the disk.
        let _ = fs::remove_file(&part);
        return Err(error.into());
    }
    file.sync_all()?;
    fs::rename(&part, to)?;
    pki::sync_folder_of(to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::fixture::asker;
    use crate::register::{Register, TokenState};

    #[test]
    fn a_register_of_a_newer_release_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        drop(Register::create(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        assert!(matches!(Register::open(&path), Err(RegisterError::Newer { found: 99, .. })));
    }

    fn of_the_first_release(path: &Path) -> Connection {
        let old = Connection::open(path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        old
    }

    #[test]
    fn what_an_older_release_knows_is_kept_when_its_register_is_brought_up_to_date() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("register.db"), dir.path().join("register.db.v1"));
        let old = of_the_first_release(&path);
        old.pragma_update(None, "journal_mode", "WAL").unwrap();
        old.execute("INSERT INTO numbers VALUES ('setups', 7)", []).unwrap();
        // Of an earlier upgrade, and of one that was cut short.
        fs::write(&copy, "old").unwrap();
        fs::write(dir.path().join("register.db.v1.part"), "half").unwrap();
        Register::open(&path).unwrap();
        assert_eq!(version(&old, &path).unwrap(), supported());

        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let kept = Connection::open(&copy).unwrap();
        assert_eq!(version(&kept, &copy).unwrap(), 1);
        let number: i64 = kept.query_row("SELECT value FROM numbers", [], |row| row.get(0)).unwrap();
        assert_eq!(number, 7);
        assert!(!dir.path().join("register.db.v1.part").exists());
        drop(kept);
        // It is a register like any other, and one that is up to date is not copied.
        Register::open(&copy).unwrap();
        Register::open(&path).unwrap();
        assert!(dir.path().join("register.db.v1.v1").exists());
        assert!(!dir.path().join(format!("register.db.v{}", supported())).exists());
    }

    #[test]
    fn without_a_copy_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let old = of_the_first_release(&path);
        fs::create_dir(dir.path().join("register.db.v1")).unwrap();
        let refused = Register::open(&path).unwrap_err();
        assert!(matches!(refused, RegisterError::Copy { .. }), "{refused}");
        assert_eq!(version(&old, &path).unwrap(), 1);
    }

    #[test]
    fn a_register_of_the_first_release_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let old = of_the_first_release(&path);
        for (n, name, revoked_at) in [(1u8, "a.example", None), (2, "b.example", Some(7))] {
            old.execute(
                "INSERT INTO devices VALUES (?1, ?2, ?3, NULL, 5, ?4, NULL, NULL, ?5)",
                rusqlite::params![name, [n; 16], [n; 32], revoked_at, n],
            )
            .unwrap();
            old.execute(
                "INSERT INTO certificates VALUES (?1, ?2, ?3, x'30', 5, 9)",
                rusqlite::params![[n], name, [n; 32]],
            )
            .unwrap();
        }
        drop(old);
        assert_eq!(Register::open(&path).unwrap().devices().unwrap().len(), 2);
        let connection = Connection::open(&path).unwrap();
        let mut statement =
            connection.prepare("SELECT fqdn, issued_at, revoked FROM certificates ORDER BY fqdn").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        let rows: Vec<(String, i64, bool)> = rows.map(Result::unwrap).collect();
        assert_eq!(rows, [("a.example".to_owned(), 5, false), ("b.example".to_owned(), 5, true)]);
        // A certificate that goes does not cost a look at every token.
        let plan: String = connection
            .query_row("EXPLAIN QUERY PLAN SELECT 1 FROM enrolments WHERE certificate = x'01'", [], |r| {
                r.get(3)
            })
            .unwrap();
        assert!(plan.contains("enrolments_by_certificate"), "{plan}");
    }

    #[test]
    fn tokens_and_revocations_of_the_third_form_were_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let old = Connection::open(&path).unwrap();
        MIGRATIONS[..3].iter().for_each(|step| old.execute_batch(step).unwrap());
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 3).unwrap();
        old.execute_batch(
            "INSERT INTO tokens (id, secret_hash, fqdn, replaces, created_at, expires_at)
                 VALUES (7, zeroblob(32), 'a.example', 1, 5, 9);
             INSERT INTO devices (fqdn, virtual_address, spki_sha256, enrolled_at, revoked_at, revision)
                 VALUES ('b.example', zeroblob(16), zeroblob(32), 5, 7, 1);",
        )
        .unwrap();
        drop(old);
        let register = Register::open(&path).unwrap();
        let token = register.tokens(8).unwrap().remove(0);
        assert_eq!((token.id, token.state, token.replaces), (7, TokenState::Open, true));
        assert_eq!((token.created_by, token.revoked_by), (None, None));
        let device = register.devices().unwrap().remove(0);
        assert_eq!((device.revoked_at, device.revoked_by), (Some(7), None));
        assert!(dir.path().join("register.db.v3").exists());
    }

    #[test]
    fn keys_that_were_revoked_by_an_older_release_stay_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let old = of_the_first_release(&path);
        MIGRATIONS[1..4].iter().for_each(|step| old.execute_batch(step).unwrap());
        old.pragma_update(None, "user_version", 4).unwrap();
        // It was revoked twice, and enrolled anew in between. Of the first key the certificate is left, of
        // the last nothing.
        old.execute(
            "INSERT INTO devices (fqdn, virtual_address, spki_sha256, enrolled_at, revoked_at, revision)
                 VALUES ('a.example', zeroblob(16), ?1, 5, 7, 1)",
            [[3u8; 32]],
        )
        .unwrap();
        for (key, revoked) in [([1u8; 32], true), ([2; 32], false)] {
            old.execute(
                "INSERT INTO certificates VALUES (?1, 'a.example', ?1, x'30', 5, 9, 5, ?2)",
                rusqlite::params![key, revoked],
            )
            .unwrap();
        }
        // It has changed its name and kept its key, and another has asked to have that next.
        old.execute(
            "INSERT INTO devices
                 (fqdn, virtual_address, spki_sha256, next_spki_sha256, enrolled_at, revision)
                 VALUES ('b.example', randomblob(16), ?1, NULL, 7, 2),
                        ('c.example', randomblob(16), ?2, ?1, 7, 3),
                        ('d.example', randomblob(16), ?2, NULL, 7, 4)",
            [[3u8; 32], [4; 32]],
        )
        .unwrap();
        drop(old);
        let condemned = Register::open(&path).unwrap().condemned().unwrap();
        assert_eq!(condemned.iter().map(|d| &d.fqdn).collect::<Vec<_>>(), ["b.example"]);
        let connection = Connection::open(&path).unwrap();
        let mut statement = connection.prepare("SELECT spki_sha256 FROM revoked_keys").unwrap();
        let keys = statement.query_map([], |row| row.get(0)).unwrap();
        assert_eq!(keys.map(Result::unwrap).collect::<Vec<[u8; 32]>>(), [[1; 32], [3; 32]]);
    }

    #[test]
    fn certificates_of_the_fifth_form_are_told_apart_by_when_the_device_enrolled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let old = of_the_first_release(&path);
        MIGRATIONS[1..5].iter().for_each(|step| old.execute_batch(step).unwrap());
        old.pragma_update(None, "user_version", 5).unwrap();
        old.execute_batch(
            "INSERT INTO devices (fqdn, virtual_address, spki_sha256, enrolled_at, revision)
                 VALUES ('a.example', zeroblob(16), zeroblob(32), 3607, 1);
             INSERT INTO certificates VALUES (x'01', 'a.example', zeroblob(32), x'30', 1, 9, 6, 0);
             INSERT INTO certificates VALUES (x'02', 'a.example', zeroblob(32), x'30', 1, 9, 7, 0);
             INSERT INTO certificates VALUES (x'03', 'b.example', zeroblob(32), x'30', 1, 9, 6, 0);",
        )
        .unwrap();
        drop(old);
        let device = Register::open(&path).unwrap().devices().unwrap().remove(0);
        assert_eq!(device.certificate_not_after, Some(9), "as before");
        let connection = Connection::open(&path).unwrap();
        let mut statement = connection.prepare("SELECT former FROM certificates ORDER BY serial").unwrap();
        let former = statement.query_map([], |row| row.get(0)).unwrap();
        assert_eq!(former.map(Result::unwrap).collect::<Vec<bool>>(), [true, false, false]);
    }

    #[test]
    fn another_programs_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        assert!(matches!(Register::open(&path), Err(RegisterError::Foreign { .. })));
        let connection = Connection::open(&path).unwrap();
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1);
    }

    #[test]
    fn tokens_of_the_sixth_form_were_for_one_device_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let old = of_the_first_release(&path);
        MIGRATIONS[1..6].iter().for_each(|step| old.execute_batch(step).unwrap());
        old.pragma_update(None, "user_version", 6).unwrap();
        old.execute_batch(
            "INSERT INTO certificates (serial, fqdn, spki_sha256, der, not_before, not_after)
                 VALUES (x'01', 'a.example', zeroblob(32), x'30', 5, 9);
             INSERT INTO devices (fqdn, virtual_address, spki_sha256, enrolled_at, revision)
                 VALUES ('a.example', zeroblob(16), zeroblob(32), 5, 1),
                        ('c.example', randomblob(16), randomblob(32), 5, 2);
             INSERT INTO tokens (id, secret_hash, fqdn, replaces, created_at, expires_at, spki_sha256, certificate)
                 VALUES (3, randomblob(32), 'a.example', 0, 4, 9, randomblob(32), NULL),
                        (7, zeroblob(32), 'a.example', 1, 5, 9, zeroblob(32), x'01'),
                        (8, randomblob(32), 'b.example', 0, 5, 9, NULL, NULL);",
        )
        .unwrap();
        drop(old);
        let register = Register::open(&path).unwrap();
        let tokens = register.tokens(8).unwrap();
        let told: Vec<_> = tokens.iter().map(|t| (t.id, t.name.as_str(), t.state, t.used, t.uses)).collect();
        assert_eq!(
            told,
            [
                (3, "a.example", TokenState::Used, 1, 1),
                (7, "a.example", TokenState::Used, 1, 1),
                (8, "b.example", TokenState::Open, 0, 1)
            ]
        );
        let by_token = |device: crate::register::DeviceRecord| device.token;
        let devices: Vec<_> = register.devices().unwrap().into_iter().map(by_token).collect();
        assert_eq!(devices, [Some(7), None]);
        // What was answered is answered again.
        let (key, secret) =
            (cyphonic_proto::identity::KeyHash([0; 32]), cyphonic_proto::token::SecretHash([0; 32]));
        let again = register.enrol(&secret, asker(&key), 8, |_| panic!("issued twice")).unwrap();
        assert_eq!((again.issued.serial, again.token), (vec![1], 7));
    }
}
