//! IPv6 on the virtual interface, where the host's other interfaces have none.

use std::fs;

use super::NetlinkError;

/// Turns IPv6 on for an interface that is ours and new: with `net.ipv6.conf.default.disable_ipv6=1` it comes
/// without.
///
/// # Errors
/// It is off and cannot be turned on, as where `/proc/sys` is read-only.
pub(super) fn allow(name: &str) -> Result<(), NetlinkError> {
    let setting = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match fs::read_to_string(&setting) {
        Ok(off) if off.trim() != "0" => {}
        // Where it cannot be read there may be no IPv6 at all: who gives the address is told so.
        Ok(_) | Err(_) => return Ok(()),
    }
    fs::write(&setting, "0").map_err(|source| NetlinkError::Ipv6Stays { name: name.to_owned(), source })?;
    tracing::info!(interface = name, "new interfaces have no IPv6 here: turned on for the virtual one");
    Ok(())
}
