//! A Rust toolchain that can compile for BPF.
//!
//! The BPF target has no precompiled `core`, so its source is needed, and building it is an unstable feature
//! of cargo. Two kinds of toolchain serve: rustup's nightly with the component `rust-src` (fixed to a date,
//! so that everybody builds the same), and, where rustup cannot download, Debian's newest Rust with its
//! source package.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages;
use crate::shell;

/// The nightly that is installed where none will do. Raise it together with bpf-linker: they share LLVM's
/// version.
const NIGHTLY: &str = "nightly-2026-05-20";

/// Debian's toolchain, for the case that rustup cannot download.
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// Versions of LLVM that the linker can be built for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A toolchain with the source of `core`.
#[derive(Debug)]
pub(crate) struct Toolchain {
    kind: Kind,
    sysroot: PathBuf,
    /// Major version of the LLVM in its rustc.
    pub(super) llvm: u32,
}

#[derive(Debug)]
enum Kind {
    Rustup(String),
    Debian,
}

impl Toolchain {
    /// Its cargo, ready to build unstable things.
    pub(crate) fn cargo(&self) -> Command {
        match &self.kind {
            Kind::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                shell::without_cargo_environment(&mut command).env_remove("RUSTUP_TOOLCHAIN");
                command
            }
            Kind::Debian => {
                let mut command = Command::new("/usr/bin/cargo");
                shell::without_cargo_environment(&mut command)
                    .env("RUSTC", "/usr/bin/rustc")
                    // Debian has no nightly; its source is the same.
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }

    /// The shared library of its LLVM.
    pub(super) fn llvm_library(&self) -> Result<PathBuf> {
        let places = [
            self.sysroot.join("lib"),
            PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)),
        ];
        let prefix = format!("libLLVM.so.{}", self.llvm);
        let found = places
            .iter()
            .flat_map(|place| files(place))
            .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
        found.with_context(|| {
            format!("{self} has no {prefix}* in {} or {}", places[0].display(), places[1].display())
        })
    }

    fn rustup(name: &str) -> Option<Self> {
        let rustc = || {
            let mut command = Command::new("rustup");
            command.args(["run", name, "rustc"]).env_remove("RUSTUP_TOOLCHAIN");
            command
        };
        Self::inspect(Kind::Rustup(name.to_owned()), rustc)
    }

    fn debian() -> Option<Self> {
        Path::new("/usr/bin/cargo").exists().then_some(())?;
        Self::inspect(Kind::Debian, || Command::new("/usr/bin/rustc"))
    }

    /// Takes a toolchain only if it can do the work.
    fn inspect(kind: Kind, rustc: impl Fn() -> Command) -> Option<Self> {
        let sysroot = PathBuf::from(shell::output(rustc().args(["--print", "sysroot"]))?);
        let version = shell::output(rustc().arg("-vV"))?;
        let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
        let llvm = llvm.split('.').next()?.parse().ok()?;
        let source = sysroot.join("lib/rustlib/src/rust/library/core");
        (source.is_dir() && LLVM.contains(&llvm)).then_some(Self { kind, sysroot, llvm })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Rustup(name) => write!(f, "rustup's {name}")?,
            Kind::Debian => f.write_str("Debian's Rust")?,
        }
        write!(f, " (LLVM {})", self.llvm)
    }
}

/// The best toolchain that is there, or that can be had.
pub(super) fn find_or_install() -> Result<Toolchain> {
    if let Some(toolchain) = find() {
        return Ok(toolchain);
    }
    println!("setup: compiling for BPF needs the source of Rust's `core` and a cargo that builds it:");
    println!("  installing {NIGHTLY} with rust-src by rustup");
    let arguments = ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"];
    if let Err(error) = shell::run(Command::new("rustup").args(arguments)) {
        println!("  {error:#}; installing Debian's Rust instead");
        packages::apt_install(DEBIAN_PACKAGES)?;
    }
    match find() {
        Some(toolchain) => Ok(toolchain),
        None => bail!(
            "found no Rust toolchain with the source of `core` and LLVM {} to {}: run `rustup toolchain install {NIGHTLY} \
             --component rust-src`, or on Debian 12 enable `bookworm-security main` and install {} from there",
            LLVM.start(),
            LLVM.end(),
            DEBIAN_PACKAGES.join(", ")
        ),
    }
}

fn find() -> Option<Toolchain> {
    Toolchain::rustup(NIGHTLY).or_else(|| Toolchain::rustup("nightly")).or_else(Toolchain::debian)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
