//! Debian and Ubuntu packages.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// A package that may have to be installed.
#[derive(Debug)]
pub(super) struct Package {
    /// Its name in Debian 12 and Ubuntu 24.04.
    pub(super) name: &'static str,
    /// A program it brings, or a file by its whole path. Where that is there, however it came, the package
    /// is not needed.
    pub(super) program: &'static str,
    /// What it is needed for.
    pub(super) why: &'static str,
}

/// For tests, labs and the demonstration.
pub(super) const LAB: &[Package] = &[
    package("iproute2", "ip", "network namespaces, links and addresses of the lab"),
    package("nftables", "nft", "the lab's NATs"),
    package("procps", "sysctl", "forwarding in the lab's routers"),
    package("ethtool", "ethtool", "checksum offloads on the lab's emulated links"),
    package("iputils-ping", "ping", "round trips in the demonstration"),
    package("iperf3", "iperf3", "throughput in the demonstration"),
    package("bind9-dnsutils", "dig", "asking the agents' DNS servers"),
    package("tshark", "tshark", "an independent dissector of what the lab's wires carry"),
    package("miniupnpd-nftables", "miniupnpd", "a gateway that maps ports for agents"),
    package("faketime", "faketime", "agents whose clock is years wrong"),
    package("dbus-daemon", "dbus-daemon", "a private bus on which tests play systemd-resolved"),
];

/// For checking what makes the virtual machines of `vagrant/`, and for reaching nodes as those machines are
/// reached.
pub(super) const VAGRANT: &[Package] = &[
    package("vagrant", "vagrant", "validating the Vagrantfile"),
    package(
        "vagrant-libvirt",
        "/usr/share/doc/vagrant-libvirt/copyright",
        "validating its settings for libvirt",
    ),
    package("rubocop", "rubocop", "checking the Ruby of the Vagrantfile"),
    package("shellcheck", "shellcheck", "checking shell scripts"),
    package("openssh-server", "sshd", "reaching nodes of the lab as machines are reached"),
    package("openssh-client", "ssh", "the other end of that"),
];

/// For booting other kernels.
pub(super) const EMULATOR: &[Package] = &[
    package("qemu-system-x86", "qemu-system-x86_64", "booting other kernels"),
    package("busybox-static", "busybox", "the only program of their machines, but for the tests"),
    package("cpio", "cpio", "packing their initial RAM disk"),
    package("kmod", "modprobe", "finding the modules they need"),
];

/// For a whole Debian in such a machine, besides.
pub(super) const EMULATED_SERVER: &[Package] =
    &[package("mmdebstrap", "mmdebstrap", "installing Debian into a folder")];

/// For booting the kernel of 64-bit ARM, besides.
pub(super) const EMULATOR_ARM64: &[Package] = &[
    package("qemu-system-arm", "qemu-system-aarch64", "booting the kernel of a Raspberry Pi"),
    package("mmdebstrap", "mmdebstrap", "unpacking that kernel, and the programs beside it"),
    package("binutils", "readelf", "finding the libraries that programs for it need"),
];

/// For counting a Raspberry Pi's instructions.
pub(super) const INSTRUCTIONS: &[Package] =
    &[package("qemu-user", "qemu-aarch64", "executing a Raspberry Pi's programs one instruction at a time")];

/// For measuring the relay.
pub(super) const RELAY_BENCH: &[Package] = &[
    package("coturn", "turnserver", "the TURN server that the relay is compared with"),
    package("util-linux", "chrt", "priorities and namespaces of what is measured"),
];

/// For measuring tunnels beside others.
pub(super) const PEERS: &[Package] = &[
    package("wireguard-go", "wireguard-go", "WireGuard in userspace, to measure beside"),
    package("wireguard-tools", "wg", "configuring it and boringtun"),
    package("nebula", "nebula", "Nebula, to measure beside"),
    package("openvpn", "openvpn", "OpenVPN, to measure beside"),
    package("openssl", "openssl", "OpenVPN's certificates"),
];

pub(super) const fn package(name: &'static str, program: &'static str, why: &'static str) -> Package {
    Package { name, program, why }
}

/// Installs those of `packages` whose programs are not there.
pub(super) fn install_missing(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> =
        packages.iter().filter(|package| shell::find(package.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing packages:");
    for package in &missing {
        println!("  {:<16} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    apt_install(&names)?;
    match missing.iter().find(|package| shell::find(package.program).is_none()) {
        None => Ok(()),
        Some(package) => {
            bail!("package {} is installed, but there is no program {}", package.name, package.program)
        }
    }
}

/// Installs packages by name.
pub(super) fn apt_install(names: &[&str]) -> Result<()> {
    if shell::find("apt-get").is_none() {
        bail!("this is neither Debian nor Ubuntu (no apt-get): install {} by hand", names.join(", "));
    }
    // Even where the lists know a package: on a fresh system they may know only a version that is years old.
    refresh_lists()?;
    if let Some(name) = names.iter().find(|name| !is_available(name)) {
        bail!(
            "no configured package source has {name}: on Debian 12 enable `bookworm main`, `bookworm-updates main` and \
             `bookworm-security main` in /etc/apt/sources.list"
        );
    }
    let mut install = apt()?;
    install.args(["install", "--yes", "--no-install-recommends"]).args(names);
    if let Some(tools) = emulator_tools(names) {
        println!(
            "setup: {tools} comes along: another version of it can keep apt from installing the emulator"
        );
        install.args(["--allow-downgrades", &tools]);
    }
    shell::run(&mut install)
}

/// The emulator's tools in its own version, where they are here in another release's (from backports): those
/// break it.
fn emulator_tools(names: &[&str]) -> Option<String> {
    let emulator = names.iter().find(|name| name.starts_with("qemu-system-"))?;
    let (here, wanted) = (version("qemu-utils", "Installed:")?, version(emulator, "Candidate:")?);
    (here != wanted).then(|| format!("qemu-utils={wanted}"))
}

/// Asks the package sources what they have.
pub(super) fn refresh_lists() -> Result<()> {
    shell::run(apt()?.arg("update")).context("cannot refresh the package lists")
}

/// Whether a package source offers the package.
fn is_available(name: &str) -> bool {
    version(name, "Candidate:").is_some()
}

/// The version that apt tells of a package: the one that is `Installed:`, or the `Candidate:` of its sources.
fn version(name: &str, which: &str) -> Option<String> {
    let policy = shell::output(Command::new("apt-cache").args(["policy", name]))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix(which))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

fn apt() -> Result<Command> {
    let mut command = shell::as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]);
    Ok(command)
}

/// rustc links by the C compiler. This program was linked by one, so it is missing only where it went since.
pub(super) fn require_c_compiler() -> Result<()> {
    install_missing(&[package("build-essential", "cc", "linking Rust programs, compiling their C parts")])
}
