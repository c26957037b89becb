//! Enrolment tokens, as the operator makes, sees and revokes them. What devices do with them: [`super::enrolments`].

use cyphonic_proto::token::SecretHash;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{Presented, Register, RegisterError, UnixSeconds, devices, forgetting, from_sql, to_sql};

/// Open tokens are bounded: a script gone wild must not fill the disk.
const MAX_OPEN_TOKENS: u32 = 100_000;

/// So many devices one token can enrol at most.
pub const MAX_USES: u32 = 100_000;

/// A token to be stored.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Of the secret, which is shown once and kept nowhere.
    pub secret_hash: SecretHash,
    /// The name that the device will get, or a [pattern](crate::names::NamePattern) of names.
    pub name: String,
    /// From when on it is void.
    pub expires_at: UnixSeconds,
    /// Whether it may take the name of an enrolled device over.
    pub replaces: bool,
    /// How many devices may enrol by it: one, where it is for one name.
    pub uses: u32,
}

/// A token as `token list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Number by which it can be revoked.
    pub id: i64,
    /// The name that it grants, or the pattern of names.
    pub name: String,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// Who made it, where that is known.
    pub created_by: Option<String>,
    /// When it ends, or ended.
    pub expires_at: UnixSeconds,
    /// Whether it may take the name of an enrolled device over.
    pub replaces: bool,
    /// How many devices may enrol by it.
    pub uses: u32,
    /// How many have.
    pub used: u32,
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
    /// It was used, as often as it may be.
    Used,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

const COLUMNS: &str =
    "id, name, created_at, created_by, expires_at, replaces, revoked_at, revoked_by, uses, used";

impl Register {
    /// Stores a token, and gives its number.
    ///
    /// # Errors
    /// If a device has the name, revoked or not, and the token does not replace it, or too many tokens are
    /// open.
    pub fn create_token(&self, token: &NewToken, now: UnixSeconds) -> Result<i64, RegisterError> {
        self.write(|transaction| {
            forget_old(transaction, now)?;
            let holder = devices::find(transaction, &token.name)?;
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
                "INSERT INTO tokens (id, secret_hash, name, replaces, created_at, expires_at, created_by, uses)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    token.secret_hash.0,
                    token.name,
                    token.replaces,
                    to_sql(now),
                    to_sql(token.expires_at),
                    self.operator,
                    token.uses
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
        let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM tokens ORDER BY id"))?;
        let records = statement.query_map([], |row| record(row, now))?.collect::<Result<_, _>>()?;
        Ok(records)
    }

    /// The open tokens by which devices of this name have enrolled: they may have them still.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn open_tokens_of(&self, fqdn: &str, now: UnixSeconds) -> Result<Vec<TokenRecord>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare(&format!(
            "SELECT {COLUMNS} FROM tokens WHERE id IN (SELECT token FROM enrolments WHERE fqdn = ?1) ORDER BY id"
        ))?;
        let records = statement.query_map([fqdn], |row| record(row, now))?;
        let is_open = |token: &rusqlite::Result<TokenRecord>| !matches!(token, Ok(token) if token.state != TokenState::Open);
        Ok(records.filter(is_open).collect::<Result<_, _>>()?)
    }

    /// How many tokens are open, without reading them.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn count_open_tokens(&self, now: UnixSeconds) -> Result<u32, RegisterError> {
        count_open(&self.lock(), now)
    }

    /// Makes what is unused of tokens void: of the one with this number, or of all for this name or pattern. Tells of
    /// how many.
    ///
    /// # Errors
    /// If there is none; a used token cannot be revoked, its device can.
    pub fn revoke_tokens(&self, id_or_name: &str, now: UnixSeconds) -> Result<usize, RegisterError> {
        self.write(|transaction| {
            let revoked = revoke(transaction, id_or_name, self.operator.as_deref(), now)?;
            if revoked == 0 {
                return Err(RegisterError::NoSuchToken(id_or_name.to_owned()));
            }
            Ok(revoked)
        })
    }
}

fn count_open(connection: &Connection, now: UnixSeconds) -> Result<u32, RegisterError> {
    Ok(connection.query_row(
        "SELECT count(*) FROM tokens WHERE used < uses AND revoked_at IS NULL AND expires_at > ?1
         AND (replaces OR NOT EXISTS (SELECT 1 FROM devices WHERE devices.fqdn = tokens.name))",
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

/// Makes what is unused of tokens void: of the one with this number, or of all for this name or pattern. Tells of how
/// many. Also those that seem to have expired: the clock may be ahead, and they would be open again.
pub(super) fn revoke(
    transaction: &Transaction<'_>,
    id_or_name: &str,
    by: Option<&str>,
    now: UnixSeconds,
) -> Result<usize, RegisterError> {
    Ok(transaction.execute(
        "UPDATE tokens SET revoked_at = ?2, revoked_by = ?3
         WHERE used < uses AND revoked_at IS NULL AND (name = ?1 OR CAST(id AS TEXT) = ?1)",
        params![id_or_name, to_sql(now), by],
    )?)
}

/// What a stored token says to the one who presents it.
pub(super) struct StoredToken {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) replaces: bool,
    pub(super) is_revoked: bool,
    pub(super) expires_at: UnixSeconds,
    pub(super) uses: u32,
    pub(super) used: u32,
}

impl StoredToken {
    /// As it is told of in the log, for who would get this name.
    pub(super) fn presented(&self, fqdn: Option<&str>) -> Presented {
        Presented { token: self.id, granted: self.name.clone(), fqdn: fqdn.map(str::to_owned) }
    }
}

/// Whether there is an open token for this name and no other.
pub(super) fn is_kept(
    transaction: &Transaction<'_>,
    fqdn: &str,
    now: UnixSeconds,
) -> Result<bool, RegisterError> {
    let mut statement = transaction.prepare_cached(
        "SELECT 1 FROM tokens WHERE name = ?1 AND used < uses AND revoked_at IS NULL AND expires_at > ?2",
    )?;
    Ok(statement.exists(params![fqdn, to_sql(now)])?)
}

pub(super) fn find_by_hash(
    transaction: &Transaction<'_>,
    secret_hash: &SecretHash,
) -> Result<Option<StoredToken>, RegisterError> {
    // The lookup is by hash of a random secret: its timing tells nothing about any secret.
    let token = transaction
        .query_row(
            "SELECT id, name, replaces, revoked_at IS NOT NULL, expires_at, uses, used
             FROM tokens WHERE secret_hash = ?1",
            [secret_hash.0],
            |row| {
                Ok(StoredToken {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    replaces: row.get(2)?,
                    is_revoked: row.get(3)?,
                    expires_at: from_sql(row.get(4)?),
                    uses: row.get(5)?,
                    used: row.get(6)?,
                })
            },
        )
        .optional()?;
    Ok(token)
}

fn record(row: &Row<'_>, now: UnixSeconds) -> rusqlite::Result<TokenRecord> {
    let expires_at = from_sql(row.get(4)?);
    let revoked_at = row.get::<_, Option<i64>>(6)?.map(from_sql);
    let (uses, used) = (row.get(8)?, row.get(9)?);
    let state = if used >= uses {
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
        name: row.get(1)?,
        created_at: from_sql(row.get(2)?),
        created_by: row.get(3)?,
        expires_at,
        replaces: row.get(5)?,
        uses,
        used,
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
    use crate::register::EnrolmentRefused;
    use crate::register::fixture::{
        KEY, NOW, OTHER_KEY, SECRET, asker, certificate, register, secret, token,
    };

    #[test]
    fn a_token_for_a_name_that_is_taken_meanwhile_is_not_counted_as_open() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.create_token(&token(secret(8), false), NOW).unwrap();
        assert_eq!(register.count_open_tokens(NOW).unwrap(), 2);
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        assert_eq!(register.count_open_tokens(NOW).unwrap(), 0);
        register.create_token(&token(secret(9), true), NOW).unwrap();
        assert_eq!(register.count_open_tokens(NOW).unwrap(), 1);
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
        let refused = register.enrol(&SECRET, asker(&KEY), NOW, |_| panic!("issued"));
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
        let refused = register.enrol(&SECRET, asker(&KEY), days(31), |_| panic!("issued"));
        assert!(matches!(refused, Err(EnrolmentRefused::UnknownToken)), "{refused:?}");
    }

    #[test]
    fn revoking_a_device_makes_its_open_tokens_void() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let other = NewToken { name: "press-8.plant.example".into(), ..token(secret(10), false) };
        register.create_token(&other, NOW).unwrap();
        for secret in [8, 9].map(secret) {
            register.create_token(&token(secret, true), NOW).unwrap();
        }
        assert_eq!(register.revoke_device("press-7.plant.example", NOW).unwrap().void_tokens, 2);
        let refused = register.enrol(&secret(8), asker(&OTHER_KEY), NOW, |_| panic!("issued"));
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
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        register.create_token(&token(secret(8), true), NOW).unwrap();
        assert_eq!(register.revoke_device("press-7.plant.example", ahead).unwrap().void_tokens, 1);
        let refused = register.enrol(&secret(8), asker(&OTHER_KEY), NOW, |_| panic!("issued"));
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
