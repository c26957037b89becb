//! The program on its interfaces, which come and go.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use cyphonic_common::relay::RelayConfig;
use cyphonic_common::relay::place::pairs_for;
use nix::net::if_::if_nameindex;

use super::attach::{self, Held};
use super::interfaces::{self, Interface};
use super::object::{LEGS_MAPS, Object};
use super::pins::Pins;
use super::{Attachment, Hook, Mode, XdpError, XdpOptions};
use crate::netdevice::{self, Vlans, XdpRedirection};

/// Program and maps in the kernel, and what keeps the program on interfaces.
pub(super) struct Program {
    // Dropped before the program.
    attached: Vec<Attached>,
    pub(super) object: Object,
    config: RelayConfig,
    mode: Mode,
    named: Option<Vec<String>>,
    addresses: Vec<IpAddr>,
    pins: Option<Pins>,
    /// Interfaces that did not take it, by their numbers, and what stood above them then: they are not tried again before
    /// that changes.
    refused: HashMap<u32, Vlans>,
    targets: Vec<u32>,
    stopped: bool,
}

/// The program on one interface.
struct Attached {
    index: u32,
    attachment: Attachment,
    _held: Held,
}

impl Program {
    /// Loaded and configured.
    pub(super) fn load(
        options: &XdpOptions,
        interfaces: &[Interface],
        pins: Option<&Pins>,
    ) -> Result<Self, XdpError> {
        let capacity = u32::try_from(options.legs).unwrap_or(u32::MAX);
        let mut object = Object::load(capacity, pins)?;
        // Before the program is anywhere: it may go in an earlier one's place, where packets are arriving. Until it is
        // known that none of them come merged, they may be.
        let mut config = RelayConfig::new(options.port, options.mode != Mode::Native);
        config = config.with_pairs(pairs_for(capacity));
        if interfaces.iter().any(|interface| interface.virtual_cable) {
            config = config.over_virtual_cables();
        }
        object.configure(config)?;
        Ok(Self {
            attached: Vec::new(),
            object,
            config,
            mode: options.mode,
            named: options.interfaces.clone(),
            addresses: options.addresses.clone(),
            pins: pins.cloned(),
            refused: HashMap::new(),
            targets: Vec::new(),
            stopped: false,
        })
    }

    /// On all interfaces; with [`Mode::Auto`], on those that take it, if there is one.
    pub(super) fn attach(&mut self, interfaces: &[Interface]) -> Result<(), XdpError> {
        // In an earlier program's place, frames are redirected from the first one on.
        let left = redirect_targets(&attach::left(interfaces, self.pins.as_ref()), redirection);
        self.set_targets(left)?;
        let mut refused = Vec::new();
        for interface in interfaces {
            match self.attach_to(interface) {
                Ok(()) => {}
                Err(error) if self.mode == Mode::Auto => refused.push((interface, error)),
                Err(error) => return Err(error),
            }
        }
        if self.attached.is_empty()
            && let Some((_, error)) = refused.pop()
        {
            return Err(error);
        }
        for (interface, error) in refused {
            tracing::warn!(%error, interface = interface.name, "its packets are relayed in userspace");
        }
        self.settle()?;
        if let Some(pins) = &self.pins {
            let links = self.attached.iter().map(|at| pins.link(at.index, at.attachment.hook));
            let maps = LEGS_MAPS.map(|name| pins.map(name));
            pins.remove_others(&links.chain(maps).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Where it is.
    pub(super) fn attachments(&self) -> Vec<Attachment> {
        self.attached.iter().map(|at| at.attachment.clone()).collect()
    }

    /// Off all interfaces, for good.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.attached.clear();
    }

    /// Interfaces, addresses or routes have changed: goes off those that are gone, or where it would do harm now, and on those
    /// that are new, or made anew.
    pub(super) fn follow(&mut self) {
        if self.stopped {
            return;
        }
        let followed = self.leave().and_then(|()| self.join());
        if let Err(error) = followed {
            tracing::warn!(%error, "the relay does not follow a change of the interfaces");
        }
    }

    fn leave(&mut self) -> Result<(), XdpError> {
        let present = if_nameindex().map_err(|error| XdpError::Interfaces(io::Error::from(error)))?;
        let name_of = |index| present.iter().find(|there| there.index() == index).map(|there| there.name());
        self.refused.retain(|index, _| name_of(*index).is_some());
        let before = std::mem::take(&mut self.attached);
        let count = before.len();
        for at in before {
            let interface = name_of(at.index).and_then(|name| interfaces::open(&name.to_string_lossy()));
            let harm = match &interface {
                Some(interface) => attach::sees_tags(interface, at.attachment.hook).err(),
                None => Some(XdpError::NoInterface(at.attachment.interface.clone())),
            };
            let Some(error) = harm else {
                self.attached.push(at);
                continue;
            };
            tracing::warn!(%error, interface = at.attachment.interface, "its packets are not relayed in XDP any more");
            if let Some(pins) = &self.pins {
                let _ = std::fs::remove_file(pins.link(at.index, at.attachment.hook));
            }
            self.refused.extend(interface.map(|interface| (interface.index, interface.vlans)));
        }
        if self.attached.len() < count { self.settle() } else { Ok(()) }
    }

    fn join(&mut self) -> Result<(), XdpError> {
        let wanted =
            interfaces::present(self.named.as_deref(), &self.addresses).map_err(XdpError::Interfaces)?;
        let mut joined = false;
        for interface in wanted {
            let known = self.attached.iter().any(|at| at.index == interface.index);
            if known || self.refused.get(&interface.index) == Some(&interface.vlans) {
                continue;
            }
            self.expect(&interface)?;
            match self.attach_to(&interface) {
                Ok(()) => {
                    let on = self.attached.last().map(|at| at.attachment.to_string());
                    tracing::info!(interface = on, "relaying in XDP here too");
                }
                Err(error) => {
                    tracing::warn!(%error, interface = interface.name, "its packets are relayed in userspace");
                }
            }
            joined = true;
        }
        if joined { self.settle() } else { Ok(()) }
    }

    /// Before the program is there.
    fn expect(&mut self, interface: &Interface) -> Result<(), XdpError> {
        if interface.virtual_cable {
            self.config = self.config.over_virtual_cables();
        }
        self.object.configure(self.config)
    }

    fn attach_to(&mut self, interface: &Interface) -> Result<(), XdpError> {
        let attached = attach::attach(self.object.program()?, interface, self.mode, self.pins.as_ref());
        let (attachment, held) = attached.inspect_err(|_| {
            self.refused.insert(interface.index, interface.vlans.clone());
        })?;
        self.attached.push(Attached { index: interface.index, attachment, _held: held });
        Ok(())
    }

    /// What the program must know of where it is.
    fn settle(&mut self) -> Result<(), XdpError> {
        let places: Vec<_> = self.attached.iter().map(|at| (at.index, at.attachment.hook)).collect();
        let merged = self.config.merged() && places.iter().any(|(_, hook)| *hook == Hook::Generic);
        self.object.configure(self.config.with_merged(merged))?;
        self.set_targets(redirect_targets(&places, redirection))
    }

    fn set_targets(&mut self, targets: Vec<u32>) -> Result<(), XdpError> {
        self.object.set_egress(&targets, &self.targets)?;
        self.targets = targets;
        Ok(())
    }
}

/// Frames can be redirected from anywhere to a driver that runs the program and sends what others redirect, unless one of the
/// drivers that run it would drop what it is to redirect; behind drivers, from anywhere to anywhere else that is behind its
/// driver, but not from a driver to there. Of a driver that the kernel tells nothing of, the best is believed.
fn redirect_targets(
    attached: &[(u32, Hook)],
    redirection: impl Fn(u32) -> Option<XdpRedirection>,
) -> Vec<u32> {
    let native: Vec<_> = attached.iter().filter(|(_, hook)| *hook == Hook::Native).collect();
    if native.is_empty() {
        return attached.iter().map(|(index, _)| *index).collect();
    }
    let can = native.into_iter().map(|(index, _)| (*index, redirection(*index)));
    let can: Vec<_> =
        can.map(|(index, can)| (index, can.unwrap_or(XdpRedirection { from: true, to: true }))).collect();
    if can.iter().any(|(_, can)| !can.from) {
        return Vec::new();
    }
    can.into_iter().filter(|(_, can)| can.to).map(|(index, _)| index).collect()
}

/// What the kernel tells of a driver. Asked when the program is there: with one, many can do more.
fn redirection(index: u32) -> Option<XdpRedirection> {
    let asked = netdevice::xdp_redirection(index);
    asked.inspect_err(|error| tracing::debug!(%error, index, "no word of what the driver can redirect")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_redirected_only_where_drivers_do_not_lose_them() {
        use Hook::{Generic, Native};
        let can = |from, to| Some(XdpRedirection { from, to });
        let targets = |attached: &[(u32, Hook, Option<XdpRedirection>)]| {
            let places: Vec<_> = attached.iter().map(|(index, hook, _)| (*index, *hook)).collect();
            redirect_targets(&places, |asked| attached.iter().find(|(index, ..)| *index == asked)?.2)
        };
        assert_eq!(targets(&[(2, Native, can(true, true)), (3, Native, can(true, false))]), [2]);
        assert_eq!(targets(&[(2, Native, can(true, true)), (3, Native, can(false, true))]), [0; 0]);
        // Kernels before 6.3 do not tell.
        assert_eq!(targets(&[(2, Native, None), (3, Native, None)]), [2, 3]);
        // Behind drivers nobody asks them, and no driver redirects to there.
        assert_eq!(targets(&[(2, Generic, can(false, false)), (3, Generic, can(false, false))]), [2, 3]);
        assert_eq!(targets(&[(2, Generic, can(true, true)), (3, Native, can(true, true))]), [3]);
    }
}
