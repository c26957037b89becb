//! `cargo xtask package`: Debian packages of the agent and of the cloud.
//!
//! What belongs into each stands in its crate's `Cargo.toml` (`package.metadata.deb`), and cargo-deb makes
//! the archive. This verb brings together what such an entry cannot say: programs for another machine,
//! stripped, and manuals and completions, which the programs write themselves. It is staged in
//! `target/package`, and the packages are left in `target/debian`.

mod page;
mod quick_start;
pub(crate) mod stage;
pub(crate) mod trial;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::target::Target;
use crate::{build, ebpf, setup, shell, workspace};

/// A package: a crate, and what it is called in Debian.
struct Package {
    krate: &'static str,
    name: &'static str,
    programs: &'static [&'static str],
}

impl Package {
    /// The name of its file. The revision tells packages of one version apart.
    fn file(&self, revision: u32, target: Target) -> String {
        format!("{}_{}_{}.deb", self.name, version(revision), target.debian())
    }
}

/// A package's version, as Debian writes it.
fn version(revision: u32) -> String {
    format!("{}-{revision}", env!("CARGO_PKG_VERSION"))
}

/// Of packages that are made to try them.
const TO_TRY: u32 = 1;

/// The number of commits that led to this tree, so that apt takes a package of a later one for newer.
pub(crate) fn revision() -> Result<u32> {
    let git = |arguments: &[&str]| {
        shell::output(Command::new("git").current_dir(workspace::root()).args(arguments))
    };
    let is_whole = git(&["rev-parse", "--is-shallow-repository"]).is_some_and(|shallow| shallow == "false");
    let commits = git(&["rev-list", "--count", "HEAD"]).filter(|_| is_whole);
    commits.and_then(|commits| commits.parse().ok()).context(
        "this tree is no whole clone of its repository, so its commits cannot be counted: number the packages with --revision, \
         higher than those before",
    )
}

const PACKAGES: [Package; 2] = [
    Package { krate: "cyphonic-agent", name: "cyphonic", programs: &["cyphonic", "cyphonicd"] },
    Package { krate: "cyphonic-cloud", name: "cyphonic-cloud", programs: &["cyphonic-cloud"] },
];

/// What to package.
#[derive(Debug, Args)]
pub(crate) struct PackageArgs {
    /// For which machines. This one by default; a Raspberry Pi is `aarch64-unknown-linux-gnu`.
    #[arg(long, value_name = "TRIPLE")]
    target: Vec<Target>,
    /// The last part of the packages' version; by default, the number of commits that led to this tree.
    #[arg(long, value_name = "N")]
    revision: Option<u32>,
    /// Package programs as they are developed, unoptimised: quick to make, to try an installation.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &PackageArgs) -> Result<()> {
    let targets = if args.target.is_empty() {
        vec![Target::host().context("say with --target which machine the packages are for")?]
    } else {
        args.target.clone()
    };
    let revision = args.revision.map_or_else(revision, Ok)?;
    for target in targets {
        for package in make(target, !args.debug, revision)? {
            println!("package: {}", package.display());
        }
    }
    Ok(())
}

/// Builds and packages for a machine. Returns the packages, the agent's first.
pub(crate) fn make(target: Target, release: bool, revision: u32) -> Result<Vec<PathBuf>> {
    let cargo_deb = build_and_stage(target, release, Some(revision))?;
    let number = revision.to_string();
    PACKAGES
        .iter()
        .map(|package| {
            let file = workspace::root().join("target/debian").join(package.file(revision, target));
            archive(&cargo_deb, package, target, &["--deb-revision", &number], &file)?;
            look_over(&file)?;
            Ok(file)
        })
        .collect()
}

/// Builds and packages unoptimised programs for this machine's like, to try them: neither small nor looked
/// over, in no time.
pub(crate) fn make_to_try(target: Target) -> Result<Vec<PathBuf>> {
    let cargo_deb = build_and_stage(target, false, None)?;
    PACKAGES
        .iter()
        .map(|package| {
            let file = workspace::root().join("target/package").join(package.file(TO_TRY, target));
            archive(&cargo_deb, package, target, &["--fast"], &file)?;
            Ok(file)
        })
        .collect()
}

/// Brings together what the packages hold, to try them where they have no revision. Returns the program that
/// makes them.
fn build_and_stage(target: Target, release: bool, revision: Option<u32>) -> Result<PathBuf> {
    // Others are what tests build, too: nothing is built twice for a number.
    let told = revision.map(version);
    let cargo_deb = setup::packager()?;
    ebpf::build()?;
    build::programs(Some(target), release, told.as_deref())?;
    // The programs write their manuals, so they are needed once in a form that runs here.
    if !target.is_host() {
        build::programs(None, false, told.as_deref())?;
    }
    let here = Target::host().context("programs of this machine's kind are not built")?;
    let manuals = here.folder(target.is_host() && release);
    for package in &PACKAGES {
        let version = version(revision.unwrap_or(TO_TRY));
        stage::prepare(package, &version, &target.folder(release), target, &manuals)?;
    }
    Ok(cargo_deb)
}

/// Makes a package of what is staged.
fn archive(cargo_deb: &Path, package: &Package, target: Target, more: &[&str], file: &Path) -> Result<()> {
    let mut command = Command::new(cargo_deb);
    shell::without_cargo_environment(&mut command).current_dir(workspace::root());
    command.args(["deb", "--no-build", "--no-strip", "--quiet", "-p", package.krate]).args(more);
    command.args(["--target", target.triple(), "--output"]);
    shell::run(command.arg(file)).with_context(|| format!("cannot package {}", package.name))?;
    if !file.is_file() {
        bail!("cargo-deb made no {}", file.display());
    }
    Ok(())
}

/// What Debian's own checker finds is an error, warnings too. What it need not look for, the package says
/// ([`stage`]).
fn look_over(file: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    // Root's own rights are no matter here: nothing is run from the package.
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit=0"]);
    shell::run(lintian.arg(file)).with_context(|| format!("{} is not as Debian wants it", file.display()))
}
