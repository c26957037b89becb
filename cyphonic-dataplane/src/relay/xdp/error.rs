//! Why packets cannot be relayed in XDP, in words for the person who must act.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::options::Hook;
use crate::errno::errno;
use crate::netdevice::Vlans;

/// Why packets cannot be relayed in XDP. The relay works without, in userspace.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The binary holds no program.
    #[error("this binary was built without eBPF objects: run `cargo xtask build`")]
    NotBuilt,
    /// The process lacks privileges.
    #[error(
        "the kernel does not permit XDP to this process ({0}): it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or \
         root; in a container, seccomp must allow bpf(2)"
    )]
    NotPermitted(Box<dyn Error + Send + Sync>),
    /// The kernel did not take program or maps.
    #[error("the kernel does not load the relay's XDP program: {0}")]
    Load(Box<dyn Error + Send + Sync>),
    /// The embedded object does not hold what this version expects.
    #[error("the embedded eBPF object has no {0}: it is from another version, run `cargo xtask build`")]
    Missing(&'static str),
    /// A map could not be written.
    #[error("cannot write the relay's map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An interface that was named is not there.
    #[error("there is no interface {0}, or it is down: correct `relay.interfaces`")]
    NoInterface(String),
    /// No interface was named, and none was found.
    #[error(
        "no interface has a default route or one of the service's addresses: name some in `relay.interfaces`"
    )]
    NoInterfaces,
    /// The interfaces could not be listed.
    #[error("cannot list the network interfaces: {0}")]
    Interfaces(io::Error),
    /// The program could not be attached.
    #[error("cannot attach the XDP program to {interface} in {hook} mode: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// How it was tried.
        hook: Hook,
        /// Why not, and what to do.
        reason: String,
    },
    /// The driver runs no programs.
    #[error("the driver of {0} has no native XDP: use `relay.mode: generic`, or `auto`")]
    NoNativeXdp(String),
    /// Behind the driver the program would not see VLAN tags.
    #[error(
        "behind the driver of {interface} XDP does not see VLAN tags, which are taken off before, and would send with a tag \
         what has none, while there are VLAN devices above it ({}): {advice}",
        vlans.join(", ")
    )]
    VlanTags {
        /// The interface.
        interface: String,
        /// Names of the VLAN devices above it.
        vlans: Vec<String>,
        /// What to do.
        advice: String,
    },
    /// Routes cannot be looked up.
    #[error(
        "XDP cannot look up routes while {} is 0, and it cannot be set to 1 ({source}): set it, or run the relay in \
         userspace",
        path.display()
    )]
    Routing {
        /// The setting's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Default routes would go when routes can be looked up.
    #[error(
        "if forwarding of IPv6 went on for loopback, as XDP needs it, this host would lose the default routes that routers \
         announced, unless {} is 2 meanwhile, which it cannot be set to ({source}): set it, or run the relay in userspace",
        path.display()
    )]
    DefaultRoutes {
        /// The setting's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Changes of routes cannot be heard of.
    #[error("cannot watch the routing table: {0}")]
    Watch(io::Error),
    /// Whether XDP works there cannot be seen from here.
    #[error(
        "{0} is one end of a virtual cable (veth), and its other end silently loses what XDP sends unless an XDP program \
         is attached there: if one is, insist by `relay.mode: native`; `generic` works in any case, but is slower than \
         userspace for packets from this machine"
    )]
    VirtualCable(String),
    /// The caller asked for no XDP.
    #[error("the relay's mode is userspace")]
    Userspace,
}

impl XdpError {
    /// Loading failed.
    pub(super) fn load(error: impl Error + Send + Sync + 'static) -> Self {
        match errno(&error) {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted(error.into()),
            _ => Self::Load(error.into()),
        }
    }

    /// Attaching failed.
    pub(super) fn attach(interface: &str, hook: Hook, error: impl Error + Send + Sync + 'static) -> Self {
        let reason = match (errno(&error), hook) {
            (Some(libc::EPERM | libc::EACCES), _) => return Self::NotPermitted(error.into()),
            _ if is_taken(&error) => format!(
                "another XDP program is there already, and an interface has one only. `ip link show {interface}` names \
                 it: remove it, or name other interfaces in `relay.interfaces`"
            ),
            (Some(libc::ERANGE), _) => {
                "its MTU is too great for XDP without fragments (about 3,500 bytes on most \
                                        drivers): lower the MTU, or use `relay.mode: generic`"
                    .to_owned()
            }
            (Some(libc::EOPNOTSUPP | libc::EINVAL), Hook::Native) => {
                return Self::NoNativeXdp(interface.to_owned());
            }
            _ => chain(&error),
        };
        Self::Attach { interface: interface.to_owned(), hook, reason }
    }

    /// The program would send with a wrong VLAN tag.
    pub(super) fn vlan_tags(interface: &str, vlans: &Vlans) -> Self {
        let advice = match vlans.by_card {
            true => format!(
                "`ethtool -K {interface} rxvlan off` leaves them in frames; or use `relay.mode: userspace`"
            ),
            false => "use `relay.mode: userspace`, or name other interfaces in `relay.interfaces`".to_owned(),
        };
        Self::VlanTags { interface: interface.to_owned(), vlans: vlans.devices.clone(), advice }
    }

    /// Writing a map failed.
    pub(super) fn map(map: &'static str) -> impl Fn(Box<dyn Error + Send + Sync>) -> Self {
        move |source| Self::Map { map, source }
    }
}

/// Whether another program is on the interface: EEXIST if it hangs there in another way.
pub(super) fn is_taken(error: &(dyn Error + 'static)) -> bool {
    matches!(errno(error), Some(libc::EBUSY | libc::EEXIST))
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_tags_a_card_takes_off_is_told_how_to_stop_it() {
        let above = |by_card| Vlans { devices: vec!["eth0.7".to_owned()], in_frames: false, by_card };
        let by_card = XdpError::vlan_tags("eth0", &above(true)).to_string();
        assert!(by_card.contains("eth0.7") && by_card.contains("`ethtool -K eth0 rxvlan off`"), "{by_card}");
        let software = XdpError::vlan_tags("br0", &above(false)).to_string();
        assert!(!software.contains("ethtool") && software.contains("relay.mode: userspace"), "{software}");
    }
}
