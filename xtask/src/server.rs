//! An emulated PC with a whole Debian: systemd as its first process, systemd-resolved, an SSH server and a
//! firewall, as many a server has them.
//!
//! For what only a machine of its own can show: packages, units, provisioning. A script runs there as root
//! once the machine is up, says by `check` what holds (`server/checks.sh`), and the machine ends with it.
//! Debian is installed into a folder and packed once; a machine's own files are a second archive behind that
//! one, which the kernel unpacks over it.

mod checks;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

pub(crate) use self::checks::Checks;
use crate::kernels::guest::PC;
use crate::{setup, shell, workspace};

const SUITE: &str = "bookworm";
/// What it has installed. What is not listed here is not there: the machine reaches no package archive.
const SYSTEM: &str = "systemd,systemd-sysv,systemd-resolved,systemd-container,dbus,nftables,openssh-server,openssh-client,iproute2,\
                      ethtool,iputils-ping,iperf3,bind9-dnsutils,procps,kmod,bash-completion,init-system-helpers,\
                      linux-image-cloud-amd64";
/// What nobody looks at there, which is most of its size besides the kernel's modules.
const UNNEEDED: [&str; 6] =
    ["boot", "var/cache/apt", "var/lib/apt/lists", "usr/share/locale", "usr/share/doc", "usr/share/i18n"];
/// Runs the script once the machine is up, and ends the machine with it, also where it died: it alone may say
/// that it came to its end.
const UNIT: &str = "[Unit]\nAfter=multi-user.target\n\n[Service]\nType=oneshot\nExecStart=/bin/sh /script.sh\n\
                    ExecStopPost=/bin/systemctl poweroff -ff\n\
                    StandardOutput=tty\nTTYPath=/dev/console\nTimeoutStartSec=infinity\n";
/// Not at the same time as what `multi-user.target` wants: nothing there waits for a target that waits for
/// it.
const TARGET: &str = "[Unit]\nRequires=multi-user.target\nAfter=multi-user.target\nWants=script.service\n";
const FIREWALL: &str = "#!/usr/sbin/nft -f\nflush ruleset\ntable inet filter {\n\tchain input { type filter hook input priority 0; \
                        policy accept; tcp dport 22 accept; }\n}\n";

/// A machine in the making.
#[derive(Debug)]
pub(crate) struct Server {
    base: Base,
    /// The files that this machine has besides.
    root: PathBuf,
}

impl Server {
    /// A machine of this name, which keeps its files and what it says in `target/kernels`. The first one
    /// installs Debian, which takes two minutes.
    pub(crate) fn furnish(name: &str) -> Result<Self> {
        setup::emulated_server()?;
        let base = Base::installed()?;
        let root = folder().join(format!("server-{name}"));
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("cannot clear {}", root.display()))?;
        }
        let server = Self { base, root };
        server.text(UNIT, "etc/systemd/system/script.service")?;
        server.text(TARGET, "etc/systemd/system/scripted.target")?;
        server.link("scripted.target", "etc/systemd/system/default.target")?;
        server.text("server\n", "etc/hostname")?;
        // Without one it would be a first boot, which enables every unit there is.
        server.text("5e4be4c0ffee4c0ffee4c0ffee4c0ffe\n", "etc/machine-id")?;
        server.text(FIREWALL, "etc/nftables.conf")?;
        server.link(
            "/lib/systemd/system/nftables.service",
            "etc/systemd/system/multi-user.target.wants/nftables.service",
        )?;
        Ok(server)
    }

    /// Gives it a file.
    pub(crate) fn file(&self, from: &Path, to: &str) -> Result<()> {
        let place = self.place(to)?;
        fs::copy(from, place).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// Gives it a file with this text.
    pub(crate) fn text(&self, text: &str, to: &str) -> Result<()> {
        let place = self.place(to)?;
        fs::write(&place, text).with_context(|| format!("cannot write {}", place.display()))
    }

    /// Boots it, runs a script there by `sh`, and returns what the script found. A script that does not come
    /// to its end is an error.
    pub(crate) fn run(self, script: &str) -> Result<Checks> {
        self.text(&checks::script(script), "script.sh")?;
        let disk = self.disk()?;
        let log = self.beside("log");
        let text = PC.boot_logged(&self.base.kernel, &disk, &log)?;
        // Half a gigabyte that is made anew each time.
        fs::remove_file(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
        Checks::read(&text).with_context(|| format!("what the machine said is in {}", log.display()))
    }

    fn link(&self, to: &str, from: &str) -> Result<()> {
        let place = self.place(from)?;
        symlink(to, &place).with_context(|| format!("cannot make {}", place.display()))
    }

    fn place(&self, file: &str) -> Result<PathBuf> {
        let place = self.root.join(file);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        Ok(place)
    }

    /// Debian, and this machine's files after it.
    fn disk(&self) -> Result<PathBuf> {
        let disk = self.beside("cpio");
        fs::copy(&self.base.archive, &disk).with_context(|| format!("cannot write {}", disk.display()))?;
        pack(&self.root, &disk)?;
        Ok(disk)
    }

    fn beside(&self, kind: &str) -> PathBuf {
        self.root.with_extension(kind)
    }
}

/// Debian, installed and packed.
#[derive(Debug)]
struct Base {
    kernel: PathBuf,
    archive: PathBuf,
}

impl Base {
    /// Installed now, or by an earlier run.
    fn installed() -> Result<Self> {
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Tests of one program run at the same time.
        let lock = fs::File::create(folder.join("server.lock")).context("cannot make a lock")?;
        lock.lock().context("cannot take the lock of emulated servers")?;
        let base = Self { kernel: folder.join("server.kernel"), archive: folder.join("server.cpio") };
        let stamp = folder.join("server.stamp");
        if !fs::read_to_string(&stamp).is_ok_and(|text| text == SYSTEM) {
            base.install(&folder.join("server"))?;
            fs::write(&stamp, SYSTEM).with_context(|| format!("cannot write {}", stamp.display()))?;
        }
        Ok(base)
    }

    fn install(&self, tree: &Path) -> Result<()> {
        println!("server: installing Debian's {SUITE} into a folder (about 2 minutes)");
        shell::run(shell::as_root("rm")?.args(["-rf", "--one-file-system"]).arg(tree))?;
        let mut mmdebstrap = shell::as_root("mmdebstrap")?;
        // Nothing of it has to outlive a power failure.
        mmdebstrap
            .args(["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io"])
            .arg(format!("--include={SYSTEM}"));
        shell::run(mmdebstrap.arg(SUITE).arg(tree)).context("cannot install Debian into a folder")?;
        let boot = fs::read_dir(tree.join("boot")).context("that Debian has no /boot")?;
        let image = boot
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
        fs::copy(image.context("that Debian has no kernel")?, &self.kernel)
            .context("cannot copy the kernel")?;
        shell::run(shell::as_root("rm")?.arg("-rf").args(UNNEEDED.map(|name| tree.join(name))))?;
        // apt does not work without, not even for a file.
        let folders = ["var/cache/apt/archives/partial", "var/lib/apt/lists/partial"];
        shell::run(shell::as_root("mkdir")?.arg("-p").args(folders.map(|name| tree.join(name))))?;
        // As after an installation with systemd-resolved; mmdebstrap has copied this machine's.
        for (to, from) in
            [("/sbin/init", "init"), ("/run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf")]
        {
            shell::run(shell::as_root("ln")?.args(["-sfn", to]).arg(tree.join(from)))?;
        }
        fs::write(&self.archive, "").with_context(|| format!("cannot write {}", self.archive.display()))?;
        pack(tree, &self.archive)?;
        // Packed, it is all that is needed.
        shell::run(shell::as_root("rm")?.args(["-rf", "--one-file-system"]).arg(tree))
    }
}

/// Packs a folder behind what is in an archive.
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let archive =
        fs::OpenOptions::new().append(true).open(archive).context("there is no archive to add to")?;
    // Root's alone are, for example, the machine's SSH keys.
    let mut command = shell::as_root("sh")?;
    command.args(["-c", "cd \"$1\" && find . | cpio --quiet --create --format=newc --owner=+0:+0", "pack"]);
    let status =
        command.arg(tree).stdin(Stdio::null()).stdout(archive).status().context("cannot start sh")?;
    if !status.success() {
        bail!("{} cannot be packed: {status}", tree.display());
    }
    Ok(())
}

fn folder() -> PathBuf {
    workspace::root().join("target/kernels")
}
