//! Enrolment tokens: made by the operator, used once by a device.

use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::token::SecretHash;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::certificates::{self, IssuedCertificate};
use super::{
    EnrolmentRefused, Presented, Register, RegisterError, UnixSeconds, devices, forgetting, from_sql, keys,
    to_sql,
};

/// Open tokens are bounded: a script gone wild must not fill the disk.
const MAX_OPEN_TOKENS: u32 = 100_000;

/// A token to be stored.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Of the secret, which is shown once and kept nowhere.
    pub secret_hash: SecretHash,
    /// The name that the device will get.
    pub fqdn: String,
    /// From when on it is void.
    pub expires_at: UnixSeconds,
    /// Whether it may take the name of an enrolled device over.
    pub replaces: bool,
}

/// A token as `token list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Number by which it can be revoked.
    pub id: i64,
    /// The name it grants.
    pub fqdn: String,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// Who made it, where that is known.
    pub created_by: Option<String>,
    /// When it ends, or ended.
    pub expires_at: UnixSeconds,
    /// Whether it may take the name of an enrolled device over.
    pub replaces: bool,
    /// When it was revoked.
    pub revoked_at: Option<UnixSeconds>,
    /// Who revoked it, where that is known.
    pub revoked_by: Option<String>,
    /// What became of it.
    pub state: TokenState,
}

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// It can be used.
    Open,
    /// A device has used it.
    Used,
    /// Nobody used it in time.
    Expired,
    /// It was revoked.
    Revoked,
}

/// A token that was turned into a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The certificate.
    pub issued: IssuedCertificate,
    /// The token's number.
    pub token: i64,
    /// What has become of the name.
    pub outcome: Enrolled,
}

/// What an enrolment has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// The name is new.
    New,
    /// Another device had the name, or the same one before it was revoked.
    Replaced,
    /// Nothing: it was answered again.
    Again,
}

impl Register {
    /// Stores a token, and gives its number.
    ///
    /// # Errors
    /// If a device has the name, revoked or not, and the token does not replace it, or too many tokens are
    /// open.
    pub fn create_token(&self, token: &NewToken, now: UnixSeconds) -> Result<i64, RegisterError> {
        self.write(|transaction| {
            forget_old(transaction, now)?;
            let holder = devices::find(transaction, &token.fqdn)?;
            if let Some(holder) = holder.filter(|_| !token.replaces) {
                return Err(match holder.revoked_at {
                    Some(_) => RegisterError::NameRevoked(holder.fqdn),
                    None => RegisterError::NameTaken(holder.fqdn),
                });
            }
            let open = count_open(transaction, now)?;
            if open >= MAX_OPEN_TOKENS {
                return Err(RegisterError::TooManyTokens(open));
            }
            let id = next_id(transaction)?;
            transaction.execute(
                "INSERT INTO tokens (id, secret_hash, fqdn, replaces, created_at, expires_at, created_by)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    id,
                    token.secret_hash.0,
                    token.fqdn,
                    token.replaces,
                    to_sql(now),
                    to_sql(token.expires_at),
                    self.operator
                ],
            )?;
            Ok(id)
        })
    }

    /// All tokens that are remembered, oldest first.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn tokens(&self, now: UnixSeconds) -> Result<Vec<TokenRecord>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare(
            "SELECT id, fqdn, created_at, created_by, expires_at, replaces, revoked_at, revoked_by,
                 spki_sha256 IS NOT NULL
             FROM tokens ORDER BY id",
        )?;
        let records = statement.query_map([], |row| record(row, now))?.collect::<Result<_, _>>()?;
        Ok(records)
    }

    /// How many tokens are open, without reading them.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn count_open_tokens(&self, now: UnixSeconds) -> Result<u32, RegisterError> {
        count_open(&self.lock(), now)
    }

    /// Makes unused tokens void: the one with this number, or all for this name. Tells how many.
    ///
    /// # Errors
    /// If there is none; a used token cannot be revoked, its device can.
    pub fn revoke_tokens(&self, id_or_fqdn: &str, now: UnixSeconds) -> Result<usize, RegisterError> {
        self.write(|transaction| {
            let revoked = revoke(transaction, id_or_fqdn, self.operator.as_deref(), now)?;
            if revoked == 0 {
                return Err(RegisterError::NoSuchToken(id_or_fqdn.to_owned()));
            }
            Ok(revoked)
        })
    }

    /// Turns a token into a certificate, exactly once.
    ///
    /// `issue` makes the certificate for the token's name; it runs inside the transaction that marks the
    /// token used and stores the certificate and the device. The same key asking again, also after the token's
    /// end, gets the same certificate: its first answer was lost on the way.
    ///
    /// # Errors
    /// The token is unknown, revoked, expired or used by another key, the key was revoked or is another
    /// device's, or the register or `issue` failed. Nothing was changed.
    pub fn enrol(
        &self,
        secret_hash: &SecretHash,
        spki_sha256: &KeyHash,
        now: UnixSeconds,
        issue: impl FnOnce(&str) -> Result<IssuedCertificate, String>,
    ) -> Result<Enrolment, EnrolmentRefused> {
        self.write(|transaction| {
            let token = find_by_hash(transaction, secret_hash)?.ok_or(EnrolmentRefused::UnknownToken)?;
            if token.is_revoked {
                return Err(EnrolmentRefused::RevokedToken(token.presented()));
            }
            if let Some(used_by) = token.used_by {
                let issued = repeat(transaction, &token, &used_by, spki_sha256)?;
                return Ok(Enrolment { issued, token: token.id, outcome: Enrolled::Again });
            }
            if token.expires_at <= now {
                return Err(EnrolmentRefused::ExpiredToken(token.presented()));
            }
            let is_new = devices::find(transaction, &token.fqdn)?.is_none();
            if !is_new && !token.replaces {
                return Err(EnrolmentRefused::NameTaken(token.presented()));
            }
            if keys::is_revoked(transaction, &token.fqdn, spki_sha256)? {
                return Err(EnrolmentRefused::RevokedKey(token.presented()));
            }
            let holder = keys::other_holder(transaction, &token.fqdn, spki_sha256)?;
            if holder.is_some() || keys::was_revoked(transaction, spki_sha256)? {
                return Err(EnrolmentRefused::KeyInUse { presented: token.presented(), holder });
            }
            let issued = issue(&token.fqdn).map_err(EnrolmentRefused::Issue)?;
            certificates::store(transaction, &issued, now)?;
            devices::enrol(transaction, &issued, now)?;
            transaction
                .execute(
                    "UPDATE tokens SET spki_sha256 = ?1, certificate = ?2 WHERE id = ?3",
                    params![spki_sha256.0, issued.serial, token.id],
                )
                .map_err(RegisterError::from)?;
            let outcome = if is_new { Enrolled::New } else { Enrolled::Replaced };
            Ok(Enrolment { issued, token: token.id, outcome })
        })
    }
}

fn count_open(connection: &Connection, now: UnixSeconds) -> Result<u32, RegisterError> {
    Ok(connection.query_row(
        "SELECT count(*) FROM tokens WHERE spki_sha256 IS NULL AND revoked_at IS NULL AND expires_at > ?1
         AND (replaces OR NOT EXISTS (SELECT 1 FROM devices WHERE devices.fqdn = tokens.fqdn))",
        [to_sql(now)],
        |row| row.get(0),
    )?)
}

/// A number that no token has had: logs name tokens by it that are gone since.
fn next_id(transaction: &Transaction<'_>) -> Result<i64, RegisterError> {
    Ok(transaction.query_row(
        "INSERT INTO numbers (name, value) VALUES ('tokens', (SELECT coalesce(max(id), 0) + 1 FROM tokens))
         ON CONFLICT (name) DO UPDATE SET value = max(value + 1, excluded.value) RETURNING value",
        [],
        |row| row.get(0),
    )?)
}

/// Makes unused tokens void: the one with this number, or all for this name. Tells how many. Also those that
/// seem to have expired: the clock may be ahead, and they would be open again.
pub(super) fn revoke(
    transaction: &Transaction<'_>,
    id_or_fqdn: &str,
    by: Option<&str>,
    now: UnixSeconds,
) -> Result<usize, RegisterError> {
    Ok(transaction.execute(
        "UPDATE tokens SET revoked_at = ?2, revoked_by = ?3
         WHERE spki_sha256 IS NULL AND revoked_at IS NULL AND (fqdn = ?1 OR CAST(id AS TEXT) = ?1)",
        params![id_or_fqdn, to_sql(now), by],
    )?)
}

/// What a stored token says to the one who presents it.
struct StoredToken {
    id: i64,
    fqdn: String,
    replaces: bool,
    is_revoked: bool,
    expires_at: UnixSeconds,
    used_by: Option<KeyHash>,
    certificate: Option<Vec<u8>>,
}

impl StoredToken {
    fn presented(&self) -> Presented {
        Presented { token: self.id, fqdn: self.fqdn.clone() }
    }
}

fn find_by_hash(
    transaction: &Transaction<'_>,
    secret_hash: &SecretHash,
) -> Result<Option<StoredToken>, RegisterError> {
    // The lookup is by hash of a random secret: its timing tells nothing about any secret.
    let token = transaction
        .query_row(
            "SELECT id, fqdn, replaces, expires_at, spki_sha256, certificate, revoked_at IS NOT NULL
             FROM tokens WHERE secret_hash = ?1",
            [secret_hash.0],
            |row| {
                Ok(StoredToken {
                    id: row.get(0)?,
                    fqdn: row.get(1)?,
                    replaces: row.get(2)?,
                    expires_at: from_sql(row.get(3)?),
                    used_by: row.get::<_, Option<_>>(4)?.map(KeyHash),
                    certificate: row.get(5)?,
                    is_revoked: row.get(6)?,
                })
            },
        )
        .optional()?;
    Ok(token)
}

/// The answer to a used token: the same certificate for the same key, as long as it is still the device's.
fn repeat(
    transaction: &Transaction<'_>,
    token: &StoredToken,
    used_by: &KeyHash,
    spki_sha256: &KeyHash,
) -> Result<IssuedCertificate, EnrolmentRefused> {
    if used_by != spki_sha256 {
        return Err(EnrolmentRefused::UsedToken(token.presented()));
    }
    if keys::is_revoked(transaction, &token.fqdn, spki_sha256)? {
        return Err(EnrolmentRefused::RevokedUser(token.presented()));
    }
    let device = devices::find(transaction, &token.fqdn)?.ok_or(EnrolmentRefused::UnknownToken)?;
    if device.revoked_at.is_some() || !device.has_key(spki_sha256) {
        return Err(EnrolmentRefused::UsedToken(token.presented()));
    }
    let serial = token.certificate.as_deref().ok_or(EnrolmentRefused::UnknownToken)?;
    Ok(certificates::by_serial(transaction, serial, &device)?)
}

fn record(row: &Row<'_>, now: UnixSeconds) -> rusqlite::Result<TokenRecord> {
    let expires_at = from_sql(row.get(4)?);
    let revoked_at = row.get::<_, Option<i64>>(6)?.map(from_sql);
    let state = if row.get(8)? {
        TokenState::Used
    } else if revoked_at.is_some() {
        TokenState::Revoked
    } else if expires_at <= now {
        TokenState::Expired
    } else {
        TokenState::Open
    };
    Ok(TokenRecord {
        id: row.get(0)?,
        fqdn: row.get(1)?,
        created_at: from_sql(row.get(2)?),
        created_by: row.get(3)?,
        expires_at,
        replaces: row.get(5)?,
        revoked_at,
        revoked_by: row.get(7)?,
        state,
    })
}

fn forget_old(transaction: &Transaction<'_>, now: UnixSeconds) -> Result<(), RegisterError> {
    if let Some(until) = forgetting::until(transaction, now)? {
        transaction
            .execute("DELETE FROM tokens WHERE expires_at < ?1 OR revoked_at < ?1", [to_sql(until)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::fixture::{KEY, NOW, OTHER_KEY, SECRET, certificate, register, secret, token};

    #[test]
    fn a_retry_with_the_same_key_gets_the_same_certificate() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let first = register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let again = register.enrol(&SECRET, &KEY, NOW + 1, |_| panic!("issued twice")).unwrap();
        assert_eq!((&first.issued, first.token), (&again.issued, again.token));
        assert_eq!((first.outcome, again.outcome), (Enrolled::New, Enrolled::Again));
    }

    #[test]
    fn a_retry_after_the_tokens_end_gets_it_too_and_a_revoked_devices_gets_the_reason() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let first = register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let again = register.enrol(&SECRET, &KEY, NOW + 10_000, |_| panic!("issued twice")).unwrap();
        assert_eq!((first.issued, again.outcome), (again.issued, Enrolled::Again));
        register.revoke_device("press-7.plant.example", NOW + 1).unwrap();
        let revoked = register.enrol(&SECRET, &KEY, NOW + 2, |_| panic!("issued twice"));
        assert!(matches!(revoked, Err(EnrolmentRefused::RevokedUser(_))), "{revoked:?}");
    }

    #[test]
    fn a_token_for_a_name_that_is_taken_meanwhile_is_not_counted_as_open() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.create_token(&token(secret(8), false), NOW).unwrap();
        assert_eq!(register.count_open_tokens(NOW).unwrap(), 2);
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        assert_eq!(register.count_open_tokens(NOW).unwrap(), 0);
        register.create_token(&token(secret(9), true), NOW).unwrap();
        assert_eq!(register.count_open_tokens(NOW).unwrap(), 1);
    }

    #[test]
    fn another_key_is_refused_after_use() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let refused = register.enrol(&SECRET, &OTHER_KEY, NOW, |_| panic!("issued twice"));
        assert!(matches!(refused, Err(EnrolmentRefused::UsedToken(_))));
    }

    #[test]
    fn an_unknown_or_expired_token_issues_nothing() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let unknown = register.enrol(&secret(9), &KEY, NOW, |_| panic!("issued"));
        assert!(matches!(unknown, Err(EnrolmentRefused::UnknownToken)));
        let expired = register.enrol(&SECRET, &KEY, NOW + 3600, |_| panic!("issued"));
        assert!(matches!(expired, Err(EnrolmentRefused::ExpiredToken(_))));
        assert!(register.devices().unwrap().is_empty());
    }

    #[test]
    fn a_failed_issue_leaves_the_token_open() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let failed = register.enrol(&SECRET, &KEY, NOW, |_| Err("no key".into()));
        assert!(matches!(failed, Err(EnrolmentRefused::Issue(_))));
        assert_eq!(register.tokens(NOW).unwrap()[0].state, TokenState::Open);
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        assert_eq!(register.tokens(NOW).unwrap()[0].state, TokenState::Used);
    }

    #[test]
    fn a_name_in_use_needs_a_replacing_token() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.create_token(&token(secret(8), false), NOW).unwrap();
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        assert!(matches!(
            register.create_token(&token(secret(9), false), NOW),
            Err(RegisterError::NameTaken(_))
        ));
        let second = register.enrol(&secret(8), &OTHER_KEY, NOW, |_| panic!("issued"));
        assert!(matches!(second, Err(EnrolmentRefused::NameTaken(_))));
        register.create_token(&token(secret(9), true), NOW).unwrap();
        let replaced =
            register.enrol(&secret(9), &OTHER_KEY, NOW, |_| Ok(certificate(2, OTHER_KEY))).unwrap();
        assert_eq!(replaced.outcome, Enrolled::Replaced);
        let device = register.device("press-7.plant.example").unwrap().unwrap();
        assert!(device.has_key(&OTHER_KEY) && !device.has_key(&KEY));
    }

    #[test]
    fn a_replaced_device_cannot_repeat_its_enrolment() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        register.create_token(&token(secret(9), true), NOW).unwrap();
        register.enrol(&secret(9), &OTHER_KEY, NOW, |_| Ok(certificate(2, OTHER_KEY))).unwrap();
        let stale = register.enrol(&SECRET, &KEY, NOW, |_| panic!("issued"));
        assert!(matches!(stale, Err(EnrolmentRefused::UsedToken(_))));
    }

    #[test]
    fn revoked_tokens_are_refused_and_stay_on_record_for_a_while() {
        let (dir, register) = register();
        let register = register.used_by("ann".into());
        let name = "press-7.plant.example";
        let days = |days: u64| NOW + days * 86_400;
        let year = |secret| NewToken { expires_at: days(365), ..token(secret, false) };
        assert_eq!(register.create_token(&year(SECRET), NOW).unwrap(), 1);
        let other = Register::open(&dir.path().join("register.db")).unwrap().used_by("bob".into());
        assert_eq!(other.revoke_tokens(name, NOW).unwrap(), 1);
        let again = register.revoke_tokens(name, NOW);
        assert!(matches!(again, Err(RegisterError::NoSuchToken(_))), "{again:?}");
        let refused = register.enrol(&SECRET, &KEY, NOW, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedToken(_))), "{refused:?}");
        let kept = register.tokens(NOW).unwrap().remove(0);
        let by = (kept.created_by.as_deref(), kept.revoked_by.as_deref());
        assert_eq!(
            (kept.state, kept.revoked_at, by),
            (TokenState::Revoked, Some(NOW), (Some("ann"), Some("bob")))
        );
        let numbers = |day: u64, secret: SecretHash| {
            register.create_token(&year(secret), days(day)).unwrap();
            register.tokens(days(day)).unwrap().iter().map(|token| token.id).collect::<Vec<_>>()
        };
        assert_eq!(numbers(2, secret(10)), [1, 2]);
        assert_eq!(numbers(29, secret(11)), [1, 2, 3]);
        assert_eq!(numbers(31, secret(12)), [2, 3, 4], "long before it would have ended");
        let refused = register.enrol(&SECRET, &KEY, days(31), |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::UnknownToken)), "{refused:?}");
    }

    #[test]
    fn revoking_a_device_makes_its_open_tokens_void() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let other = NewToken { fqdn: "press-8.plant.example".into(), ..token(secret(10), false) };
        register.create_token(&other, NOW).unwrap();
        for secret in [8, 9].map(secret) {
            register.create_token(&token(secret, true), NOW).unwrap();
        }
        assert_eq!(register.revoke_device("press-7.plant.example", NOW).unwrap().void_tokens, 2);
        let refused = register.enrol(&secret(8), &OTHER_KEY, NOW, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedToken(_))));
        let left: Vec<_> = register.tokens(NOW).unwrap().into_iter().map(|token| token.state).collect();
        let count = |now| register.count_open_tokens(now).unwrap();
        assert_eq!((count(NOW), count(NOW + 3600)), (1, 0));
        use TokenState::{Open, Revoked, Used};
        assert_eq!(
            left,
            [Used, Open, Revoked, Revoked],
            "its own that is used, and the other's, are as they were"
        );
        // One that was made after it goes with the next.
        register.create_token(&token(secret(11), true), NOW).unwrap();
        assert_eq!(register.revoke_device("press-7.plant.example", NOW).unwrap().void_tokens, 1);
    }

    #[test]
    fn tokens_that_are_revoked_while_the_clock_is_ahead_are_not_open_again_when_it_is_set() {
        let (_dir, register) = register();
        let ahead = NOW + 100_000_000;
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, &KEY, NOW, |_| Ok(certificate(1, KEY))).unwrap();
        register.create_token(&token(secret(8), true), NOW).unwrap();
        assert_eq!(register.revoke_device("press-7.plant.example", ahead).unwrap().void_tokens, 1);
        let refused = register.enrol(&secret(8), &OTHER_KEY, NOW, |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedToken(_))));
    }

    #[test]
    fn old_tokens_are_forgotten() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let days = |days: u64| NOW + 3600 + days * 86_400;
        let numbers = |day: u64, secret: SecretHash| {
            let new = NewToken { expires_at: days(1_000), ..token(secret, false) };
            register.create_token(&new, days(day)).unwrap();
            let known = register.tokens(days(day)).unwrap();
            known.iter().map(|token| token.id).collect::<Vec<_>>()
        };
        assert_eq!(numbers(2, secret(10)), [1, 2]);
        assert_eq!(numbers(29, secret(11)), [1, 2, 3]);
        assert_eq!(numbers(31, secret(12)), [2, 3, 4]);
    }
}
