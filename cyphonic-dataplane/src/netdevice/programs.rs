//! Which XDP programs are on an interface, and how they hang there (rtnetlink's `IFLA_XDP`,
//! `linux/if_link.h`).

use std::io;

use super::link;
use super::netlink::attribute;

/// `IFLA_XDP`, and in it the numbers of the programs in the driver and behind it.
const LINK_XDP: u16 = 43;
const XDP_DRIVER_PROGRAM: u16 = 5;
const XDP_GENERIC_PROGRAM: u16 = 6;

/// The XDP programs on an interface, by their numbers, as in `bpftool prog`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpPrograms {
    /// In the driver.
    pub native: Option<u32>,
    /// Behind it.
    pub generic: Option<u32>,
}

/// The XDP programs on an interface in the calling thread's network namespace.
///
/// # Errors
/// There is no such interface, or the kernel does not tell.
pub fn xdp_programs(interface: &str) -> io::Result<XdpPrograms> {
    Ok(read(&link::attributes(super::index(interface)?)?))
}

fn read(attributes: &[u8]) -> XdpPrograms {
    let Some(xdp) = attribute(attributes, LINK_XDP) else { return XdpPrograms::default() };
    let number = |name| link::number(xdp, name);
    XdpPrograms { native: number(XDP_DRIVER_PROGRAM), generic: number(XDP_GENERIC_PROGRAM) }
}

#[cfg(test)]
mod tests {
    use super::super::netlink::push_attribute;
    use super::*;

    #[test]
    fn loopback_has_no_program_and_an_unknown_interface_is_an_error() {
        assert_eq!(xdp_programs("lo").unwrap(), XdpPrograms::default());
        assert!(xdp_programs("nosuch0").is_err());
    }

    #[test]
    fn programs_are_told_apart_by_where_they_hang() {
        let (mut xdp, mut link) = (Vec::new(), Vec::new());
        push_attribute(&mut xdp, 2, &[2]).unwrap();
        push_attribute(&mut xdp, XDP_GENERIC_PROGRAM, &77_u32.to_ne_bytes()).unwrap();
        push_attribute(&mut link, 3, b"eth0\0").unwrap();
        push_attribute(&mut link, LINK_XDP, &xdp).unwrap();
        assert_eq!(read(&link), XdpPrograms { native: None, generic: Some(77) });
        assert_eq!(read(&[1, 2, 3]), XdpPrograms::default());
    }
}
