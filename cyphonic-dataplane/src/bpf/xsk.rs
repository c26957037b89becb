//! XDP programs that steer packets to AF_XDP sockets.

use std::os::fd::AsRawFd;

use aya::maps::{Array, MapError, XskMap};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use cyphonic_common::steer::{MAX_QUEUES, UnderlayConfig, name, socket_index};

use super::cards::CardSlot;
use super::classifier::{EgressClassifier, Programs};
use super::error::BpfError;
use super::object::Object;
use super::pod::Value;
use crate::errno::errno;
use crate::xsk::XskRx;

/// Programs in front of AF_XDP sockets. They run in the driver or not at all: the kernel's generic mode comes
/// after packets were merged into larger ones (GRO), and is slower than the sockets it would replace.
///
/// In which order: attach, open the sockets ([`Xsk::open`](crate::xsk::Xsk::open)), give them frames, then
/// name them to the programs here. Between attaching and naming, what applications send is dropped.
impl Programs {
    /// Attaches to `far_end` of the veth pair that is the virtual interface: what applications send is judged
    /// and given to its queue's socket.
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do.
    pub fn attach_virtual(&mut self, far_end: &str) -> Result<(), BpfError> {
        attach(self.object(), name::VIRTUAL, far_end)
    }

    /// Has `queue` of the virtual interface's far end deliver to a socket that is bound to it.
    ///
    /// # Errors
    /// There is no such queue, or the kernel refuses.
    pub fn set_virtual_socket(&mut self, queue: u32, socket: &XskRx) -> Result<(), BpfError> {
        set_socket(self.object(), name::VIRTUAL_SOCKETS, Some(queue), socket)
    }
}

/// The program on network cards, which goes on some and off others while the ring runs.
impl EgressClassifier {
    /// Attaches to a network card: tunnels' packets to the node's UDP port are given to their worker's
    /// socket, as far as [`KernelTables`](super::KernelTables) knows their connection IDs. May be called
    /// for several cards, each once: `card` is the kernel's number for the interface.
    ///
    /// # Errors
    /// [`BpfError`], whose text says what to do. Packets then arrive at the UDP port as before.
    pub fn attach_underlay(
        &mut self,
        interface: &str,
        card: u32,
        port: u16,
    ) -> Result<UnderlayLink, BpfError> {
        let slot = self.cards().take(interface, card)?;
        let object = self.object();
        let failed = |source| BpfError::Map { map: name::CONFIG, source };
        let map = object.map_mut(name::CONFIG)?;
        let mut map: Array<_, Value<UnderlayConfig>> = Array::try_from(map).map_err(failed)?;
        map.set(0, Value(UnderlayConfig::new(port)), 0).map_err(failed)?;
        let xdp = load(object, name::UNDERLAY)?;
        let link = xdp.attach(interface, XdpMode::Driver).and_then(|id| xdp.take_link(id));
        let link = link.map_err(|error| refused(name::UNDERLAY, interface, error))?;
        Ok(UnderlayLink { _link: link, slot })
    }

    /// Has `queue` of a network card deliver the packets of `worker` to a socket that is bound to it.
    ///
    /// # Errors
    /// There is no such queue or worker, or the kernel refuses.
    pub fn set_underlay_socket(
        &mut self,
        card: &UnderlayLink,
        queue: u32,
        worker: u32,
        socket: &impl AsRawFd,
    ) -> Result<(), BpfError> {
        set_underlay_socket(self.object(), &card.slot, queue, worker, socket)
    }
}

/// The program on one network card. Detached when dropped: then all packets go to the stack again.
#[derive(Debug)]
pub struct UnderlayLink {
    // Dropped first: nobody else has the slot while the program runs.
    _link: XdpLink,
    slot: CardSlot,
}

pub(super) fn set_underlay_socket(
    object: &mut Object,
    slot: &CardSlot,
    queue: u32,
    worker: u32,
    socket: &impl AsRawFd,
) -> Result<(), BpfError> {
    set_socket(object, name::UNDERLAY_SOCKETS, socket_index(slot.number(), queue, worker), socket)
}

fn attach(object: &mut Object, program: &'static str, interface: &str) -> Result<(), BpfError> {
    let xdp = load(object, program)?;
    match xdp.attach(interface, XdpMode::Driver) {
        Ok(_) => {
            tracing::debug!(program, interface, "XDP program attached");
            Ok(())
        }
        Err(error) => Err(refused(program, interface, error)),
    }
}

/// The program, verified by the kernel.
pub(super) fn load<'a>(object: &'a mut Object, program: &'static str) -> Result<&'a mut Xdp, BpfError> {
    let xdp = object.xdp(program)?;
    if xdp.fd().is_err() {
        xdp.load().map_err(|source| BpfError::from_program(program, source))?;
    }
    Ok(xdp)
}

fn set_socket(
    object: &mut Object,
    map: &'static str,
    index: Option<u32>,
    socket: &impl AsRawFd,
) -> Result<(), BpfError> {
    let failed = |source| BpfError::Map { map, source };
    let out_of_bounds = MapError::OutOfBounds { index: u32::MAX, max_entries: MAX_QUEUES };
    let index = index.ok_or_else(|| failed(out_of_bounds))?;
    let mut sockets = XskMap::try_from(object.map_mut(map)?).map_err(failed)?;
    sockets.set(index, socket.as_raw_fd(), 0).map_err(failed)
}

fn refused(program: &'static str, interface: &str, source: ProgramError) -> BpfError {
    let interface = interface.to_owned();
    match (errno(&source), &source) {
        (Some(libc::EPERM | libc::EACCES), _) => BpfError::NotPermitted { source: source.into() },
        (Some(libc::ENODEV), _) | (_, ProgramError::UnknownInterface { .. }) => {
            BpfError::NoInterface { interface }
        }
        (code, _) => {
            let advice = match code {
                Some(libc::EBUSY) => {
                    "another program has it: if that is not another agent's of this host, detach it (`ip link set dev … xdp off`)"
                }
                Some(libc::ERANGE) => "its MTU is too large for XDP: lower it to 3500 or less",
                Some(libc::EOPNOTSUPP) => "its driver has no native XDP",
                _ => "see the kernel's answer",
            };
            BpfError::AttachXdp { program, interface, advice, source: Box::new(source) }
        }
    }
}
