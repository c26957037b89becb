//! Network namespaces, through iproute2: what `ip netns` makes, people can enter with `ip netns exec`.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::{fs, io, thread};

use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns};

use crate::LabError;
use crate::command::configure;

/// A network namespace known to `ip netns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace called `name`, which may or may not exist yet.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that runs `program` inside, with the namespace's own `/etc/resolv.conf`.
    ///
    /// `ip netns exec` becomes the program, so the child's process id is the program's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread inside and returns its result. Sockets it opens stay inside wherever they go.
    ///
    /// # Errors
    /// The namespace is gone, or may not be entered.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, LabError> {
        let enter = || -> io::Result<R> {
            setns(fs::File::open(self.path())?, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        let result = thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        result.map_err(LabError::file("enter", self.path()))
    }

    /// Whether a process is inside. One that has just been started is not yet.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        let target = fs::read_link(format!("/proc/{pid}/ns/net"));
        target.is_ok_and(|target| self.link_target().is_some_and(|own| target.as_os_str() == own.as_str()))
    }

    /// Whether these interfaces carry packets. The kernel notices that a cable has been plugged in at both
    /// ends a moment after it has been, and until then drops what is sent.
    pub(crate) fn carries(&self, devices: &[&str]) -> bool {
        let running = || {
            let interfaces = nix::ifaddrs::getifaddrs().ok()?;
            let running =
                interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_RUNNING));
            Some(running.map(|interface| interface.interface_name).collect::<Vec<_>>())
        };
        let running = self.inside(running).ok().flatten().unwrap_or_default();
        devices.iter().all(|device| running.iter().any(|name| name == device))
    }

    /// Runs a batch of `ip` commands inside.
    ///
    /// # Errors
    /// One of them failed; those before it took effect.
    pub fn ip(&self, batch: &str) -> Result<(), LabError> {
        configure(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch).map(drop)
    }

    /// Sets kernel parameters inside.
    pub(crate) fn sysctl(&self, settings: &[String]) -> Result<(), LabError> {
        configure(self.command("sysctl").args(["-q", "-w"]).args(settings), "").map(drop)
    }

    /// Gives it a resolver configuration of its own, by iproute2's convention.
    pub(crate) fn write_resolv_conf(&self, text: &str) -> Result<(), LabError> {
        let dir = self.etc();
        fs::create_dir_all(&dir).map_err(LabError::file("create", &dir))?;
        let file = dir.join("resolv.conf");
        fs::write(&file, text).map_err(LabError::file("write", &file))
    }

    /// What there is of it: where it is mounted, and the folder of its configuration.
    pub(crate) fn present(&self) -> impl Iterator<Item = PathBuf> {
        [self.path(), self.etc()].into_iter().filter(|path| path.exists())
    }

    /// Removes it and its configuration; one that is not there is removed already.
    pub(crate) fn delete(&self) -> Result<(), LabError> {
        match fs::remove_dir_all(self.etc()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LabError::file("delete", self.etc())(error));
            }
            Ok(()) | Err(_) => {}
        }
        // Fails if other namespaces have configuration there, which is as it should be.
        let _ = fs::remove_dir("/etc/netns");
        if !self.path().exists() {
            return Ok(());
        }
        match configure(Command::new("ip").args(["netns", "delete", &self.name]), "") {
            Err(error) if self.path().exists() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// What `/proc/PID/ns/net` of a process inside links to.
    fn link_target(&self) -> Option<String> {
        fs::metadata(self.path()).ok().map(|metadata| format!("net:[{}]", metadata.ino()))
    }
}

/// Makes namespaces, all in one go.
pub(crate) fn create(namespaces: &[Namespace]) -> Result<(), LabError> {
    let batch: String =
        namespaces.iter().map(|namespace| format!("netns add {}\n", namespace.name)).collect();
    configure(Command::new("ip").args(["-batch", "-"]), &batch).map(drop)
}

/// Processes that run in any of the namespaces. Zombies are in none.
pub(crate) fn processes(namespaces: &[Namespace]) -> Vec<i32> {
    let targets: Vec<String> = namespaces.iter().filter_map(Namespace::link_target).collect();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        let target = fs::read_link(format!("/proc/{pid}/ns/net"));
        target.is_ok_and(|target| targets.iter().any(|known| target.as_os_str() == known.as_str()))
    };
    pids.filter(inside).collect()
}
