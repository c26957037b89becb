//! Where things are in this repository.
//!
//! Paths of build products are relative to the repository, not to `CARGO_TARGET_DIR`: `cyphonic-dataplane`'s build
//! script must find the eBPF object without knowing how cargo was called.

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
