//! The virtual interface as a veth pair: its near end is the host's, its far end the packet path's.
//!
//! A pair outlives a daemon that is killed, and settings may have another name by the next start. So the near
//! end says whose it is (`ip link` shows it as `alias`): several agents of a host tell theirs apart. So does a
//! TUN device, though it goes with its process: agents guard other interfaces, but not each other's.

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::io::Errno;

use super::{Netlink, NetlinkError, is, kind_of, name_of};

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
    /// to the other end. `owner` is the identifier of the agent's state directory. A pair of the same names,
    /// which a daemon that was killed left behind, goes first.
    ///
    /// Both ends are given their link-layer addresses: one that the kernel drew, udev replaces when it comes
    /// to it (`MACAddressPolicy=persistent`), and who writes frames to the near end has read its address
    /// by then.
    ///
    /// # Errors
    /// Says which step failed. Nothing of a new pair stays then.
    pub async fn create_pair(&self, near: &str, owner: &str, mtu: u32) -> Result<(), NetlinkError> {
        self.remove_pair(near).await?;
        let far = far_end(near);
        let step = |what| move |error| NetlinkError::step(what, near, error);
        let peer = LinkUnspec::new_with_name(&far).address(random_link_address()).build();
        let pair = LinkVeth::new(near, &far)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(random_link_address())
            .build();
        self.handle.link().add(pair).execute().await.map_err(|error| match is(&error, Errno::EXIST) {
            true => NetlinkError::Taken { near: near.to_owned(), far: far.clone() },
            false => NetlinkError::step("make a veth pair for", near, error),
        })?;
        let prepared = async {
            // Before anything leads there.
            let marked = LinkAttribute::IfAlias(mark(owner));
            for (end, further) in [(near, Some(marked)), (&far, None)] {
                let index = self.require(end).await?.index;
                self.handle
                    .link()
                    .change(quiet(index, mtu, further))
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

    /// Removes a pair of these names that a daemon left behind; false if there is none, if an agent uses it,
    /// or if only an interface has the name of one end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_pair(&self, near: &str) -> Result<bool, NetlinkError> {
        let (links, far) = (self.links().await?, far_end(near));
        let named = |name: &str| links.iter().find(|link| name_of(link) == Some(name) && is_veth(link));
        let (Some(near_end), Some(far_end)) = (named(near), named(&far)) else { return Ok(false) };
        let is_pair = near_end.attributes.contains(&LinkAttribute::Link(far_end.header.index));
        // Its program goes with an agent.
        if !is_pair || has_program(far_end) {
            return Ok(false);
        }
        self.remove(near).await
    }

    /// Has an interface say that it is the agent's with this state directory.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub async fn mark(&self, name: &str, owner: &str) -> Result<(), NetlinkError> {
        let index = self.require(name).await?.index;
        let mut link = LinkUnspec::new_with_index(index).build();
        link.attributes.push(LinkAttribute::IfAlias(mark(owner)));
        let changed = self.handle.link().change(link).execute().await;
        changed.map_err(|error| NetlinkError::step("mark", name, error))
    }

    /// Removes the pairs that the agent with this state directory has made, whatever they are called; false if
    /// there are none. Those of others stay.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_pairs_of(&self, owner: &str) -> Result<bool, NetlinkError> {
        let marked = LinkAttribute::IfAlias(mark(owner));
        let links = self.links().await?;
        let mut removed = false;
        for name in
            links.iter().filter(|link| is_veth(link) && link.attributes.contains(&marked)).filter_map(name_of)
        {
            removed |= self.remove(name).await?;
        }
        Ok(removed)
    }
}

/// How what an agent's interface says of itself begins.
const MARK: &str = "cyphonicd, state directory ";

/// What an agent's interface says of itself: of a pair, its near end.
fn mark(owner: &str) -> String {
    format!("{MARK}{owner}")
}

/// Whether an interface is an agent's, or the far end of one that is. Nobody but root may say so of one.
pub(super) fn is_agents(link: &LinkMessage, all: &[LinkMessage]) -> bool {
    let is_marked = |link: &LinkMessage| {
        link.attributes
            .iter()
            .any(|attribute| matches!(attribute, LinkAttribute::IfAlias(alias) if alias.starts_with(MARK)))
    };
    let is_end_of = |near: &&LinkMessage| link.attributes.contains(&LinkAttribute::Link(near.header.index));
    is_marked(link)
        || is_veth(link) && all.iter().filter(is_end_of).any(|near| is_veth(near) && is_marked(near))
}

fn is_veth(link: &LinkMessage) -> bool {
    kind_of(link) == Some(&InfoKind::Veth)
}

/// Whether an XDP program hangs there, as on the far end of an agent that lives.
fn has_program(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::Xdp(told) => told
            .iter()
            .any(|told| matches!(told, LinkXdp::Attached(attached) if *attached != XdpAttached::None)),
        _ => false,
    })
}

/// Of one station, and locally administered (IEEE 802 §8.2.2, §8.4).
fn random_link_address() -> Vec<u8> {
    let [first, rest @ ..]: [u8; 6] = rand::random();
    [&[first & !0x01 | 0x02], rest.as_slice()].concat()
}

fn quiet(index: u32, mtu: u32, further: Option<LinkAttribute>) -> LinkMessage {
    let no_addresses = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let mut link = LinkUnspec::new_with_index(index)
        .mtu(mtu)
        .arp(false)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_addresses]))
        .build();
    link.attributes.extend(further);
    link
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
