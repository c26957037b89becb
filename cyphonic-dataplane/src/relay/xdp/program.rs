//! The program on its interfaces, which come and go.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cyphonic_common::relay::RelayConfig;
use cyphonic_common::relay::place::pairs_for;

use super::attach::{self, Held};
use super::interfaces::{self, Interface};
use super::object::{LEGS_MAPS, Object};
use super::pins::Pins;
use super::routing::Routing;
use super::watch::Change;
use super::{Attachment, Hook, Mode, XdpError, XdpOptions};
use crate::netdevice::{self, Links, Vlans, XdpRedirection};

/// How long an interface that did not take the program is left alone, and how long at most: twice as long
/// each time. Some network cards lose their link for a moment when they try.
const FIRST_PATIENCE: Duration = Duration::from_mins(1);
const LAST_PATIENCE: Duration = Duration::from_hours(1);

/// Program and maps in the kernel, and what keeps the program on interfaces.
pub(super) struct Program {
    // Dropped before the program.
    attached: Vec<Attached>,
    pub(super) object: Object,
    /// Without what depends on where it is.
    config: RelayConfig,
    mode: Mode,
    named: Option<Vec<String>>,
    addresses: Vec<IpAddr>,
    /// By which interfaces were chosen last, where they are not named.
    wanted: Vec<IpAddr>,
    pins: Option<Pins>,
    routing: Routing,
    /// What is wrong with that was told.
    routing_failed: bool,
    /// Interfaces that did not take it, by their numbers.
    refused: HashMap<u32, Refusal>,
    targets: Vec<u32>,
    /// What could not be followed, for want of descriptors perhaps.
    unfollowed: Change,
    stopped: bool,
}

/// The program on one interface.
struct Attached {
    index: u32,
    virtual_cable: bool,
    attachment: Attachment,
    _held: Held,
}

/// An interface did not take the program. It is not tried again before what stands above it changes, or the
/// time is over: another program may have been there, or its driver may have been busy.
#[derive(Debug)]
struct Refusal {
    vlans: Vlans,
    at: Instant,
    patience: Duration,
}

impl Refusal {
    /// Once more, if there was one for the same.
    fn after(before: Option<Self>, vlans: Vlans) -> Self {
        let before = before.filter(|before| before.vlans == vlans);
        let patience = before.map_or(FIRST_PATIENCE, |before| (before.patience * 2).min(LAST_PATIENCE));
        Self { vlans, at: Instant::now(), patience }
    }

    fn is_over(&self) -> bool {
        self.at.elapsed() >= self.patience
    }
}

impl Program {
    /// Loaded and configured.
    pub(super) fn load(
        options: &XdpOptions,
        interfaces: &[Interface],
        pins: Option<&Pins>,
    ) -> Result<Self, XdpError> {
        let capacity = u32::try_from(options.legs).unwrap_or(u32::MAX);
        let config = RelayConfig::new(options.listen.port(), false).with_pairs(pairs_for(capacity));
        let mut this = Self {
            attached: Vec::new(),
            object: Object::load(capacity, pins)?,
            config,
            mode: options.mode,
            named: options.interfaces.clone(),
            addresses: options.addresses.clone(),
            wanted: Vec::new(),
            pins: pins.cloned(),
            routing: Routing::default(),
            routing_failed: false,
            refused: HashMap::new(),
            targets: Vec::new(),
            unfollowed: Change::Nothing,
            stopped: false,
        };
        // It may go in an earlier one's place, where packets are arriving.
        this.expect(interfaces)?;
        Ok(this)
    }

    /// On all interfaces; with [`Mode::Auto`], on those that take it, if there is one.
    pub(super) fn attach(&mut self, interfaces: &[Interface]) -> Result<(), XdpError> {
        self.routing.enable(self.pins.as_ref())?;
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

    /// From here on, what is dropped goes on in the kernel, with what it needs of the host.
    pub(super) fn stay(&mut self) {
        self.routing.keep();
    }

    /// Off all interfaces, for good.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.attached.clear();
        self.routing.restore(self.pins.as_ref());
    }

    /// Something has changed: goes off interfaces that are gone, or where it would do harm now, and on those
    /// that are new, or made anew, or refused it long ago. Forwarding is switched on again where somebody
    /// switched it off.
    pub(super) fn follow(&mut self, change: Change) {
        if self.stopped {
            return;
        }
        self.keep_routing();
        let change = change.max(self.unfollowed);
        if !self.may_concern(change) {
            return;
        }
        let followed = self.go(change);
        self.unfollowed = if followed.is_ok() { Change::Nothing } else { change };
        if let Err(error) = followed {
            tracing::warn!(%error, "the relay does not follow a change of the interfaces yet");
        }
        // Those that were not tried now are down, or not wanted any more.
        self.refused.retain(|_, refusal| !refusal.is_over());
    }

    fn keep_routing(&mut self) {
        let switched = self.routing.enable(self.pins.as_ref());
        let failed_before = std::mem::replace(&mut self.routing_failed, switched.is_err());
        match switched {
            Ok(families) => {
                for family in families {
                    tracing::warn!(
                        family,
                        "somebody switched forwarding off for loopback, and packets were relayed in userspace: it is on again"
                    );
                }
            }
            Err(_) if failed_before => {}
            Err(error) => tracing::warn!(%error, "packets are relayed in userspace"),
        }
    }

    /// Whether a change, or time, may have made other interfaces the right ones. A host may hear of thousands
    /// of routes, and have thousands of interfaces.
    fn may_concern(&self, change: Change) -> bool {
        let chosen_otherwise = match change {
            Change::Nothing => false,
            Change::Routes => self.named.is_none() && interfaces::wanted(&self.addresses) != self.wanted,
            Change::Addresses => self.named.is_none(),
            Change::Links => true,
        };
        chosen_otherwise || self.refused.values().any(Refusal::is_over)
    }

    fn go(&mut self, change: Change) -> Result<(), XdpError> {
        let listed = (change == Change::Links).then(Links::list).transpose().map_err(XdpError::Interfaces)?;
        if let Some(links) = &listed {
            self.leave(links)?;
        }
        self.join(listed)
    }

    fn leave(&mut self, links: &Links) -> Result<(), XdpError> {
        self.refused.retain(|index, _| links.name(*index).is_some());
        let before = std::mem::take(&mut self.attached);
        let count = before.len();
        for at in before {
            let interface = links.name(at.index).and_then(|name| interfaces::open(name, links));
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
            if let Some(interface) = interface {
                self.refused.insert(interface.index, Refusal::after(None, interface.vlans));
            }
        }
        if self.attached.len() < count { self.settle() } else { Ok(()) }
    }

    /// With the interfaces as they are now if they may have changed.
    fn join(&mut self, listed: Option<Links>) -> Result<(), XdpError> {
        let wanted = interfaces::wanted(&self.addresses);
        let names = interfaces::names(self.named.as_deref(), &wanted).map_err(XdpError::Interfaces)?;
        self.wanted = wanted;
        let anew = listed.is_some();
        let may_join = |name: &String| {
            netdevice::index(name).is_ok_and(|index| {
                let refusal = self.refused.get(&index);
                self.attached.iter().all(|at| at.index != index)
                    && refusal.is_none_or(|refusal| anew || refusal.is_over())
            })
        };
        let new: Vec<_> = names.into_iter().filter(may_join).collect();
        if new.is_empty() {
            return Ok(());
        }
        let links = listed.map_or_else(Links::list, Ok).map_err(XdpError::Interfaces)?;
        let mut tried = false;
        for interface in new.iter().filter_map(|name| interfaces::open_up(name, &links)) {
            let refusal = self.refused.get(&interface.index).filter(|before| before.vlans == interface.vlans);
            let again = refusal.is_some();
            if refusal.is_some_and(|refusal| !refusal.is_over()) {
                continue;
            }
            self.expect(std::slice::from_ref(&interface))?;
            match self.attach_to(&interface) {
                Ok(()) => {
                    let on = self.attached.last().map(|at| at.attachment.to_string());
                    tracing::info!(interface = on, "relaying in XDP here too");
                }
                Err(error) if again => {
                    tracing::debug!(%error, interface = interface.name, "its packets are still relayed in userspace");
                }
                Err(error) => {
                    tracing::warn!(%error, interface = interface.name, "its packets are relayed in userspace");
                }
            }
            tried = true;
        }
        if tried { self.settle() } else { Ok(()) }
    }

    /// Before the program is there: packets may arrive before it is known how it hangs there. Until it is
    /// known that none of them come merged, they may be.
    fn expect(&mut self, interfaces: &[Interface]) -> Result<(), XdpError> {
        let virtual_cables = interfaces.iter().any(|interface| interface.virtual_cable);
        self.configure(self.mode != Mode::Native, virtual_cables)
    }

    fn attach_to(&mut self, interface: &Interface) -> Result<(), XdpError> {
        let attached = attach::attach(self.object.program()?, interface, self.mode, self.pins.as_ref());
        let before = self.refused.remove(&interface.index);
        let (attachment, held) = attached.inspect_err(|_| {
            self.refused.insert(interface.index, Refusal::after(before, interface.vlans.clone()));
        })?;
        let Interface { index, virtual_cable, .. } = *interface;
        self.attached.push(Attached { index, virtual_cable, attachment, _held: held });
        Ok(())
    }

    /// What the program must know of where it is.
    fn settle(&mut self) -> Result<(), XdpError> {
        let places: Vec<_> = self.attached.iter().map(|at| (at.index, at.attachment.hook)).collect();
        self.configure(places.iter().any(|(_, hook)| *hook == Hook::Generic), false)?;
        self.set_targets(redirect_targets(&places, redirection))
    }

    /// For where it is, or may be at any moment.
    fn configure(&mut self, merged: bool, virtual_cables: bool) -> Result<(), XdpError> {
        let config = self.config.with_merged(merged);
        let virtual_cables = virtual_cables || self.attached.iter().any(|at| at.virtual_cable);
        self.object.configure(if virtual_cables { config.over_virtual_cables() } else { config })
    }

    fn set_targets(&mut self, targets: Vec<u32>) -> Result<(), XdpError> {
        self.object.set_egress(&targets, &self.targets)?;
        self.targets = targets;
        Ok(())
    }
}

/// Frames can be redirected from anywhere to a driver that runs the program and sends what others redirect,
/// unless one of the drivers that run it would drop what it is to redirect; behind drivers, from anywhere to
/// anywhere else that is behind its driver, but not from a driver to there. Of a driver that the kernel tells
/// nothing of, the best is believed.
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
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::netdevice::XdpPrograms;

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

    /// Needs root and the eBPF objects.
    #[test]
    fn the_program_knows_where_it_is_and_tries_again_where_it_was_not_taken() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let ip = |line: &str| {
                assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
            };
            // Bridges take programs behind their driver; one end of a virtual cable is refused.
            for line in ["card0 type bridge", "card1 type bridge", "ra type veth peer name rb"] {
                ip(&format!("link add {line}"));
            }
            let named = ["card0", "card1", "ra"].map(str::to_owned);
            named.iter().for_each(|name| ip(&format!("link set {name} up")));
            let options = |mode, named: &[String]| XdpOptions {
                mode,
                interfaces: Some(named.to_vec()),
                addresses: Vec::new(),
                listen: ([0; 4], 4433).into(),
                legs: 16,
                pins: None,
            };
            let start = |mode, named: &[String]| {
                let interfaces = interfaces::choose(Some(named), &[]).unwrap();
                let mut program = Program::load(&options(mode, named), &interfaces, None).unwrap();
                assert_eq!(
                    program.object.configured().always_redirects(),
                    interfaces.iter().any(|at| at.virtual_cable)
                );
                program.attach(&interfaces).unwrap();
                program
            };
            let names = |program: &Program| -> Vec<_> {
                program.attachments().into_iter().map(|at| at.interface).collect()
            };

            // A command that starts at this moment may hold what was dropped.
            let await_nothing_on = |name| {
                let deadline = Instant::now() + Duration::from_secs(10);
                while netdevice::xdp_programs(name).unwrap() != XdpPrograms::default() {
                    assert!(Instant::now() < deadline, "{name} is not free");
                    std::thread::sleep(Duration::from_millis(1));
                }
            };

            let other = start(Mode::Generic, &named[1..2]);
            let mut program = start(Mode::Auto, &named);
            assert_eq!(names(&program), ["card0"]);
            assert!(!program.object.configured().always_redirects(), "it is on no virtual cable");
            assert!(program.object.configured().merged());

            drop(other);
            await_nothing_on("card1");
            for change in [Change::Nothing, Change::Routes, Change::Addresses, Change::Links] {
                program.follow(change);
            }
            assert_eq!(names(&program), ["card0"], "it has just refused");
            let card1 = netdevice::index("card1").unwrap();
            program.refused.get_mut(&card1).unwrap().patience = Duration::ZERO;
            program.follow(Change::Nothing);
            assert_eq!(names(&program), ["card0", "card1"]);
            assert!(!program.refused.contains_key(&card1));

            // It is forgotten while it is down.
            ip("link set ra down");
            let ra = netdevice::index("ra").unwrap();
            program.refused.get_mut(&ra).unwrap().patience = Duration::ZERO;
            program.follow(Change::Nothing);
            assert!(!program.may_concern(Change::Routes) && program.refused.is_empty());
            ip("link set ra up");

            ip("link del card1");
            // With names only interfaces matter.
            for change in [Change::Nothing, Change::Routes, Change::Addresses] {
                program.follow(change);
                assert_eq!(names(&program).len(), 2, "{change:?}");
            }
            // As if that had failed before.
            program.unfollowed = Change::Links;
            program.follow(Change::Nothing);
            assert_eq!((names(&program), program.unfollowed), (vec!["card0".to_owned()], Change::Nothing));
            drop(program);
            await_nothing_on("card0");

            let mut program = start(Mode::Generic, &named[..1]);
            program.named = Some(vec!["card0".to_owned(), "ra".to_owned()]);
            program.follow(Change::Links);
            assert_eq!(names(&program), ["card0", "ra"]);
            assert!(program.object.configured().always_redirects());
            ip("link del ra");
            program.follow(Change::Links);
            assert!(!program.object.configured().always_redirects());
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }

    #[test]
    fn who_refuses_again_is_left_alone_for_longer() {
        let mut refusal = Refusal::after(None, Vlans::default());
        let mut patience = Vec::new();
        for _ in 0..8 {
            patience.push(refusal.patience.as_secs() / 60);
            refusal = Refusal::after(Some(refusal), Vlans::default());
        }
        assert_eq!(patience, [1, 2, 4, 8, 16, 32, 60, 60]);
        let other = Vlans { by_card: true, ..Vlans::default() };
        assert_eq!(Refusal::after(Some(refusal), other).patience, FIRST_PATIENCE);
    }
}
