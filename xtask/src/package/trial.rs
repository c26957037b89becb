//! `cargo xtask test-packages`: the packages' whole life on a Debian with systemd, in an emulated machine,
//! and what the documentation says to do with them.
//!
//! Installed, set up, killed, hung, upgraded, removed, purged; after each step `trial.sh` looks whether the
//! overlay's zone is where it should be, and whether firewall, SSH, resolver and `/etc` are what they were.
//! Then [`quick_start`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};

use super::{PACKAGES, archive, build_and_stage, quick_start};
use crate::server::{Checks, Server};
use crate::target::Target;
use crate::{shell, workspace};

/// What to try.
#[derive(Debug, Args)]
pub(crate) struct TrialArgs {
    /// Try packages of unoptimised programs: quicker to build.
    #[arg(long)]
    debug: bool,
    /// Try one part only.
    #[arg(long)]
    only: Option<Part>,
}

/// A machine's worth of trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The packages from installation to purge.
    Packages,
    /// The commands of `docs/quick-start.md` and `docs/operations.md`.
    Docs,
}

/// A machine that waits for its script.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) name: &'static str,
    pub(super) server: Server,
    pub(super) script: String,
}

/// Runs the verb. The machines run at the same time: each is idle for half of its own.
pub(crate) fn run(args: &TrialArgs) -> Result<()> {
    let debs = packages(!args.debug)?;
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let mut trials = Vec::new();
    if wanted(Part::Packages) {
        trials.push(life(&debs)?);
    }
    if wanted(Part::Docs) {
        trials.push(quick_start::trial(&debs)?);
    }
    println!("test-packages: in emulated machines (some minutes)");
    let found: Vec<(&str, Result<Checks>)> = thread::scope(|scope| {
        let started: Vec<_> = trials
            .into_iter()
            .map(|Trial { name, server, script }| (name, scope.spawn(move || server.run(&script))))
            .collect();
        started
            .into_iter()
            .map(|(name, trial)| (name, trial.join().unwrap_or_else(|_| Err(anyhow!("the trial panicked")))))
            .collect()
    });
    let verdicts = found.into_iter().map(|(name, checks)| checks?.verdict(name));
    let failures: Vec<String> =
        verdicts.filter_map(|verdict| Some(format!("{:#}", verdict.err()?))).collect();
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

/// Both packages in two revisions.
fn packages(release: bool) -> Result<Vec<PathBuf>> {
    let target = Target::Amd64;
    let cargo_deb = build_and_stage(target, release, None)?;
    let folder = workspace::root().join("target/package");
    let mut debs = Vec::new();
    for package in &PACKAGES {
        let made = folder.join(format!("{}.deb", package.name));
        archive(&cargo_deb, package, target, &["--fast"], &made)?;
        let tree = folder.join(format!("{}.unpacked", package.name));
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("cannot clear {}", tree.display()))?;
        }
        shell::run(Command::new("dpkg-deb").arg("--raw-extract").args([&made, &tree]))?;
        for revision in [1, 2] {
            let file = folder.join(package.file(revision, target));
            revise(&tree, revision)?;
            // An emulated machine takes a long time to unpack what is compressed.
            let mut pack = Command::new("dpkg-deb");
            pack.args(["--root-owner-group", "-Znone", "--build"]).args([&tree, &file]);
            shell::run(&mut pack)?;
            debs.push(file);
        }
    }
    Ok(debs)
}

/// Gives an unpacked package another revision.
fn revise(tree: &Path, revision: u32) -> Result<()> {
    let file = tree.join("DEBIAN/control");
    let control = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let revised: String = control
        .lines()
        .map(|line| match line.strip_prefix("Version: ") {
            Some(_) => format!("Version: {}-{revision}\n", env!("CARGO_PKG_VERSION")),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(&file, revised).with_context(|| format!("cannot write {}", file.display()))
}

/// From installation to purge.
fn life(debs: &[PathBuf]) -> Result<Trial> {
    let server = Server::furnish("packages")?;
    for deb in debs {
        server.file(deb, &format!("debs/{}", deb.file_name().unwrap_or_default().display()))?;
    }
    Ok(Trial { name: "test-packages", server, script: include_str!("trial.sh").to_owned() })
}
