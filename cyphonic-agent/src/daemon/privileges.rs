//! Root in name only: of its capabilities the daemon keeps those it uses.
//!
//! Capabilities belong to threads, so this is done in `main`, before there are any others; those inherit.

use caps::{CapSet, Capability, CapsHashSet};

/// What the daemon uses, and for what.
pub const KEPT: [Capability; 7] = [
    // The virtual interface, its address and route, tc attachment.
    Capability::CAP_NET_ADMIN,
    // DNS on port 53.
    Capability::CAP_NET_BIND_SERVICE,
    // AF_XDP sockets.
    Capability::CAP_NET_RAW,
    // Their packet memory, which is more than RLIMIT_MEMLOCK allows others.
    Capability::CAP_IPC_LOCK,
    // The priority of the rings' threads.
    Capability::CAP_SYS_NICE,
    // Loading eBPF programs and maps (Linux 5.8 and later).
    Capability::CAP_BPF,
    // Kernel pointers in eBPF programs, which the verifier asks this for.
    Capability::CAP_PERFMON,
];

/// Gives up every capability but [`KEPT`], for this thread and all it will start, and for programs they might
/// run.
///
/// # Errors
///
/// When the kernel refuses; the thread keeps what it had.
pub fn drop_unused() -> Result<(), PrivilegesError> {
    let has = |set| caps::read(None, set).map_err(|error| PrivilegesError(error.to_string()));
    let kept: CapsHashSet = KEPT.into_iter().collect();
    let permitted: CapsHashSet = has(CapSet::Permitted)?.intersection(&kept).copied().collect();
    let failed = |error: caps::errors::CapsError| PrivilegesError(error.to_string());
    // The bounding set needs CAP_SETPCAP, which goes with the others.
    if has(CapSet::Effective)?.contains(&Capability::CAP_SETPCAP) {
        for capability in has(CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(failed)?;
    caps::set(None, CapSet::Effective, &permitted).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &permitted).map_err(failed)
}

/// The kernel refused to change capabilities.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up unused privileges: {0}")]
pub struct PrivilegesError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kept_capabilities_remain() {
        // Capabilities belong to the thread: the other tests keep theirs.
        std::thread::spawn(|| {
            drop_unused().unwrap();
            let kept: CapsHashSet = KEPT.into_iter().collect();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding, CapSet::Inheritable] {
                let left = caps::read(None, set).unwrap();
                assert!(left.is_subset(&kept), "{set:?}: {left:?}");
            }
            assert!(
                caps::read(None, CapSet::Effective).unwrap().contains(&Capability::CAP_NET_ADMIN),
                "run as root"
            );
        })
        .join()
        .unwrap();
    }
}
