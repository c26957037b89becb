//! `cargo xtask test-packages`: the packages' whole life on a Debian with systemd, in an emulated machine.
//!
//! Installed, set up, killed, upgraded, removed, purged; after each step `trial.sh` looks whether the overlay's zone is where it should be,
//! and whether firewall, SSH, resolver and `/etc` are what they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{PACKAGES, archive, build_and_stage};
use crate::kernels::guest::{PC, pack_tree};
use crate::kernels::report::END;
use crate::target::Target;
use crate::{setup, shell, workspace};

const SUITE: &str = "bookworm";
/// A server as many have one.
const SYSTEM: &str = "systemd,systemd-sysv,systemd-resolved,dbus,nftables,openssh-server,iproute2,procps,kmod,bash-completion,\
                      init-system-helpers,linux-image-cloud-amd64";
/// Runs the script once the machine is up, and ends the machine with it.
const UNIT: &str = "[Unit]\nAfter=systemd-resolved.service ssh.service nftables.service\n\n[Service]\nType=oneshot\n\
                    ExecStart=/bin/sh /trial.sh\nExecStopPost=/bin/sh -c \"echo 'guest: end'; systemctl poweroff -ff\"\n\
                    StandardOutput=tty\nTTYPath=/dev/console\nTimeoutStartSec=infinity\n";
const FIREWALL: &str = "#!/usr/sbin/nft -f\nflush ruleset\ntable inet filter {\n\tchain input { type filter hook input priority 0; \
                        policy accept; tcp dport 22 accept; }\n}\n";

/// What to try.
#[derive(Debug, Args)]
pub(crate) struct TrialArgs {
    /// Try packages of unoptimised programs: quicker to build.
    #[arg(long)]
    debug: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &TrialArgs) -> Result<()> {
    setup::emulator_arm64()?;
    let target = Target::Amd64;
    let cargo_deb = build_and_stage(target, !args.debug)?;
    let mut debs = Vec::new();
    for package in &PACKAGES {
        for revision in [1, 2] {
            let file = workspace::root().join("target/package").join(package.file(revision, target));
            // What stays on this machine need not be small.
            let more = ["--fast", "--deb-revision", &revision.to_string()];
            archive(&cargo_deb, package, target, &more, &file)?;
            debs.push(file);
        }
    }
    let base = unpack()?;
    let (image, disk) = furnish(&base, &debs)?;
    println!("test-packages: installing, upgrading and purging in an emulated machine (some minutes)");
    let text = PC.boot(&image, &disk)?;
    let log = workspace::root().join("target/kernels/packages.log");
    fs::write(&log, &text).with_context(|| format!("cannot write {}", log.display()))?;
    verdict(&text).with_context(|| format!("what the machine said is in {}", log.display()))
}

/// Debian, installed; kept for the next time.
fn unpack() -> Result<PathBuf> {
    let base = workspace::root().join("target/kernels").join(format!("{SUITE}-server"));
    if !base.join("boot").is_dir() {
        println!("test-packages: installing Debian's {SUITE} into a folder (some minutes)");
        let mut mmdebstrap = shell::as_root("mmdebstrap")?;
        mmdebstrap.args(["--quiet", "--variant=minbase"]).arg(format!("--include={SYSTEM}"));
        shell::run(mmdebstrap.arg(SUITE).arg(&base)).context("cannot install Debian into a folder")?;
    }
    Ok(base)
}

/// A copy with the packages and the script, packed. Returns kernel and disk.
fn furnish(base: &Path, debs: &[PathBuf]) -> Result<(PathBuf, PathBuf)> {
    let root = base.with_file_name("packages-root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot clear {}", root.display()))?;
    }
    shell::run(Command::new("cp").arg("--archive").arg(base).arg(&root))?;
    let image = fs::read_dir(root.join("boot"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .context("that Debian has no kernel")?;
    let kernel = root.with_file_name("packages-kernel");
    fs::copy(&image, &kernel).context("cannot copy the kernel")?;
    for unneeded in ["boot", "var/cache/apt", "var/lib/apt/lists", "usr/share/locale"] {
        let unneeded = root.join(unneeded);
        if unneeded.exists() {
            fs::remove_dir_all(&unneeded).with_context(|| format!("cannot remove {}", unneeded.display()))?;
        }
    }
    fs::create_dir_all(root.join("debs"))?;
    for deb in debs {
        fs::copy(deb, root.join("debs").join(deb.file_name().unwrap_or_default()))
            .with_context(|| format!("cannot copy {}", deb.display()))?;
    }
    let system = root.join("etc/systemd/system");
    let wants = system.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    fs::write(root.join("trial.sh"), include_str!("trial.sh"))?;
    fs::write(system.join("trial.service"), UNIT)?;
    fs::write(root.join("etc/nftables.conf"), FIREWALL)?;
    std::os::unix::fs::symlink("/etc/systemd/system/trial.service", wants.join("trial.service"))?;
    let nftables = wants.join("nftables.service");
    if !nftables.exists() && nftables.symlink_metadata().is_err() {
        std::os::unix::fs::symlink("/lib/systemd/system/nftables.service", nftables)?;
    }
    let init = root.join("init");
    if init.symlink_metadata().is_err() {
        std::os::unix::fs::symlink("/sbin/init", init)?;
    }
    Ok((kernel, pack_tree(&root)?))
}

/// Tells what held and what did not.
fn verdict(text: &str) -> Result<()> {
    let lines = || text.lines().map(str::trim_end);
    let held = lines().filter_map(|line| line.split_once("@ok ")).count();
    let failed: Vec<&str> =
        lines().filter_map(|line| line.split_once("@fail ")).map(|(_, what)| what).collect();
    for (_, what) in lines().filter_map(|line| line.split_once("@ok ")) {
        println!("  holds  {what}");
    }
    for what in &failed {
        println!("  FAILS  {what}");
    }
    if !lines().any(|line| line.ends_with(END)) {
        bail!("the machine stopped before the trial was over, after {held} checks");
    }
    match (held, failed.len()) {
        (0, 0) => bail!("nothing was checked"),
        (_, 0) => {
            println!("test-packages: {held} checks hold");
            Ok(())
        }
        (_, failures) => bail!("{failures} of {} checks fail", held + failures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_passes_only_whole_and_without_failures() {
        assert!(verdict("boot\r\n@ok install\r\n@ok purge\r\nguest: end\r\n").is_ok());
        let failed = verdict("@ok install\n@fail purge: it said no\nguest: end\n").unwrap_err().to_string();
        assert_eq!(failed, "1 of 2 checks fail");
        assert!(verdict("@ok install\n").unwrap_err().to_string().contains("stopped"));
        assert!(verdict("guest: end\n").unwrap_err().to_string().contains("nothing"));
    }
}
