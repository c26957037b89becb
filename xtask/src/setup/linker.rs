//! bpf-linker, which turns LLVM bitcode into an eBPF object with BTF.
//!
//! It must be built for the very LLVM that made the bitcode. The toolchain's rustc brings that LLVM as a
//! shared library, so bpf-linker is linked to that file and no LLVM has to be installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain::Toolchain;
use super::{packages, tool};
use crate::{shell, workspace};

const VERSION: &str = "0.13.0";

/// A bpf-linker that fits a toolchain.
#[derive(Debug)]
pub(crate) struct Linker {
    path: PathBuf,
}

impl Linker {
    /// The program.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Built for the toolchain's LLVM, and able to start: the library may have gone with an update.
    fn fits(&self, stamp: &str) -> bool {
        fs::read_to_string(self.stamp_file()).is_ok_and(|found| found == stamp)
            && shell::succeeds(Command::new(&self.path).arg("--version"))
    }

    fn stamp_file(&self) -> PathBuf {
        self.path.with_extension("stamp")
    }
}

/// The linker of this repository, built if needed.
pub(super) fn find_or_install(toolchain: &Toolchain) -> Result<Linker> {
    let library = toolchain.llvm_library()?;
    let stamp = format!("bpf-linker {VERSION} for {}\n", library.display());
    let linker = Linker { path: workspace::tools().join("bin/bpf-linker") };
    if !linker.fits(&stamp) {
        println!(
            "setup: building bpf-linker {VERSION}, which links eBPF objects, for {toolchain} (about 2 minutes)"
        );
        install(toolchain, &library)?;
        fs::write(linker.stamp_file(), &stamp).context("cannot note which LLVM bpf-linker was built for")?;
    }
    if !linker.fits(&stamp) {
        bail!("{} was built but does not start: try `rm -r target/tools` and again", linker.path.display());
    }
    Ok(linker)
}

fn install(toolchain: &Toolchain, library: &Path) -> Result<()> {
    packages::require_c_compiler()?;
    let prefix = llvm_prefix(toolchain, library)?;
    let feature = format!("llvm-{}", toolchain.llvm);
    let mut cargo = tool::install("bpf-linker", VERSION, "build");
    cargo.env("LLVM_PREFIX", prefix).args(["--no-default-features", "--features", &feature]);
    shell::run(&mut cargo)
}

/// A directory like that of an LLVM installation, as far as bpf-linker's build looks: `lib/libLLVM.so`. The
/// library is also there under its own name, by which the program looks for it when it starts.
fn llvm_prefix(toolchain: &Toolchain, library: &Path) -> Result<PathBuf> {
    let prefix = workspace::tools().join(format!("llvm-{}", toolchain.llvm));
    let lib = prefix.join("lib");
    let own_name = library.file_name().context("the LLVM library has no name")?;
    if prefix.exists() {
        fs::remove_dir_all(&prefix).with_context(|| format!("cannot replace {}", prefix.display()))?;
    }
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    for name in [own_name, "libLLVM.so".as_ref()] {
        symlink(library, lib.join(name)).with_context(|| format!("cannot link to {}", library.display()))?;
    }
    Ok(prefix)
}
