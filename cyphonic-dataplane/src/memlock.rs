//! Memory that counts as locked: packet memory of AF_XDP where the process has no CAP_IPC_LOCK, and before
//! Linux 5.11 eBPF maps.

use rustix::process::{Resource, Rlimit, setrlimit};

/// A few pages or MiB by default. If the limit may not be raised, whoever needs more reports what is missing.
pub(crate) fn raise_limit() {
    if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}
