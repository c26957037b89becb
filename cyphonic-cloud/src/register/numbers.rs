//! Numbers that only ever grow, over restarts and clocks that were set back.

use rusqlite::{OptionalExtension, params};

use super::{Register, RegisterError, UnixSeconds, from_sql, to_sql};

/// More set-ups than one run of an NMS can steer: a million a second for twelve days.
const SETUPS_PER_RUN: u64 = 1 << 40;

const NANOSECONDS: u64 = 1_000_000_000;

impl Register {
    /// The first number of set-ups for a run of the NMS: larger than all of earlier runs, by the clock where it can be
    /// trusted, by what was reserved before where it cannot (a machine without a battery-backed clock).
    ///
    /// # Errors
    /// If the register cannot be written.
    pub fn reserve_setups(&self, now: UnixSeconds) -> Result<u64, RegisterError> {
        self.write(|transaction| {
            let reserved: Option<i64> = transaction
                .query_row("SELECT value FROM numbers WHERE name = 'setups'", [], |row| row.get(0))
                .optional()?;
            let reserved = reserved.map_or(0, from_sql);
            let first = reserved.max(now.saturating_mul(NANOSECONDS));
            transaction.execute(
                "INSERT INTO numbers (name, value) VALUES ('setups', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1",
                params![to_sql(first.saturating_add(SETUPS_PER_RUN))],
            )?;
            Ok(first)
        })
    }
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
}
