//! How many descriptors the process may have. Most hosts start programs with 1,024, for those that use
//! select(2), and allow many more to who asks.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the process's limit to `wanted`, as far as the host allows. Returns how many of those there may be.
pub fn up_to(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return wanted;
    }
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(error) => {
            tracing::debug!(%error, "RLIMIT_NOFILE stays as it is");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_wanted_or_as_the_host_allows() {
        assert_eq!(up_to(1), 1);
        let limit = getrlimit(Resource::Nofile);
        let room = up_to(limit.current.unwrap_or(u64::MAX).saturating_add(1));
        // Other tests of this process may have raised it further.
        assert!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) >= room);
        assert!(limit.maximum.is_none_or(|maximum| room <= maximum));
    }
}
