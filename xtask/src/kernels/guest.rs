//! The emulated machine: how it is started, and the initial RAM disk that is all it has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::report::END;
use crate::shell;
use crate::target::Target;

/// The emulated machine never runs longer, also where the host is busy: a kernel that hangs is a failure too.
const LONGEST_SECONDS: &str = "1800";
/// Where a Debian system has programs.
const PROGRAMS: [&str; 4] = ["bin", "sbin", "usr/bin", "usr/sbin"];

/// An emulated machine.
#[derive(Debug)]
pub(crate) struct Machine {
    emulator: &'static str,
    arguments: &'static [&'static str],
    /// Its serial line, by the kernel's name.
    console: &'static str,
}

/// A PC with all that the emulator can do.
pub(crate) const PC: Machine =
    Machine { emulator: "qemu-system-x86_64", arguments: &["-cpu", "max"], console: "ttyS0" };

/// The processor of a Raspberry Pi 4.
pub(crate) const CORTEX_A72: Machine = Machine {
    emulator: "qemu-system-aarch64",
    arguments: &["-M", "virt", "-cpu", "cortex-a72"],
    console: "ttyAMA0",
};

impl Machine {
    /// Boots a kernel with a disk, and returns what the machine said until it went off.
    pub(crate) fn boot(&self, image: &Path, disk: &Path) -> Result<String> {
        let output = self.command(image, disk).output();
        let output = output.with_context(|| format!("cannot start {}", self.emulator))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same for what takes minutes: what the machine says can be read in a file meanwhile.
    pub(crate) fn boot_logged(&self, image: &Path, disk: &Path, log: &Path) -> Result<String> {
        let file = fs::File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let status = self.command(image, disk).stdout(file).status();
        status.with_context(|| format!("cannot start {}", self.emulator))?;
        let said = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    fn command(&self, image: &Path, disk: &Path) -> Command {
        // It has time, and others may measure theirs meanwhile.
        let mut command = Command::new("nice");
        command
            .args(["-n", "10", "timeout", LONGEST_SECONDS, self.emulator])
            .args(self.arguments)
            .args(["-accel", "tcg", "-smp", "2", "-m", "2G", "-nographic", "-no-reboot", "-net", "none"])
            .args(["-append", &format!("console={} panic=-1 quiet", self.console)])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(disk)
            .stdin(Stdio::null());
        command
    }
}

/// Where the programs come from that a machine has besides ours, and their libraries.
#[derive(Debug)]
pub(crate) enum System {
    /// This machine: the guest is one of its kind.
    Here,
    /// An unpacked Debian for another.
    Unpacked(PathBuf),
}

/// An initial RAM disk in the making.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    system: System,
}

impl Disk {
    /// An empty disk, made from files in `root`, with busybox and modules.
    pub(crate) fn new(root: PathBuf, system: System, modules: &[PathBuf]) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("cannot clear {}", root.display()))?;
        }
        for directory in
            ["bin", "proc", "sys", "dev", "tmp", "run", "etc", "modules", "tests", "objects", "programs"]
        {
            fs::create_dir_all(root.join(directory))
                .with_context(|| format!("cannot make {directory} in {}", root.display()))?;
        }
        let disk = Self { root, system };
        disk.tool("busybox")?;
        for (number, module) in modules.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            disk.file(module, &format!("modules/{number:02}-{name}"))?;
        }
        Ok(disk)
    }

    /// A program of the system.
    pub(crate) fn tool(&self, name: &str) -> Result<()> {
        let file = match &self.system {
            System::Here => shell::find(name),
            System::Unpacked(tree) => {
                PROGRAMS.iter().map(|folder| tree.join(folder).join(name)).find(|file| file.is_file())
            }
        };
        self.program(&file.with_context(|| format!("there is no {name}"))?, &format!("bin/{name}"))
    }

    /// A program and every library that its loader would find, at their own places.
    pub(crate) fn program(&self, from: &Path, to: &str) -> Result<()> {
        self.file(from, to)?;
        self.libraries(from)
    }

    /// The same without symbols: a test program is a tenth then.
    pub(crate) fn stripped(&self, from: &Path, to: &str, target: Target) -> Result<()> {
        target.strip(from, &self.root.join(to))?;
        self.libraries(from)
    }

    /// A file with this text.
    pub(crate) fn text(&self, text: &str, to: &str) -> Result<()> {
        let place = self.root.join(to);
        fs::write(&place, text).with_context(|| format!("cannot write {}", place.display()))
    }

    /// A file.
    pub(crate) fn file(&self, from: &Path, to: &str) -> Result<()> {
        let place = self.root.join(to);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::copy(from, &place).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// Packs it with what it is to do, and returns the file.
    pub(crate) fn pack(&self, task: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let init = self.root.join("init");
        fs::write(&init, script(task)).with_context(|| format!("cannot write {}", init.display()))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        pack_tree(&self.root)
    }

    /// A file beside the disk's folder.
    pub(crate) fn beside(&self, kind: &str) -> PathBuf {
        beside(&self.root, kind)
    }

    fn libraries(&self, program: &Path) -> Result<()> {
        match &self.system {
            System::Here => {
                let libraries = shell::output(Command::new("ldd").arg(program)).unwrap_or_default();
                for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
                    self.library(Path::new(library), library.trim_start_matches('/'))?;
                }
            }
            System::Unpacked(tree) => {
                let mut found = BTreeSet::new();
                collect(tree, program, &mut found)?;
                for place in found {
                    self.library(&tree.join(&place), &place)?;
                }
            }
        }
        Ok(())
    }

    fn library(&self, from: &Path, place: &str) -> Result<()> {
        if self.root.join(place).exists() { Ok(()) } else { self.file(from, place) }
    }
}

fn beside(root: &Path, kind: &str) -> PathBuf {
    let mut name = root.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(kind);
    root.with_file_name(name)
}

/// Packs a folder into an initial RAM disk beside it.
fn pack_tree(root: &Path) -> Result<PathBuf> {
    let disk = beside(root, "cpio");
    let file = fs::File::create(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    let mut names = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let listed = names.stdout.take().context("find has no output")?;
    let status = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(listed)
        .stdout(file)
        .status()
        .context("cannot start cpio")?;
    names.wait()?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    Ok(disk)
}

/// What a program of another machine needs to be loaded, by its place in that machine's system: `ldd` would
/// have to run it.
fn collect(tree: &Path, program: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let mut readelf = Command::new("readelf");
    let text = shell::output(readelf.args(["--program-headers", "--dynamic", "--wide"]).arg(program))
        .with_context(|| format!("readelf cannot read {}", program.display()))?;
    for place in needed(&text) {
        let places = if place.starts_with('/') {
            vec![place.trim_start_matches('/').to_owned()]
        } else {
            library_folders(tree).into_iter().map(|folder| format!("{folder}/{place}")).collect()
        };
        let place = places.into_iter().find(|candidate| tree.join(candidate).exists());
        let place = place.with_context(|| {
            format!("{} needs a library that {} has not", program.display(), tree.display())
        })?;
        if found.insert(place.clone()) {
            collect(tree, &tree.join(&place), found)?;
        }
    }
    Ok(())
}

/// The folders that the loader looks into, without a cache, on a Debian of any machine.
fn library_folders(tree: &Path) -> Vec<String> {
    let machines = fs::read_dir(tree.join("usr/lib")).into_iter().flatten().flatten();
    let machines = machines.filter_map(|entry| entry.file_name().into_string().ok());
    machines
        .filter(|name| name.ends_with("-linux-gnu"))
        .flat_map(|name| [format!("lib/{name}"), format!("usr/lib/{name}")])
        .collect()
}

/// Loader (a path) and libraries (names), in what `readelf` prints.
fn needed(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (_, name) = line
            .split_once("Requesting program interpreter: ")
            .or_else(|| line.split_once("Shared library: ["))?;
        name.split(']').next()
    })
}

/// What the guest does. Busybox is all it has, but for what was put on its disk.
fn script(task: &str) -> String {
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin 2>/dev/null\n\
         export PATH=/bin RUST_BACKTRACE=0\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run\n\
         mount -t bpf bpf /sys/fs/bpf; ip link set lo up\n\
         for module in /modules/*; do case $module in *.xz) xz -d $module; insmod ${{module%.xz}};; *) insmod $module;; esac; done\n\
         mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200\n\
         {task}\
         echo '{END}'\n\
         poweroff -f\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_libraries_are_read_from_the_headers() {
        let text = "      [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]\n\
                    0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]\n\
                    0x000000000000000c (INIT)               0x1000\n";
        assert_eq!(needed(text).collect::<Vec<_>>(), ["/lib/ld-linux-aarch64.so.1", "libgcc_s.so.1"]);
    }

    #[test]
    fn a_disk_has_what_is_put_on_it() {
        let root = std::env::temp_dir().join(format!("cyphonic-disk-{}/disk", std::process::id()));
        let disk = Disk { root: root.clone(), system: System::Here };
        disk.file(Path::new("/bin/sh"), "some/where/sh").unwrap();
        let packed = disk.pack("echo task\n").unwrap();
        assert_eq!(packed, root.with_file_name("disk.cpio"));
        let archive = fs::read(&packed).unwrap();
        assert!(archive.starts_with(b"070701"), "the form that kernels take");
        let init = fs::read_to_string(root.join("init")).unwrap();
        assert!(init.contains("echo task\necho 'guest: end'\n"), "{init}");
        fs::remove_dir_all(root.parent().unwrap()).unwrap();
    }
}
