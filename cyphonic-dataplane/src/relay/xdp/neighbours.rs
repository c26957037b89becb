//! What the kernel has said of neighbours.
//!
//! Mostly it says nothing new: a neighbour was confirmed once more. What a bridge learns of its ports comes
//! as the same kind of message, and says nothing of routes.

use std::collections::HashMap;

use crate::netdevice::netlink::attribute;

/// The family of what a bridge knows of its ports.
const BRIDGE: u8 = libc::AF_BRIDGE as u8;
/// All states in which the link address is used: `NUD_VALID` of `net/neighbour.h`, inside the kernel.
const VALID: u16 = libc::NUD_REACHABLE
    | libc::NUD_STALE
    | libc::NUD_DELAY
    | libc::NUD_PROBE
    | libc::NUD_NOARP
    | libc::NUD_PERMANENT;
/// Neighbours that are remembered. More are forgotten, which makes every message about them a change.
const MAX_NEIGHBOURS: usize = 16_384;

/// Neighbours as they were told last: their link addresses, if they have a valid one.
#[derive(Debug, Default)]
pub(super) struct Neighbours(HashMap<Vec<u8>, Option<Vec<u8>>>);

impl Neighbours {
    /// Takes what the kernel says of one. Returns whether it is news; what is not understood is.
    pub(super) fn learn(&mut self, kind: u16, content: &[u8]) -> bool {
        if content.first() == Some(&BRIDGE) {
            return false;
        }
        kind != libc::RTM_NEWNEIGH || self.learn_present(content).unwrap_or(true)
    }

    /// `struct ndmsg` and attributes. `None`: it is not understood.
    fn learn_present(&mut self, content: &[u8]) -> Option<bool> {
        let (header, attributes) = content.split_first_chunk::<12>()?;
        let [family, _, _, _, i0, i1, i2, i3, s0, s1, ..] = *header;
        let mut key = vec![family, i0, i1, i2, i3];
        key.extend_from_slice(attribute(attributes, libc::NDA_DST)?);
        let is_valid = u16::from_ne_bytes([s0, s1]) & VALID != 0;
        let link = attribute(attributes, libc::NDA_LLADDR).filter(|_| is_valid).map(<[u8]>::to_vec);
        if self.0.len() >= MAX_NEIGHBOURS {
            self.0.clear();
        }
        Some(self.0.insert(key, link.clone()) != Some(link))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::netdevice::netlink::push_attribute;

    /// What the kernel says of a neighbour of interface 7.
    pub(in super::super) fn neighbour(state: u16, address: [u8; 4], link: [u8; 6]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0, 7, 0, 0, 0];
        body.extend(state.to_ne_bytes());
        body.extend([0, 1]);
        push_attribute(&mut body, libc::NDA_DST, &address).unwrap();
        push_attribute(&mut body, libc::NDA_LLADDR, &link).unwrap();
        body
    }

    #[test]
    fn a_neighbour_that_is_confirmed_is_no_news_and_one_that_moves_is() {
        use libc::{NUD_FAILED as FAILED, NUD_REACHABLE as REACHABLE, NUD_STALE as STALE};
        let mut neighbours = Neighbours::default();
        let mut learn = |state, host, link| {
            neighbours.learn(libc::RTM_NEWNEIGH, &neighbour(state, [192, 0, 2, host], [link; 6]))
        };
        assert!(learn(REACHABLE, 1, 1) && learn(REACHABLE, 2, 1), "new");
        assert!(!learn(STALE, 1, 1) && !learn(REACHABLE, 1, 1), "the same");
        assert!(learn(REACHABLE, 1, 9), "another link address");
        assert!(learn(FAILED, 1, 9) && !learn(FAILED, 1, 9) && learn(REACHABLE, 1, 9), "gone and back");
        assert!(!learn(STALE, 2, 1));
    }

    #[test]
    fn what_a_bridge_learns_of_its_ports_is_no_news() {
        let mut neighbours = Neighbours::default();
        let learnt = |link: u8| {
            // `NUD_REACHABLE`, and `NTF_MASTER` of `linux/neighbour.h`.
            let mut body = vec![BRIDGE, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0x04, 0];
            push_attribute(&mut body, libc::NDA_LLADDR, &[2, 0, 0, 0, 0, link]).unwrap();
            body
        };
        for (kind, link) in [(libc::RTM_NEWNEIGH, 1), (libc::RTM_NEWNEIGH, 2), (libc::RTM_DELNEIGH, 1)] {
            assert!(!neighbours.learn(kind, &learnt(link)), "{kind} {link}");
        }
        assert!(neighbours.0.is_empty());
    }
}
