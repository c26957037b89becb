//! Numbers that only ever grow, over restarts and clocks that were set back.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Register, RegisterError, UnixSeconds, from_sql, to_sql};

/// More set-ups than one run of an NMS steers before the clock is past them: a thousand a second for two years,
/// which are the nanoseconds of 69 seconds. A run that steers more leaves none for a clock that is set back.
const SETUPS_PER_RUN: u64 = 1 << 36;

const NANOSECONDS: u64 = 1_000_000_000;

impl Register {
    /// The first number of set-ups for a run of the NMS: larger than all of earlier runs, by the clock where
    /// it can be trusted, by what was reserved before where it cannot (a machine without a battery-backed
    /// clock).
    ///
    /// # Errors
    /// If the register cannot be written.
    pub fn reserve_setups(&self, now: UnixSeconds) -> Result<u64, RegisterError> {
        self.write(|transaction| {
            let first = reserved(transaction)?.max(by_clock(now));
            reserve(transaction, first)?;
            Ok(first)
        })
    }

    /// The same where the register cannot be written, as on a full disk: by the clock alone, if it is past
    /// all that was reserved. Until [`Self::reserve_setups_of`] has succeeded, a clock that is set back
    /// before the next run could make numbers come again.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn unreserved_setups(&self, now: UnixSeconds) -> Result<Option<u64>, RegisterError> {
        let reserved = reserved(&self.lock())?;
        Ok(Some(by_clock(now)).filter(|first| *first >= reserved))
    }

    /// Reserves the numbers from this one on: of a run that began with it before it could, or that another NMS
    /// has got so far with. Nothing is written where most of them are reserved already.
    ///
    /// # Errors
    /// If the register cannot be written.
    pub fn reserve_setups_of(&self, first: u64) -> Result<(), RegisterError> {
        if reserved(&self.lock())? >= first.saturating_add(SETUPS_PER_RUN / 2) {
            return Ok(());
        }
        self.write(|transaction| {
            let least = first.saturating_add(SETUPS_PER_RUN);
            if reserved(transaction)? < least { reserve(transaction, first) } else { Ok(()) }
        })
    }

    /// From where on set-ups are numbered that nobody has steered by now, whose clock is about right.
    pub fn setups_by_clock(now: UnixSeconds) -> u64 {
        by_clock(now)
    }

    /// Whether another NMS of the overlay can have got so far with its set-ups by now, if its clock is about
    /// right.
    pub fn is_plausible(next: u64, now: UnixSeconds) -> bool {
        next <= by_clock(now).saturating_add(16 * SETUPS_PER_RUN)
    }
}

fn by_clock(now: UnixSeconds) -> u64 {
    now.saturating_mul(NANOSECONDS)
}

fn reserved(connection: &Connection) -> Result<u64, RegisterError> {
    let mut statement = connection.prepare_cached("SELECT value FROM numbers WHERE name = 'setups'")?;
    let reserved: Option<i64> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(reserved.map_or(0, from_sql))
}

fn reserve(connection: &Connection, first: u64) -> Result<(), RegisterError> {
    connection.execute(
        "INSERT INTO numbers (name, value) VALUES ('setups', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1",
        params![to_sql(first.saturating_add(SETUPS_PER_RUN))],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_up_numbers_grow_even_when_the_clock_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let register = Register::create(&path).unwrap();
        let first = register.reserve_setups(1_800_000_000).unwrap();
        assert_eq!(first, 1_800_000_000 * NANOSECONDS);
        drop(register);
        let register = Register::open(&path).unwrap();
        let second = register.reserve_setups(0).unwrap();
        assert!(second >= first + SETUPS_PER_RUN);
        assert!(register.reserve_setups(1_800_000_000).unwrap() >= second + SETUPS_PER_RUN);
    }

    #[test]
    fn on_a_full_disk_the_clock_alone_gives_only_numbers_that_nobody_can_have_had() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let start = 1_800_000_000;
        let first = register.reserve_setups(start).unwrap();
        let full = "CREATE TRIGGER full BEFORE INSERT ON numbers BEGIN SELECT RAISE(ABORT, 'disk full'); END";
        register.lock().execute_batch(full).unwrap();
        register.reserve_setups(start + 86_400).unwrap_err();
        assert_eq!(register.unreserved_setups(start).unwrap(), None, "an earlier run's");
        assert_eq!(register.unreserved_setups(start + SETUPS_PER_RUN / NANOSECONDS).unwrap(), None);
        let second = register.unreserved_setups(start + 86_400).unwrap().unwrap();
        assert!(second >= first + SETUPS_PER_RUN);
        register.reserve_setups_of(second).unwrap_err();

        register.lock().execute_batch("DROP TRIGGER full").unwrap();
        register.reserve_setups_of(second).unwrap();
        assert_eq!(register.reserve_setups(0).unwrap(), second + SETUPS_PER_RUN, "the clock was set back");
        register.reserve_setups_of(first).unwrap();
        assert!(register.reserve_setups(0).unwrap() > second + SETUPS_PER_RUN, "nothing is taken back");
    }
}
