//! The networks that a device roams between, and how it gets from one to another.

use std::fmt;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::topology::{Interface, Network};
use cyphonic_lab::{Lab, Topology};

/// A network that a device can be attached to. In the topology it is called `DEVICE-PLACE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    /// Public addresses of both families.
    Dual,
    /// Public IPv4 alone.
    V4a,
    /// And another such network.
    V4b,
    /// Public IPv6 alone.
    V6a,
    /// And another such network.
    V6b,
    /// IPv4 behind a NAT of the device's own.
    Nat,
}

impl Place {
    /// All of them.
    pub(super) const ALL: [Self; 6] = [Self::Dual, Self::V4a, Self::V4b, Self::V6a, Self::V6b, Self::Nat];

    fn network(self) -> &'static str {
        match self {
            Self::Dual => "dual",
            Self::V4a => "v4a",
            Self::V4b => "v4b",
            Self::V6a => "v6a",
            Self::V6b => "v6b",
            Self::Nat => "lan",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dual => "dual",
            Self::V4a | Self::V4b => "v4",
            Self::V6a | Self::V6b => "v6",
            Self::Nat => "nat",
        })
    }
}

/// In which order a device changes networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Style {
    /// The new one is there before the old one goes, as from mobile to wireless.
    MakeFirst,
    /// The old one goes first, as when a cable is moved.
    BreakFirst,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MakeFirst => "make first",
            Self::BreakFirst => "break first",
        })
    }
}

/// A virtual cable that is plugged in carries packets at both of its ends after this.
pub(super) const CABLE: Duration = Duration::from_millis(250);

/// For the kernel to take an address as its own.
const OWN: Duration = Duration::from_secs(5);

/// A device's way into one network.
#[derive(Debug, Clone)]
struct Attachment {
    place: Place,
    device: String,
    /// Addresses with their prefix lengths, and the gateways.
    addresses: Vec<String>,
    gateways: Vec<String>,
}

impl Attachment {
    fn attach(&self, batch: &mut String) {
        let Self { device, .. } = self;
        let _ = writeln!(batch, "link set {device} up");
        for address in &self.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            let _ = writeln!(batch, "addr add {address} dev {device}{nodad}");
        }
    }

    /// The kernel takes an IPv6 address as its own a moment after it was given, and drops what arrives for it
    /// before: among it, on a cable without length, the gateway's neighbour advertisement, which it then
    /// asks for again a second later. So this is a step of its own, taken once it has
    /// ([`Roamer::await_own`]), as where addresses come from the network.
    fn route(&self, batch: &mut String) {
        let Self { device, .. } = self;
        for gateway in &self.gateways {
            let _ = writeln!(batch, "route replace default via {gateway} dev {device}");
        }
    }

    fn detach(&self, batch: &mut String) {
        // The kernel takes routes and IPv6 addresses of an interface that goes down.
        let Self { device, .. } = self;
        let _ = writeln!(batch, "link set {device} down\naddr flush dev {device}");
    }
}

/// A device that roams.
pub(super) struct Roamer<'a> {
    lab: &'a Lab,
    node: String,
    attachments: Vec<Attachment>,
    at: Place,
}

impl<'a> Roamer<'a> {
    /// The device called `node`, detached from all networks but its first.
    pub(super) fn new(lab: &'a Lab, topology: &Topology, node: &str) -> Result<Self> {
        let interfaces = topology.interfaces(node).iter().enumerate();
        let attachments: Vec<_> = interfaces
            .filter_map(|(index, interface)| {
                let place = Place::ALL
                    .into_iter()
                    .find(|place| interface.network == format!("{node}-{}", place.network()))?;
                let network = topology.networks.get(&interface.network)?;
                let device = topology.interface_name(node, index);
                Some(Attachment {
                    place,
                    device,
                    addresses: addresses(interface, network),
                    gateways: gateways(topology, node, interface),
                })
            })
            .collect();
        let roamer = Self { lab, node: node.to_owned(), attachments, at: Place::Dual };
        let mut batch = String::new();
        roamer.attachments.iter().for_each(|attachment| attachment.detach(&mut batch));
        roamer.run(&batch)?;
        roamer.attach(Place::Dual)?;
        Ok(roamer)
    }

    /// Where it is.
    pub(super) fn at(&self) -> Place {
        self.at
    }

    /// Plugs it into another network, before it has an address there, as wireless associates; [`CABLE`] later
    /// it is in.
    pub(super) fn approach(&self, place: Place) -> Result<()> {
        let device = &self.find(place)?.device;
        self.run(&format!("link set {device} up\n"))
    }

    /// Gets it to another network. With [`Style::MakeFirst`] this is but the first half:
    /// [`leave`](Self::leave) is the second.
    pub(super) fn enter(&mut self, place: Place, style: Style) -> Result<()> {
        let mut batch = String::new();
        if style == Style::BreakFirst {
            self.others(place).for_each(|other| other.detach(&mut batch));
        }
        self.run(&batch)?;
        self.at = place;
        self.attach(place)
    }

    fn attach(&self, place: Place) -> Result<()> {
        let attachment = self.find(place)?;
        let (mut addresses, mut routes) = (String::new(), String::new());
        attachment.attach(&mut addresses);
        attachment.route(&mut routes);
        self.run(&addresses)?;
        self.await_own(attachment)?;
        self.run(&routes)
    }

    fn await_own(&self, attachment: &Attachment) -> Result<()> {
        let ips = attachment.addresses.iter().filter_map(|address| address.split('/').next());
        let v6: Vec<&str> = ips.filter(|ip| ip.contains(':')).collect();
        let begun = Instant::now();
        while begun.elapsed() < OWN {
            let mut show = self.lab.command(&self.node, "ip")?;
            show.args(["-6", "route", "show", "table", "local", "dev", &attachment.device]);
            let own = check(&mut show, OWN, &Cancel::default())?;
            if v6.iter().all(|ip| own.contains(ip)) {
                return Ok(());
            }
        }
        bail!("{} has not taken {v6:?} as its own", self.node)
    }

    /// Leaves all networks but the one that it entered last.
    pub(super) fn leave(&self) -> Result<()> {
        let mut batch = String::new();
        self.others(self.at).for_each(|other| other.detach(&mut batch));
        self.run(&batch)
    }

    /// Leaves every network.
    pub(super) fn leave_all(&self) -> Result<()> {
        let mut batch = String::new();
        self.attachments.iter().for_each(|attachment| attachment.detach(&mut batch));
        self.run(&batch)
    }

    fn others(&self, place: Place) -> impl Iterator<Item = &Attachment> {
        self.attachments.iter().filter(move |attachment| attachment.place != place)
    }

    fn find(&self, place: Place) -> Result<&Attachment> {
        let found = self.attachments.iter().find(|attachment| attachment.place == place);
        found.with_context(|| format!("{} has no network `{}-{}`", self.node, self.node, place.network()))
    }

    fn run(&self, batch: &str) -> Result<()> {
        Ok(self.lab.machine(&self.node)?.ip(batch)?)
    }
}

fn addresses(interface: &Interface, network: &Network) -> Vec<String> {
    let v4 = interface.ipv4.zip(network.ipv4).map(|(ip, net)| format!("{ip}/{}", net.prefix_len()));
    let v6 = interface.ipv6.zip(network.ipv6).map(|(ip, net)| format!("{ip}/{}", net.prefix_len()));
    v4.into_iter().chain(v6).collect()
}

/// The addresses of the one router on the network.
fn gateways(topology: &Topology, node: &str, interface: &Interface) -> Vec<String> {
    let routers = topology.routers.keys().filter(|router| *router != node);
    let on_network =
        |router: &String| topology.interfaces(router).iter().find(|other| other.network == interface.network);
    let Some(gateway) = routers.filter_map(on_network).next() else { return Vec::new() };
    let v4 = gateway.ipv4.filter(|_| interface.ipv4.is_some()).map(|ip| ip.to_string());
    let v6 = gateway.ipv6.filter(|_| interface.ipv6.is_some()).map(|ip| ip.to_string());
    v4.into_iter().chain(v6).collect()
}
