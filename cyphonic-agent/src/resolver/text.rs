//! What a resolv.conf file says (resolv.conf(5)). Pure, but for interfaces' numbers.

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// Whether this is one of them.
pub(super) fn names(servers: &[SocketAddr], server: IpAddr) -> bool {
    servers.iter().any(|named| named.ip() == server)
}

/// The servers that it names, in its order.
pub(super) fn nameservers(text: &str) -> Vec<SocketAddr> {
    let values = text.lines().filter(|line| keyword(line) == Some("nameserver"));
    values.filter_map(|line| parse_server(line.split_whitespace().nth(1)?)).collect()
}

/// resolv.conf(5): the keyword starts in the first column; `#` and `;` start comments.
pub(super) fn keyword(line: &str) -> Option<&str> {
    if line.starts_with(char::is_whitespace) { None } else { line.split_whitespace().next() }
}

/// An address, with `%interface` where it is link-local.
fn parse_server(text: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, 53));
    };
    let index = scope.parse().ok().or_else(|| {
        let usable = scope.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        let index = usable.then(|| fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok())??;
        index.trim().parse().ok()
    })?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_every_usual_form() {
        let text = "nameserver 192.0.2.1 # x\n#nameserver 192.0.2.2\n nameserver 192.0.2.3\nnameserver\nnameserver x\n\
                    nameserver fe80::1%lo\nnameserver fe80::2%../x\n";
        let servers: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1%1]:53"]);
    }
}
