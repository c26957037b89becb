//! What an operator chooses about the relay in XDP, and what became of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::netdevice::XdpFeatures;

/// Where the relay forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The best of the others that this host has.
    #[default]
    Auto,
    /// In XDP, in the network card's driver: the fastest.
    Native,
    /// In XDP, behind the driver, with any driver.
    Generic,
    /// In this process.
    Userspace,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Native, Self::Generic, Self::Userspace];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Userspace => "userspace",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = Self::ALL.into_iter().find(|mode| mode.to_string() == text);
        mode.ok_or_else(|| format!("{text:?} is not a relay mode: auto, native, generic or userspace"))
    }
}

/// How a program hangs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// In the driver.
    Native,
    /// Behind it.
    Generic,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What an operator chooses.
#[derive(Debug, Clone)]
pub struct XdpOptions {
    /// Where to forward; [`Mode::Userspace`] makes no sense here and is refused.
    pub mode: Mode,
    /// The interfaces by name. `None`: those with the default routes and those that have one of `addresses`.
    pub interfaces: Option<Vec<String>>,
    /// The service's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Where the relay listens: its UDP port at one address, or at every one.
    pub listen: SocketAddr,
    /// The most legs.
    pub legs: usize,
    /// The BPF file system in which program and legs outlive this process; it is mounted if it is not.
    /// `None`: they end with the process.
    pub pins: Option<PathBuf>,
}

/// Where the kernel has its BPF file system.
pub const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// Why a program is in the driver: it is the fastest way, and the driver has it.
pub const NATIVE_WHY: &str = "its driver has native XDP";

/// Why a program is behind the driver, as far as the kernel tells of the driver. Whoever attached it knows
/// more.
pub(super) fn generic_why(features: Option<XdpFeatures>) -> &'static str {
    match features {
        Some(XdpFeatures { native: false, .. }) => "its driver has no native XDP",
        Some(XdpFeatures { native: true, .. }) => {
            "`relay.mode` says so, or its driver refused native XDP: the relay's log says which"
        }
        None => {
            "the kernel does not tell whether its driver has native XDP (Linux 6.3 does): the relay's log says why"
        }
    }
}

/// The program on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// How it hangs there.
    pub hook: Hook,
    /// Why so: [`NATIVE_WHY`], or why not in the driver.
    pub why: String,
    /// Whether an earlier process had left it there, and it never stopped forwarding.
    pub adopted: bool,
    /// Whether it goes on when this process dies.
    pub pinned: bool,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.interface, self.hook)?;
        if self.adopted {
            f.write_str(", taken over")?;
        }
        if !self.pinned {
            f.write_str(", not pinned")?;
        }
        if self.hook == Hook::Generic {
            write!(f, ": {}", self.why)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_behind_the_driver_says_why() {
        let features = XdpFeatures { native: false, zero_copy: false };
        let why = generic_why(Some(features)).to_owned();
        let generic = Attachment {
            interface: "eth0".to_owned(),
            hook: Hook::Generic,
            why,
            adopted: true,
            pinned: false,
        };
        let said = generic.to_string();
        assert_eq!(said, "eth0 (generic, taken over, not pinned: its driver has no native XDP)");
        let native = Attachment { hook: Hook::Native, why: NATIVE_WHY.to_owned(), pinned: true, ..generic };
        assert_eq!(native.to_string(), "eth0 (native, taken over)");
        let refused = generic_why(Some(XdpFeatures { native: true, ..features }));
        assert!(refused.contains("relay.mode") && generic_why(None).contains("Linux 6.3"));
    }
}
