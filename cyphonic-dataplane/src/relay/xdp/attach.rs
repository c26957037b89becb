//! The program on its interfaces.
//!
//! A pinned link of an earlier process is taken over: the kernel replaces the program in it at once, so that
//! no packet meets none. A new one is made in the first way that works: in the driver, then behind it. What a
//! killed relay that listened elsewhere left in its way goes.

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode};

use super::error::is_taken;
use super::interfaces::Interface;
use super::options::{NATIVE_WHY, generic_why};
use super::pins::Pins;
use super::{Attachment, Hook, Mode, XdpError};
use crate::netdevice::{self, XdpFeatures};

/// Why, where an operator chose it.
const CONFIGURED: &str = "as configured";

/// What keeps a program attached while it lives.
#[derive(Debug)]
#[expect(dead_code, reason = "held for what dropping it does")]
pub(super) enum Held {
    /// The file keeps it too.
    Pinned(PinnedLink),
    /// A link of this process's alone.
    Own(XdpLink),
}

/// Attaches to one interface.
pub(super) fn attach(
    program: &mut Xdp,
    interface: &Interface,
    mode: Mode,
    pins: Option<&Pins>,
) -> Result<(Attachment, Held), XdpError> {
    let mut refused = None;
    for hook in hooks(interface, mode) {
        if let Some(pins) = pins
            && sees_tags(interface, *hook).is_ok()
            && let Some(held) = take_over(program, interface, *hook, pins)
        {
            // Whoever attached it may have known better.
            let why = match (hook, mode) {
                (Hook::Native, _) => NATIVE_WHY,
                (Hook::Generic, Mode::Generic) => CONFIGURED,
                (Hook::Generic, _) => generic_why(netdevice::xdp_features(&interface.name).ok()),
            };
            return Ok((attachment(interface, *hook, why.to_owned(), true, true), held));
        }
    }
    for hook in hooks(interface, mode) {
        let attached = sees_tags(interface, *hook)
            .and_then(|()| attach_new(program, interface, *hook, pins))
            .and_then(|link| pin(program, link, interface, *hook, pins));
        match attached {
            Ok(held) => {
                let pinned = matches!(held, Held::Pinned(_));
                let why = why(*hook, mode, refused.as_ref());
                return Ok((attachment(interface, *hook, why, false, pinned), held));
            }
            Err(error) => {
                tracing::debug!(%error, "trying the next way");
                refused = Some(error);
            }
        }
    }
    Err(refused.unwrap_or_else(|| XdpError::VirtualCable(interface.name.clone())))
}

/// Why this hook: what was asked for, or what stood in the way of the better one.
fn why(hook: Hook, mode: Mode, refused: Option<&XdpError>) -> String {
    match (hook, mode, refused) {
        (Hook::Native, _, _) => NATIVE_WHY.to_owned(),
        (Hook::Generic, Mode::Generic, _) | (Hook::Generic, _, None) => CONFIGURED.to_owned(),
        (Hook::Generic, _, Some(XdpError::NoNativeXdp(_))) => {
            generic_why(Some(XdpFeatures { native: false, zero_copy: false })).to_owned()
        }
        (Hook::Generic, _, Some(error)) => error.to_string(),
    }
}

/// Where an earlier process left the program.
pub(super) fn left(interfaces: &[Interface], pins: Option<&Pins>) -> Vec<(u32, Hook)> {
    let all = interfaces.iter().flat_map(|at| [(at.index, Hook::Native), (at.index, Hook::Generic)]);
    all.filter(|(index, hook)| pins.is_some_and(|pins| pins.link(*index, *hook).exists())).collect()
}

/// In which order to try. The far end of a virtual cable loses what the program sends by the driver,
/// silently, unless somebody prepared it: what leaves by the interface it came by (XDP_TX) is taken only
/// where an XDP program is there, what comes from another one, also where GRO is on. Only an operator can
/// know. Behind the driver, super-packets that never were on a wire would be copied into one piece just to be
/// left to userspace.
fn hooks(interface: &Interface, mode: Mode) -> &'static [Hook] {
    match mode {
        Mode::Native => &[Hook::Native],
        Mode::Generic => &[Hook::Generic],
        Mode::Auto if !interface.virtual_cable => &[Hook::Native, Hook::Generic],
        Mode::Auto | Mode::Userspace => &[],
    }
}

/// Whether the program sees all that tells frames apart. Behind the driver a VLAN's tag is beside the frame,
/// where the program neither sees nor changes it: a packet of the VLAN's that goes out without one would be
/// sent with it, and nobody would get it.
pub(super) fn sees_tags(interface: &Interface, hook: Hook) -> Result<(), XdpError> {
    let vlans = &interface.vlans;
    if hook == Hook::Native || vlans.in_frames || vlans.devices.is_empty() {
        return Ok(());
    }
    Err(XdpError::vlan_tags(&interface.name, vlans))
}

fn attachment(interface: &Interface, hook: Hook, why: String, adopted: bool, pinned: bool) -> Attachment {
    Attachment { interface: interface.name.clone(), hook, why, adopted, pinned }
}

/// The link that an earlier process left, with our program in it.
fn take_over(program: &mut Xdp, interface: &Interface, hook: Hook, pins: &Pins) -> Option<Held> {
    let path = pins.link(interface.index, hook);
    let link = PinnedLink::from_pin(&path).ok()?;
    let link = XdpLink::try_from(FdLink::from(link)).ok()?;
    let replaced = program.attach_to_link(link).and_then(|id| program.take_link(id));
    match replaced {
        Ok(link) => Some(Held::Own(link)),
        Err(error) => {
            // Its interface has gone, and another one has the number now.
            tracing::debug!(%error, interface = interface.name, "an earlier relay's link is of no use");
            let _ = std::fs::remove_file(path);
            None
        }
    }
}

fn attach_new(
    program: &mut Xdp,
    interface: &Interface,
    hook: Hook,
    pins: Option<&Pins>,
) -> Result<XdpLink, XdpError> {
    let mode = match hook {
        Hook::Native => XdpMode::Driver,
        Hook::Generic => XdpMode::Skb,
    };
    let mut attach =
        || program.attach_to_if_index(interface.index, mode).and_then(|id| program.take_link(id));
    let attached = match attach() {
        Err(error) if is_taken(&error) && pins.is_some_and(|pins| pins.free(interface.index, hook)) => {
            attach()
        }
        attached => attached,
    };
    attached.map_err(|error| XdpError::attach(&interface.name, hook, error))
}

/// Pins a link. Where that cannot be (kernels before 5.9 have no XDP links), the program is attached once
/// more, for as long as this process lives.
fn pin(
    program: &mut Xdp,
    link: XdpLink,
    interface: &Interface,
    hook: Hook,
    pins: Option<&Pins>,
) -> Result<Held, XdpError> {
    let Some(pins) = pins else { return Ok(Held::Own(link)) };
    if let Err(error) = pins.make() {
        tracing::debug!(%error, "no folder for the relay's link");
    }
    let pinned = FdLink::try_from(link)
        .map_err(|error| error.to_string())
        .and_then(|link| link.pin(pins.link(interface.index, hook)).map_err(|error| error.to_string()));
    match pinned {
        Ok(link) => Ok(Held::Pinned(link)),
        Err(error) => {
            tracing::warn!(error, interface = interface.name, "the relay's program ends with this process");
            attach_new(program, interface, hook, None).map(Held::Own)
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::super::object::Object;
    use super::*;
    use crate::netdevice::Vlans;

    /// Needs root and the eBPF objects.
    #[test]
    fn behind_a_driver_that_takes_vlans_tags_off_nothing_is_attached() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut object = Object::load(16, None).unwrap();
            let mut try_with = |mode, vlans| {
                let interface = Interface { name: "lo".to_owned(), index: 1, virtual_cable: false, vlans };
                attach(object.program().unwrap(), &interface, mode, None).map(|(at, _)| at.hook)
            };
            let above = Vlans { devices: vec!["lo.7".to_owned()], in_frames: false, by_card: true };
            for mode in [Mode::Auto, Mode::Generic] {
                let refused = try_with(mode, above.clone()).unwrap_err();
                assert!(matches!(refused, XdpError::VlanTags { .. }), "{refused}");
            }
            for harmless in [Vlans::default(), Vlans { in_frames: true, by_card: false, ..above }] {
                assert_eq!(try_with(Mode::Generic, harmless).unwrap(), Hook::Generic);
            }
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }
}
