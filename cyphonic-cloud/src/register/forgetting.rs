//! What has ended is forgotten after a while, by a clock that may leap.
//!
//! A clock that is years ahead for a moment would have the register forget what holds in truth: which keys
//! were revoked, and which tokens were made. So nothing is forgotten right after a leap that is long enough
//! for that, and until the clock has gone on from there for a day. Who sets it right meanwhile has lost
//! nothing.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{RegisterError, UnixSeconds, from_sql, to_sql};

/// What has ended stays on record for this long, for the operator who asks what became of it. A shorter leap
/// makes nothing forgotten that has not ended.
const REMEMBERED_FOR: UnixSeconds = 30 * DAY;

const DAY: UnixSeconds = 24 * 3600;

/// When it last was, to the day, as far as nothing speaks against it.
const BELIEVED: &str = "clock";
/// When it was after a leap.
const LEAPT: &str = "clock-leapt";

/// What ended before this may be forgotten; none while the clock may be wrong.
pub(super) fn until(
    transaction: &Transaction<'_>,
    now: UnixSeconds,
) -> Result<Option<UnixSeconds>, RegisterError> {
    let since = |name| {
        let noted = noted(transaction, name)?;
        Ok::<_, RegisterError>(
            noted.and_then(|at| now.checked_sub(at)).filter(|passed| *passed < REMEMBERED_FOR),
        )
    };
    let is_believed = match (since(BELIEVED)?, since(LEAPT)?) {
        (Some(passed), _) => {
            if passed >= DAY {
                note(transaction, BELIEVED, now)?;
            }
            drop_note(transaction, LEAPT)?;
            true
        }
        (None, Some(passed)) if passed >= DAY => {
            note(transaction, BELIEVED, now)?;
            true
        }
        (None, Some(_)) => false,
        (None, None) => {
            note(transaction, LEAPT, now)?;
            false
        }
    };
    Ok(is_believed.then(|| now.saturating_sub(REMEMBERED_FOR)))
}

fn noted(transaction: &Transaction<'_>, name: &str) -> Result<Option<UnixSeconds>, RegisterError> {
    let mut statement = transaction.prepare_cached("SELECT value FROM numbers WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?.map(from_sql))
}

fn note(transaction: &Transaction<'_>, name: &str, now: UnixSeconds) -> Result<(), RegisterError> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO numbers (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
    )?;
    statement.execute(params![name, to_sql(now)])?;
    Ok(())
}

fn drop_note(transaction: &Transaction<'_>, name: &str) -> Result<(), RegisterError> {
    transaction.prepare_cached("DELETE FROM numbers WHERE name = ?1")?.execute([name])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::Register;

    const NOW: UnixSeconds = 1_800_000_000;

    #[test]
    fn nothing_is_forgotten_until_a_clock_that_leapt_has_gone_on_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let may_forget = |now| {
            let until = register.write(|transaction| until(transaction, now)).unwrap();
            assert!(until.is_none_or(|until| until == now - REMEMBERED_FOR));
            until.is_some()
        };
        assert!(!may_forget(NOW) && !may_forget(NOW + DAY - 1), "at first it may be any time");
        assert!(may_forget(NOW + DAY) && may_forget(NOW + 2 * DAY));
        let ahead = NOW + 1_000 * DAY;
        assert!(!may_forget(ahead) && !may_forget(ahead + DAY - 1));
        assert!(may_forget(NOW + 3 * DAY), "it was set right");
        assert!(!may_forget(ahead + DAY), "and leaps to where it was");
        assert!(may_forget(NOW + 4 * DAY) && !may_forget(ahead + 3 * DAY));
        assert!(may_forget(ahead + 4 * DAY), "so much time has passed, it seems");
        assert!(!may_forget(NOW + 5 * DAY) && may_forget(NOW + 6 * DAY), "or not");
        assert!(may_forget(NOW + 35 * DAY) && !may_forget(NOW + 65 * DAY), "nothing was written for long");
    }
}
