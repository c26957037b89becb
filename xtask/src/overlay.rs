//! An overlay in a lab: the programs, the cloud, the devices, and what is asked of them.
//!
//! Every program is a process of its own in the namespace of its node, with a configuration file a user could
//! have written. A verb builds a [`Lab`](cyphonic_lab::Lab), starts an [`Overlay`] in it and asks its
//! [devices](Device). When the lab goes, everything in it ends.

mod capture;
mod cloud;
mod control;
mod device;
mod dissector;
mod fig5;
mod programs;
mod progress;
mod service;
mod verdict;

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::Cancel;
use cyphonic_lab::{Lab, LabError, Role, Topology};

pub(crate) use self::capture::Capture;
pub(crate) use self::cloud::{Administration, Cloud, Part};
pub(crate) use self::device::{AgentSettings, Device, Route};
pub(crate) use self::fig5::{DIRECT, Fig5, Pair, RELAYED, RoundTrips, STREAM};
pub(crate) use self::programs::{Programs, become_root};
pub(crate) use self::progress::Progress;
pub(crate) use self::service::Service;
pub(crate) use self::verdict::{Verdict, conclude, median};

/// The overlay's zone.
pub(crate) const ZONE: &str = "cyphonic.internal";

/// A flag that Ctrl-C and SIGTERM set, so that the lab goes whatever happens.
pub(crate) fn watch_signals() -> Result<Cancel> {
    let cancel = Cancel::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, cancel.flag()).context("cannot watch for Ctrl-C")?;
    }
    Ok(cancel)
}

/// The processes of an overlay.
pub(crate) struct Overlay {
    settings: AgentSettings,
    relay: String,
    cloud: Option<Cloud>,
    devices: Vec<Device>,
}

impl Overlay {
    /// One that has not been started: every agent will be configured to `settings`, and the TRS to relay by
    /// the mode `relay`.
    pub(crate) fn new(settings: AgentSettings, relay: &str) -> Self {
        Self { settings, relay: relay.to_owned(), cloud: None, devices: Vec::new() }
    }

    /// Founds the overlay, starts its services, and enrols an agent on every device of the topology; returns
    /// once all are online. Where it fails, what has been started is still there to be asked for its
    /// [logs](Self::show_logs).
    pub(crate) fn start(
        &mut self,
        lab: &Lab,
        topology: &Topology,
        programs: &Programs,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        self.launch(lab, topology, programs, progress, cancel)?;
        for device in &mut self.devices {
            device.wait_online(cancel)?;
            let address = device.learn_address(cancel)?;
            device.check_programs(cancel)?;
            let ring = device.ring(cancel)?;
            if self.settings.ring != "auto" && ring != self.settings.ring {
                bail!("{} has the ring `{ring}`, not `{}`", device.fqdn(), self.settings.ring);
            }
            progress.detail(&format!("{:<28} {address}, ring {ring}", device.fqdn()));
        }
        progress.done("every device is enrolled, has its name and its virtual address, and is online");
        Ok(())
    }

    /// The same, without waiting for the agents.
    pub(crate) fn launch(
        &mut self,
        lab: &Lab,
        topology: &Topology,
        programs: &Programs,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let cloud =
            self.cloud.insert(Cloud::start_with(lab, topology, programs, &self.relay, progress, cancel)?);
        for (node, host) in topology.hosts_with(Role::Device) {
            let name = host.device.as_deref().unwrap_or(node);
            let token = cloud.administration().create_token(name, cancel)?;
            let addresses = cloud.addresses();
            let device = Device::enrol(lab, node, name, &token, addresses, &self.settings, programs)?;
            self.devices.push(device);
        }
        progress.done(&format!("{} agents started, each with a one-time token", self.devices.len()));
        Ok(())
    }

    /// The services, once started.
    pub(crate) fn cloud(&self) -> Option<&Cloud> {
        self.cloud.as_ref()
    }

    /// The same, to kill and restart them.
    pub(crate) fn cloud_mut(&mut self) -> Option<&mut Cloud> {
        self.cloud.as_mut()
    }

    /// The devices, in the order of their nodes' names.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The same, to restart and stop them.
    pub(crate) fn devices_mut(&mut self) -> &mut [Device] {
        &mut self.devices
    }

    /// Prints how every log ends.
    pub(crate) fn show_logs(&self) {
        let cloud = self.cloud.iter().flat_map(Cloud::services);
        for service in cloud.chain(self.devices.iter().filter_map(Device::service)) {
            println!("--- {}:\n{}", service.describe(), service.log_tail(12));
        }
    }

    /// Shows the logs, unless it was the user who ended it.
    pub(crate) fn explain(&self, error: &anyhow::Error) {
        if !matches!(error.downcast_ref::<LabError>(), Some(LabError::Interrupted)) {
            self.show_logs();
        }
    }

    /// Ends it and its lab. In a lab of namespaces everything ends at once; on machines of their own, one
    /// after the other.
    pub(crate) fn end(self, lab: Lab) -> Result<()> {
        if lab.is_remote() {
            drop(self);
            return Ok(lab.down()?);
        }
        lab.down()?;
        drop(self);
        Ok(())
    }

    /// Lets everything run on when this value is gone.
    pub(crate) fn release(self) {
        self.cloud.into_iter().for_each(Cloud::release);
        self.devices.into_iter().for_each(Device::release);
    }
}
