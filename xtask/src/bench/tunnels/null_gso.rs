//! The tunnel without keys.

use std::net::SocketAddr;

use anyhow::Result;

use super::site::{Side, Site};
use super::system::{Running, wait_for_device};

const DEVICE: &str = "null0";
const PORT: u16 = 4789;
/// As large as the plain network lets it be: IPv4's and UDP's headers go off.
const MTU: u16 = 1472;

pub(super) fn start(site: &Site<'_>) -> Result<Running> {
    let mut running = Running::without_programs(Side::B.inner().parse()?);
    for side in Side::BOTH {
        let mut command = site.lab.command(side.node(), &site.programs.null_gso)?;
        let peer = SocketAddr::new(side.other().outer(), PORT).to_string();
        command.args([DEVICE, &MTU.to_string(), &PORT.to_string(), &peer]);
        let mut daemon = site.lab.spawn(side.node(), "null_gso", &mut command)?;
        wait_for_device(site, side, DEVICE, &mut daemon)?;
        site.configure(side, DEVICE, MTU)?;
        running.daemons.push(daemon);
    }
    Ok(running)
}
