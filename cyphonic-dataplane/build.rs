//! Embeds the eBPF programs that `cargo xtask build` made.
//!
//! They are built by another toolchain, so this script only finds them: at `CYPHONIC_EBPF_OBJECT`, or where xtask puts
//! them. Where they are missing the crate still builds, with an empty object, so that an editor can check it; loading
//! then fails with an error that says what to run.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let object = object_path();
    println!("cargo::rerun-if-env-changed=CYPHONIC_EBPF_OBJECT");
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    fs::write(Path::new(&directory("OUT_DIR")?).join("cyphonic-ebpf"), bytes)
}

fn object_path() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/cyphonic-ebpf");
    env::var_os("CYPHONIC_EBPF_OBJECT").map_or_else(default, PathBuf::from)
}

fn directory(name: &str) -> io::Result<std::ffi::OsString> {
    env::var_os(name).ok_or_else(|| io::Error::other(format!("cargo did not set {name}")))
}
