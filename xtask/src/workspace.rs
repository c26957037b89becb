//! Where things are in this repository.
//!
//! Paths of build products are relative to the repository, not to `CARGO_TARGET_DIR`: `cyphonic-dataplane`'s
//! build script must find the eBPF object without knowing how cargo was called.

use std::path::{Path, PathBuf};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The eBPF programs' own workspace.
pub(crate) fn ebpf() -> PathBuf {
    root().join("cyphonic-ebpf")
}

/// Where `cyphonic-dataplane` looks for the eBPF objects.
pub(crate) fn ebpf_objects() -> PathBuf {
    root().join("target/bpf")
}

/// Tools that `setup` builds for this repository alone.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// What the profile does not name is compiled as slowly as a dependency, and has no line numbers.
    #[test]
    fn every_member_has_a_profile_of_its_own() {
        let manifest = std::fs::read_to_string(super::root().join("Cargo.toml")).unwrap();
        let (_, members) = manifest.split_once("members = [").unwrap();
        let (members, _) = members.split_once(']').unwrap();
        let members: BTreeSet<_> = members
            .split(',')
            .map(|name| name.trim().trim_matches('"'))
            .filter(|name| !name.is_empty())
            .collect();
        let named: BTreeSet<_> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("[profile.dev.package.")?.strip_suffix(']'))
            .collect();
        assert!(members.contains("xtask"), "{members:?}");
        assert_eq!(named, members);
    }
}
