//! Descriptors: each detour takes two, and a process that has none left can open nothing else either.

use crate::descriptors;

/// Left to everything else in the process.
const OTHERS: u64 = 512;

/// How many detours there may be, `wanted` at most. The process's own limit is raised as far as that needs
/// and the host allows.
pub(super) fn room_for(wanted: usize) -> usize {
    let current = descriptors::up_to(OTHERS + 2 * wanted as u64);
    let room = usize::try_from(current.saturating_sub(OTHERS) / 2).map_or(wanted, |room| room.min(wanted));
    if room < wanted {
        tracing::warn!(room, wanted, "few descriptors for devices that come by TCP: raise RLIMIT_NOFILE");
    }
    room
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, getrlimit};

    use super::*;

    #[test]
    fn no_more_than_wanted_and_never_what_others_need() {
        assert_eq!(room_for(1), 1);
        let room = room_for(100_000_000);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(2 * room as u64 + OTHERS <= limit);
    }
}
