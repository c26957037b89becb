//! Embeds the eBPF objects that `cargo xtask build` made.
//!
//! They are built by another toolchain, so this script only finds them: in the directory
//! `CYPHONIC_EBPF_OBJECTS`, or where xtask puts them. Where one is missing the crate still builds, with an
//! empty object, so that an editor can check it; loading then fails with an error that says what to run.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The objects this crate loads (see `cyphonic-ebpf`).
const OBJECTS: [&str; 2] = ["agent", "relay"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=CYPHONIC_EBPF_OBJECTS");
    let directory = objects()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    for object in OBJECTS {
        embed(&directory.join(object), &out.join(object))?;
    }
    Ok(())
}

fn embed(object: &Path, to: &Path) -> io::Result<()> {
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(object) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    fs::write(to, bytes)
}

/// Where the manifest is now: cargo may run a script that it compiled for another checkout.
fn objects() -> io::Result<PathBuf> {
    match env::var_os("CYPHONIC_EBPF_OBJECTS") {
        Some(directory) => Ok(directory.into()),
        None => Ok(Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../target/bpf")),
    }
}

fn variable(name: &str) -> io::Result<std::ffi::OsString> {
    env::var_os(name).ok_or_else(|| io::Error::other(format!("cargo did not set {name}")))
}
