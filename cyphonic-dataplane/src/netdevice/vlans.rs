//! VLAN devices above an interface, and where the tags are that tell their frames from the interface's own.

use std::io;

use super::link::{self, Links};
use super::netlink::attribute;

/// `IFLA_LINK` of `linux/if_link.h`: the interface below.
const LINK_BELOW: u16 = 5;
/// `IFLA_LINK_NETNSID`: it is there where that interface is in another network namespace.
const LINK_BELOW_NAMESPACE: u16 = 37;
const VLAN: &[u8] = b"vlan";

/// VLAN devices above an interface of the calling thread's network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vlans {
    /// Their names.
    pub devices: Vec<String>,
    /// Whether tags stay in frames until the network stack takes them off. Otherwise they are beside the
    /// frames before that, where an XDP program behind the driver does not see them.
    pub in_frames: bool,
    /// Whether the network card takes tags off, and can be told not to.
    pub by_card: bool,
}

impl Links {
    /// The VLAN devices above the interface with this name.
    ///
    /// # Errors
    /// There is no such interface, or the kernel does not tell.
    pub fn vlans_above(&self, interface: &str) -> io::Result<Vlans> {
        let own = self.named(interface).ok_or(io::ErrorKind::NotFound)?;
        let above = self.all().filter(|link| is_vlan_above(&link.attributes, own.index));
        let devices: Vec<_> = above.filter_map(|link| Some(link.name()?.to_owned())).collect();
        let software = link::kind(&own.attributes).is_some();
        Ok(placed(devices, software, super::takes_vlan_tags_off(interface)?))
    }
}

fn is_vlan_above(attributes: &[u8], below: u32) -> bool {
    link::kind(attributes) == Some(VLAN)
        && link::number(attributes, LINK_BELOW) == Some(below)
        && attribute(attributes, LINK_BELOW_NAMESPACE).is_none()
}

/// What devices of software are given has no tags in it any more, whatever they say of themselves: the stack
/// has taken them off on the way there, or the sender never put them in.
fn placed(devices: Vec<String>, software: bool, taken_off: bool) -> Vlans {
    Vlans { devices, in_frames: !software && !taken_off, by_card: !software && taken_off }
}

#[cfg(test)]
mod tests {
    use super::super::netlink::push_attribute;
    use super::*;

    #[test]
    fn nothing_is_above_loopback_and_an_unknown_interface_is_an_error() {
        let links = Links::list().unwrap();
        assert_eq!(links.vlans_above("lo").unwrap().devices, [""; 0]);
        assert!(links.vlans_above("nosuch0").is_err());
        let lo = (links.index("lo"), links.name(1), links.flags("lo").map(|flags| flags & 8));
        assert_eq!(lo, (Some(1), Some("lo"), Some(8)));
        assert_eq!((links.index("nosuch0"), links.name(0)), (None, None));
    }

    #[test]
    fn a_vlan_device_is_told_by_kind_and_by_what_is_below() {
        let device = |kind: &[u8], below: u32, elsewhere: bool| {
            let (mut info, mut link) = (Vec::new(), Vec::new());
            push_attribute(&mut info, 1, kind).unwrap();
            push_attribute(&mut link, LINK_BELOW, &below.to_ne_bytes()).unwrap();
            push_attribute(&mut link, 18, &info).unwrap();
            if elsewhere {
                push_attribute(&mut link, LINK_BELOW_NAMESPACE, &[0; 4]).unwrap();
            }
            is_vlan_above(&link, 7)
        };
        assert!(device(b"vlan\0", 7, false));
        assert!(
            !device(b"vlan\0", 8, false) && !device(b"vlan\0", 7, true) && !device(b"macvlan\0", 7, false)
        );
        assert!(!is_vlan_above(&[1, 2, 3], 7));
    }

    #[test]
    fn only_a_card_that_leaves_tags_alone_has_them_in_frames() {
        let of = |software, taken_off| {
            let Vlans { in_frames, by_card, .. } = placed(Vec::new(), software, taken_off);
            (in_frames, by_card)
        };
        assert_eq!(of(false, false), (true, false));
        assert_eq!(of(false, true), (false, true));
        assert_eq!((of(true, false), of(true, true)), ((false, false), (false, false)));
    }
}
