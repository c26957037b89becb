//! What outlives the process: files in the BPF file system.
//!
//! `cyphonic/relay-<network namespace>-<port>-<address>/` (root's alone; without an address if it is every
//! one) holds the maps of legs, under names that have their layout in them, and a link for each interface.
//! The kernel keeps both, and so the program, until the files go.

#![expect(unsafe_code, reason = "aya opens links, but does not tell where they are")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cyphonic_common::relay::LAYOUT;
use rustix::mount::{MountFlags, mount};

use super::Hook;

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// `BPF_OBJ_GET` of `linux/bpf.h`.
const OBJECT_GET: libc::c_int = 7;
/// `BPF_LINK_DETACH` of it.
const LINK_DETACH: libc::c_int = 34;

/// A relay's folder.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    folder: PathBuf,
    /// The folder, locked as long as its relay lives: others then leave it alone.
    _lock: Option<Arc<File>>,
}

impl Pins {
    /// Makes the folder, and mounts the file system if it is not.
    pub(super) fn open(file_system: &Path, listen: SocketAddr) -> io::Result<Self> {
        if !is_bpf(file_system) {
            mount("bpf", file_system, "bpf", MountFlags::empty(), None)?;
        }
        let folder = folder(file_system, listen)?;
        let lock = Some(Arc::new(make_and_lock(&folder)?));
        let this = Self { folder, _lock: lock };
        this.remove_dead();
        Ok(this)
    }

    /// Removes what killed relays left in network namespaces that have gone, as those of containers do:
    /// nobody else would.
    fn remove_dead(&self) {
        for folder in self.others() {
            // Held until it is removed: a relay that comes meanwhile makes another one.
            let Some(lock) = lock_dead(&folder) else { continue };
            tracing::info!(folder = %folder.display(), "removing what a relay left whose network is gone");
            let dead = Self { folder, _lock: Some(Arc::new(lock)) };
            for family in ["ipv4", "ipv6"] {
                let _ = fs::remove_dir(dead.changed(family));
            }
            dead.remove();
        }
    }

    /// Other relays' folders.
    fn others(&self) -> Vec<PathBuf> {
        let Some(entries) = self.folder.parent().and_then(|all| fs::read_dir(all).ok()) else {
            return Vec::new();
        };
        entries.flatten().map(|entry| entry.path()).filter(|folder| *folder != self.folder).collect()
    }

    /// Takes an interface's hook from this relay's own other hook, which it had before its mode was changed, and from
    /// relays that were killed here and listened elsewhere: mostly this one, before its port was changed. What
    /// else those left goes with it; what they changed of the host is this one's now, to be changed back. True
    /// if there was one.
    pub(super) fn free(&self, interface: u32, hook: Hook) -> bool {
        let here = namespace(&self.folder);
        let mut freed = false;
        for other in [Hook::Native, Hook::Generic].into_iter().filter(|other| *other != hook) {
            let link = self.link(interface, other);
            if link.exists() {
                tracing::info!(link = %link.display(), "the relay hung in another way before");
                detached(&link);
                freed |= fs::remove_file(&link).is_ok();
            }
        }
        for folder in self.others().into_iter().filter(|folder| namespace(folder) == here) {
            let dead = Self { folder, _lock: None };
            let links = [Hook::Native, Hook::Generic].map(|hook| dead.link(interface, hook));
            if !links.iter().any(|link| link.exists()) {
                continue;
            }
            // Held until it is removed, as above.
            let Some(_lock) = lock_alone(&dead.folder) else { continue };
            let folder = dead.folder.display();
            tracing::warn!(%folder, "removing what a killed relay left, which is on an interface that this one needs");
            for family in ["ipv4", "ipv6"] {
                let _ = fs::rename(dead.changed(family), self.changed(family));
            }
            links.iter().filter(|link| link.exists()).for_each(|link| detached(link));
            dead.remove();
            freed = true;
        }
        freed
    }

    /// The folder that an earlier process left.
    pub(super) fn left(file_system: &Path, listen: SocketAddr) -> Option<Self> {
        let folder = is_bpf(file_system).then(|| folder(file_system, listen))?.ok()?;
        folder.is_dir().then_some(Self { folder, _lock: None })
    }

    /// Makes the folder anew if somebody has removed it.
    pub(super) fn make(&self) -> io::Result<()> {
        make(&self.folder)
    }

    /// Where one of the legs' maps is, if it has this version's layout.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}-{LAYOUT:016x}", name.to_ascii_lowercase()))
    }

    /// Where an interface's link is.
    pub(super) fn link(&self, interface: u32, hook: Hook) -> PathBuf {
        self.folder.join(format!("link-{interface}-{hook}"))
    }

    /// Remembers that a setting was 0 before: a folder, since the file system takes no plain files.
    pub(super) fn changed(&self, setting: &str) -> PathBuf {
        self.folder.join(format!("changed-{setting}"))
    }

    /// Removes what is not in `keep`: other interfaces' links, maps of other layouts.
    pub(super) fn remove_others(&self, keep: &[PathBuf]) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !keep.contains(path)) {
            let is_folder = path.is_dir();
            if !is_folder && let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "what an earlier relay left stays");
            }
        }
    }

    /// Removes everything.
    pub(super) fn remove(&self) {
        self.remove_others(&[]);
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::debug!(%error, folder = %self.folder.display(), "the relay's folder stays");
        }
    }
}

fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Locked together with others of the same relay's, but not with one who removes it.
fn make_and_lock(folder: &Path) -> io::Result<File> {
    loop {
        make(folder)?;
        let lock = match File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        lock.lock_shared()?;
        let number = lock.metadata()?.ino();
        // Otherwise it was removed since it was made.
        if fs::metadata(folder).is_ok_and(|there| there.ino() == number) {
            return Ok(lock);
        }
    }
}

/// Locks a relay's folder for who removes it, if it is [dead](is_dead) and its relay's process is too.
fn lock_dead(folder: &Path) -> Option<File> {
    is_dead(folder).then(|| lock_alone(folder)).flatten()
}

/// Locks a folder if its relay's process is dead.
fn lock_alone(folder: &Path) -> Option<File> {
    let lock = File::open(folder).ok()?;
    lock.try_lock().is_ok().then_some(lock)
}

/// Whether a relay's folder is of a network namespace that has gone: all its links have lost their
/// interfaces, and no process that can be seen is there. Not all can: who lacks `CAP_SYS_PTRACE` sees none
/// that may do more than itself. If there are some, a relay that is started again there has lost its legs,
/// which carried nothing without an interface, and nodes restore them. A folder without links may be one of a
/// relay that is starting.
fn is_dead(folder: &Path) -> bool {
    let Some(namespace) = namespace(folder) else { return false };
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let is_link = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"link-"));
    let links: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_link).collect();
    !links.is_empty() && links.iter().all(|link| has_lost_its_interface(link)) && !has_processes(namespace)
}

/// Of which network namespace a relay's folder is.
fn namespace(folder: &Path) -> Option<u64> {
    let name = folder.file_name()?.to_str()?;
    let (namespace, _) = name.strip_prefix("relay-")?.split_once('-')?;
    namespace.parse().ok()
}

/// The kernel says 0 for the interface then.
fn has_lost_its_interface(link: &Path) -> bool {
    let told =
        open_pin(link).and_then(|link| fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())));
    told.is_ok_and(|told| {
        told.lines().any(|line| line.strip_prefix("ifindex:").is_some_and(|index| index.trim() == "0"))
    })
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // Of `union bpf_attr`: the path's address; a descriptor and flags that are not used.
    let mut attributes = [path.as_ptr() as u64, 0];
    // SAFETY: the kernel reads so many bytes at the pointer, and a string that ends in a zero at the address
    // in them. Both live.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, OBJECT_GET, attributes.as_mut_ptr(), size_of_val(&attributes))
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made it for this call.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel take a link's program off.
fn detached(link: &Path) {
    if let Err(error) = detach(link) {
        tracing::debug!(%error, "the kernel takes its program off when it gets to it");
    }
}

/// Takes a link's program off its interface at once. Once nobody holds the link, the kernel does that when it
/// gets to it.
fn detach(link: &Path) -> io::Result<()> {
    let link = open_pin(link)?;
    // Of `union bpf_attr`: the link's descriptor.
    let mut attributes = [link.as_raw_fd()];
    // SAFETY: the kernel reads so many bytes at the pointer, which are there.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, LINK_DETACH, attributes.as_mut_ptr(), size_of_val(&attributes))
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a process that can be seen is in this network namespace.
fn has_processes(namespace: u64) -> bool {
    // Where nothing can be seen, there may be some.
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    processes
        .flatten()
        .filter_map(|process| fs::metadata(process.path().join("ns/net")).ok())
        .any(|there| there.ino() == namespace)
}

/// Numbers of interfaces, addresses and ports are those of one network namespace. Of one port there may be a
/// relay at each address.
fn folder(file_system: &Path, listen: SocketAddr) -> io::Result<PathBuf> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let every = format!("relay-{namespace}-{}", listen.port());
    // The file system takes no names with dots.
    let one = match listen.ip().to_canonical() {
        ip if ip.is_unspecified() => return Ok(file_system.join("cyphonic").join(every)),
        IpAddr::V4(ip) => format!("{every}-{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{every}-{:032x}", ip.to_bits()),
    };
    let [former, folder] = [every, one].map(|name| file_system.join("cyphonic").join(name));
    // Earlier versions named it without the address.
    if !folder.exists()
        && let Some(_lock) = lock_alone(&former)
    {
        fs::rename(former, &folder)?;
    }
    Ok(folder)
}

fn is_bpf(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|t| t == BPF_FS_MAGIC))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use cyphonic_common::relay::RelayConfig;
    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountPropagationFlags, mount_change};

    use super::super::object::Object;
    use super::super::{Mode, attach, interfaces};
    use super::*;
    use crate::netdevice::Links;

    /// Needs root and the eBPF objects.
    #[test]
    fn a_relay_that_lives_keeps_its_folder_also_without_interfaces_and_unseen() {
        let file_system = std::env::temp_dir().join(format!("cyphonic-held-{}", std::process::id()));
        let ip = |line: &str| {
            assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
        };
        let run = || {
            // Processes are seen by their first thread, so nobody is to be seen here by others.
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            fs::create_dir(&file_system).unwrap();
            ip("link add card0 type bridge");
            ip("link set card0 up");
            let open = |port| Pins::open(&file_system, ([0; 4], port).into()).unwrap();
            let lives = open(1);
            let mut object = Object::load(16, Some(&lives)).unwrap();
            object.configure(RelayConfig::new(1, true)).unwrap();
            let card = interfaces::open("card0", &Links::list().unwrap()).unwrap();
            let attached = attach::attach(object.program().unwrap(), &card, Mode::Generic, Some(&lives));
            assert!(attached.unwrap().0.pinned);
            ip("link del card0");
            let folder = lives.folder.clone();
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(is_dead(&folder), "as far as that can be seen");

            let second = open(2);
            assert!(folder.is_dir(), "its relay lives");
            drop(lives);
            // A command that starts at this moment may hold the lock.
            let deadline = Instant::now() + Duration::from_secs(10);
            let third = loop {
                let third = open(3);
                if !folder.exists() {
                    break third;
                }
                assert!(Instant::now() < deadline, "it stays");
                std::thread::sleep(Duration::from_millis(1));
            };
            assert!(second.folder.is_dir() && third.folder.is_dir());

            let same = open(3);
            fs::remove_dir(&third.folder).unwrap();
            same.make().unwrap();
            assert!(third.folder.is_dir());
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
        fs::remove_dir(&file_system).unwrap();
    }
}
