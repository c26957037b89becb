//! TCP's congestion control in the lab: Linux's own, on every node, whatever the machine under it has.
//!
//! A namespace starts with the machine's. BBR's streams are a third slower than CUBIC's where the cables are
//! no narrower than the machine, and figures of two machines could not be compared.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use nix::sys::socket::{setsockopt, sockopt};

use crate::LabError;

/// What every node's TCP uses.
const ALGORITHM: &str = "cubic";

/// What namespaces may choose from. It is the machine's, so only the first namespace has the file.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// The setting of a node.
pub(crate) fn sysctl() -> String {
    format!("net.ipv4.tcp_congestion_control={ALGORITHM}")
}

/// Lets the machine's namespaces have it. A kernel that was built with another default (BBR, say) allows it
/// to the first namespace alone. It stays allowed: other labs may be up when this one goes, and it takes
/// nothing from anybody.
///
/// # Errors
/// Not root, or the kernel has no CUBIC at all.
pub fn allow() -> Result<(), LabError> {
    let path = Path::new(ALLOWED);
    let allowed = match fs::read_to_string(path) {
        Ok(allowed) => allowed,
        // Inside a namespace: whoever made it has the say.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LabError::file("read", path)(error)),
    };
    let Some(wider) = wider(&allowed) else { return Ok(()) };
    // One that is a module is loaded when a socket chooses it; what is not there at all, writing tells.
    if let Ok(socket) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        let _ = setsockopt(&socket, sockopt::TcpCongestion, &OsString::from(ALGORITHM));
    }
    fs::write(path, wider).map_err(LabError::file("write", path))
}

/// The list with the lab's choice in it, if that is missing.
fn wider(allowed: &str) -> Option<String> {
    let missing = !allowed.split_whitespace().any(|name| name == ALGORITHM);
    missing.then(|| format!("{} {ALGORITHM}", allowed.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_stays_allowed() {
        assert_eq!(wider("reno bbr\n").as_deref(), Some("reno bbr cubic"));
        assert_eq!(wider("reno cubic bbr\n"), None);
        assert_eq!(wider("cubic\n"), None);
        assert_eq!(wider("reno cubically\n").as_deref(), Some("reno cubically cubic"));
    }
}
