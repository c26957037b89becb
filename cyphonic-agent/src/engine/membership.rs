//! Who this device is in the overlay: what its certificate says, and what follows from that.

use std::net::{IpAddr, Ipv6Addr};

use cyphonic_common::InterfaceConfig;
use cyphonic_proto::address::Prefix;
use cyphonic_proto::identity::Identity;
use cyphonic_transport::Credentials;

use super::start::failed;
use super::zone;
use crate::config::Config;
use crate::daemon::DaemonError;
use crate::netlink::{Placement, Senders};
use crate::state::DeviceIdentity;

/// See the module.
pub(super) struct Membership {
    pub(super) identity: Identity,
    pub(super) credentials: Credentials,
    /// The overlay's zone.
    pub(super) zone: String,
    /// The device's virtual address, and the prefix of all of them.
    pub(super) address: Ipv6Addr,
    pub(super) prefix: Prefix,
}

impl Membership {
    pub(super) fn of(device: &DeviceIdentity) -> Result<Self, DaemonError> {
        let bad = |error: &dyn std::fmt::Display| failed("this device's certificate", error);
        let identity = Identity::from_der(device.leaf()).map_err(|error| bad(&error))?;
        let address = identity.virtual_address.ok_or_else(|| bad(&"it has no address"))?;
        let zone = zone::of_chain(device.chain())
            .map_err(|error| failed("this device's certificate chain", error))?;
        let credentials = credentials(device, &identity);
        Ok(Self { identity, credentials, zone, address, prefix: Prefix::of(address) })
    }

    /// What its interface is to this host. Where the device stands for a machine, the host's programs have
    /// another agent, or none.
    ///
    /// # Errors
    /// The machine would be a device of the overlay: this one perhaps, which would ask itself.
    pub(super) fn placement(&self, config: &Config) -> Result<Placement, DaemonError> {
        let (address, prefix) = (self.address, self.prefix);
        let senders = match &config.stands_for {
            None => Senders::Host,
            Some(machine) => match machine.address {
                IpAddr::V6(v6) if prefix.contains(v6) => {
                    let why = "it is of the overlay's prefix: give the machine's own address";
                    return Err(failed("`stands_for.address`", why));
                }
                IpAddr::V4(_) | IpAddr::V6(_) => Senders::Own,
            },
        };
        Ok(Placement { address, prefix, senders })
    }

    /// What the programs and the ring are told of it.
    pub(super) fn overlay(&self) -> Result<InterfaceConfig, DaemonError> {
        InterfaceConfig::new(self.address.octets(), self.prefix.address().octets(), Prefix::LENGTH)
            .map_err(|error| failed("this device's address", error))
    }
}

pub(super) fn credentials(device: &DeviceIdentity, identity: &Identity) -> Credentials {
    Credentials {
        chain: device.chain().to_vec(),
        key: device.key().clone_key(),
        root: device.root().clone(),
        network: identity.network_id,
    }
}
