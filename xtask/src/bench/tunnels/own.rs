//! This project's own agents, enrolled at a cloud beside the router, on a direct path.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cyphonic_lab::process::Daemon;

use super::site::Site;
use super::system::Running;
use crate::overlay::{AgentSettings, Cloud, Device, Progress, Route};

/// The cloud and the two devices, which enrol once and are started for each visit.
#[derive(Default)]
pub(super) struct Overlay {
    cloud: Option<Cloud>,
    devices: Vec<Device>,
}

impl Overlay {
    /// Starts both agents with a ring; `keep_awake` is `off` or for how long.
    pub(super) fn start(&mut self, site: &Site<'_>, ring: &str, keep_awake: &str) -> Result<Running> {
        if self.cloud.is_none() {
            let (programs, progress) = (&site.programs.own, Progress::start());
            self.cloud = Some(Cloud::start(&site.lab, &site.topology, programs, &progress, site.cancel)?);
        }
        if self.devices.len() < 2 {
            self.devices.clear();
            self.enrol(site)?;
        }
        for device in &mut self.devices {
            device.configure("ring", ring)?;
            device.configure("keep_awake", keep_awake)?;
            device.restart(&site.lab, site.cancel)?;
        }
        for device in &self.devices {
            device.check_programs(site.cancel)?;
            if keep_awake != "off" {
                device.check_awake(site.cancel)?;
            }
        }
        let [a, b] = self.devices.as_mut_slice() else { bail!("there are not two devices") };
        a.learn_address(site.cancel)?;
        let target = IpAddr::V6(b.learn_address(site.cancel)?);
        a.resolve(b, site.cancel)?;
        let route = a.route_to(b, site.cancel)?;
        if !matches!(route, Route::Direct { .. }) {
            bail!("the two devices have {} between them, not a direct path", route.describe());
        }
        let others = [&*a, &*b].into_iter().filter_map(|device| device.daemon().map(Daemon::pid)).collect();
        Ok(Running { target, daemons: Vec::new(), others })
    }

    /// Stops the agents. The cloud runs on: nothing passes it.
    pub(super) fn stop(&mut self) {
        self.devices.iter_mut().for_each(Device::stop);
    }

    fn enrol(&mut self, site: &Site<'_>) -> Result<()> {
        let cloud = self.cloud.as_ref().context("there is no cloud")?;
        for (node, name) in [("a", "a.bench"), ("b", "b.bench")] {
            let token = cloud.administration().create_token(name, site.cancel)?;
            let programs = &site.programs.own;
            let settings = AgentSettings::default();
            let mut device =
                Device::enrol(&site.lab, node, name, &token, cloud.addresses(), &settings, programs)?;
            device.wait_online(site.cancel)?;
            self.devices.push(device);
        }
        Ok(())
    }
}
