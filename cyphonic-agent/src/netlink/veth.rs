//! The virtual interface as a veth pair: its near end is the host's, its far end the packet path's.

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{LinkUnspec, LinkVeth};

use super::{Netlink, NetlinkError, name_of};

/// The longest interface name (`IFNAMSIZ` counts the final zero).
const MAX_NAME: usize = 15;

/// What the far end of an interface is called.
pub fn far_end(near: &str) -> String {
    let mut cut = near.len().min(MAX_NAME - 1);
    while !near.is_char_boundary(cut) {
        cut -= 1;
    }
    near.get(..cut).unwrap_or_default().to_owned() + "x"
}

impl Netlink {
    /// Makes a pair, down, without link-local addresses and neighbour discovery: everything that is sent goes
    /// to the other end. A pair of the same names, which a daemon that was killed left behind, goes
    /// first.
    ///
    /// Both ends are given their link-layer addresses: one that the kernel drew, udev replaces when it comes
    /// to it (`MACAddressPolicy=persistent`), and who writes frames to the near end has read its address
    /// by then.
    ///
    /// # Errors
    /// Says which step failed. Nothing of a new pair stays then.
    pub async fn create_pair(&self, near: &str, mtu: u32) -> Result<(), NetlinkError> {
        self.remove_pair(near).await?;
        let far = far_end(near);
        let step = |what| move |error| NetlinkError::step(what, near, error);
        let peer = LinkUnspec::new_with_name(&far).address(random_link_address()).build();
        let pair = LinkVeth::new(near, &far)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(random_link_address())
            .build();
        self.handle.link().add(pair).execute().await.map_err(step("make a veth pair for"))?;
        let prepared = async {
            for end in [near, &far] {
                let index = self.require(end).await?.index;
                self.handle
                    .link()
                    .change(quiet(index, mtu))
                    .execute()
                    .await
                    .map_err(step("prepare an end of"))?;
            }
            Ok(())
        };
        let prepared = prepared.await;
        if prepared.is_err() {
            self.remove(near).await?;
        }
        prepared
    }

    /// Brings the far end up.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub async fn bring_up_far_end(&self, near: &str) -> Result<(), NetlinkError> {
        let far = far_end(near);
        let link = LinkUnspec::new_with_index(self.require(&far).await?.index).up().build();
        let changed = self.handle.link().change(link).execute().await;
        changed.map_err(|error| NetlinkError::step("bring up", &far, error))
    }

    /// Brings the far end of a pair up again; true if somebody had set it down. An interface that has its
    /// name is not touched.
    ///
    /// # Errors
    /// The kernel does not list links, or refuses.
    pub(super) async fn keep_far_end_up(&self, near: &str) -> Result<bool, NetlinkError> {
        let (links, far) = (self.links().await?, far_end(near));
        let named = |name: &str| links.iter().find(|link| name_of(link) == Some(name));
        let (Some(near_end), Some(far_end)) = (named(near), named(&far)) else { return Ok(false) };
        let is_pair = near_end.attributes.contains(&LinkAttribute::Link(far_end.header.index));
        if !is_pair || far_end.header.flags.contains(LinkFlags::Up) {
            return Ok(false);
        }
        self.bring_up_far_end(near).await?;
        Ok(true)
    }

    /// Removes a pair that [`create_pair`](Self::create_pair) has made; false if there is none, or only an
    /// interface that has the name of one end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_pair(&self, near: &str) -> Result<bool, NetlinkError> {
        if self.link(&far_end(near)).await?.is_none() {
            return Ok(false);
        }
        self.remove(near).await
    }
}

/// Of one station, and locally administered (IEEE 802 §8.2.2, §8.4).
fn random_link_address() -> Vec<u8> {
    let [first, rest @ ..]: [u8; 6] = rand::random();
    [&[first & !0x01 | 0x02], rest.as_slice()].concat()
}

fn quiet(index: u32, mtu: u32) -> LinkMessage {
    let no_addresses = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    LinkUnspec::new_with_index(index)
        .mtu(mtu)
        .arp(false)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_addresses]))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_addresses_are_of_one_station_and_locally_administered() {
        for _ in 0..100 {
            let address = random_link_address();
            assert!(address.len() == 6 && address[0] & 0x03 == 0x02, "{address:02x?}");
        }
        assert_ne!(random_link_address(), random_link_address());
    }

    #[test]
    fn far_ends_have_names_of_their_own_that_the_kernel_takes() {
        assert_eq!(far_end("cyph0"), "cyph0x");
        assert_eq!(far_end("a-name-of-15-by"), "a-name-of-15-bx");
        assert_eq!(far_end("fourteen-bytes"), "fourteen-bytesx");
    }
}
