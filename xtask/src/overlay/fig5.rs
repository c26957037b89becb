//! The devices of the paper's Fig. 5 in a running overlay, and what more than one verb measures with them.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::command::Cancel;
use cyphonic_lab::measure::{IperfRun, PingRun, Transfer, Transport};
use cyphonic_lab::{Lab, Role, Topology};

use super::{Device, Progress, Route};

/// Two devices by their nodes' names.
pub(crate) type Pair = (&'static str, &'static str);

/// C and B reach each other.
pub(crate) const DIRECT: Pair = ("c", "b");
/// A and C do not.
pub(crate) const RELAYED: Pair = ("a", "c");
/// The paper's stream: 1,360 bytes at 30 Mbit/s.
pub(crate) const STREAM: Transport = Transport::Udp { bits_per_second: 30_000_000, bytes: 1360 };

/// Where the measurements take place.
pub(crate) struct Fig5<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) topology: &'a Topology,
    pub(crate) devices: &'a mut [Device],
    pub(crate) progress: &'a Progress,
    pub(crate) cancel: &'a Cancel,
}

/// Round trips of a pair in the overlay and of the plain network below it, milliseconds.
pub(crate) struct RoundTrips {
    pub(crate) overlay: Vec<f64>,
    /// Of each leg of the plain network that the pair's packets cross, one after the other.
    pub(crate) legs: Vec<Vec<f64>>,
    /// Pings in the overlay that were not answered.
    pub(crate) lost: u32,
}

impl Fig5<'_> {
    pub(crate) fn device(&self, node: &str) -> Result<&Device> {
        let device = self.devices.iter().find(|device| device.node() == node);
        device.with_context(|| format!("there is no device called `{node}` in the topology"))
    }

    pub(crate) fn device_mut(&mut self, node: &str) -> Result<&mut Device> {
        let device = self.devices.iter_mut().find(|device| device.node() == node);
        device.with_context(|| format!("there is no device called `{node}` in the topology"))
    }

    pub(crate) fn pair(&self, (from, to): Pair) -> Result<(&Device, &Device)> {
        Ok((self.device(from)?, self.device(to)?))
    }

    pub(crate) fn ipv4(&self, node: &str) -> Result<IpAddr> {
        let addresses = self.topology.hosts.get(node).into_iter().flat_map(|host| host.addresses());
        addresses.into_iter().find(IpAddr::is_ipv4).with_context(|| format!("{node} has no IPv4 address"))
    }

    /// The IPv4 address of the first host that plays a role.
    pub(crate) fn server(&self, role: Role) -> Result<IpAddr> {
        let host = self.topology.hosts_with(role).next();
        self.ipv4(host.with_context(|| format!("no host of the topology is {role:?}"))?.0)
    }

    /// Takes a tunnel down and sets it up again so many times; milliseconds from query to answer.
    pub(crate) fn setups(&self, pair: Pair, count: usize) -> Result<Vec<f64>> {
        let (source, target) = self.pair(pair)?;
        source.resolve(target, self.cancel)?;
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            source.reset_tunnel(target, self.cancel)?;
            // Otherwise the time of a mere lookup would pass for that of a set-up.
            if number == 0 && source.route_to(target, self.cancel)? != Route::None {
                bail!("`cyphonic tunnel reset` on {} left the tunnel to {} standing", pair.0, pair.1);
            }
            let answer = source.resolve(target, self.cancel);
            times.push(milliseconds(
                answer.with_context(|| format!("set-up {number} of {count} failed"))?.time,
            ));
        }
        Ok(times)
    }

    /// Restarts both ends of a pair and sets a tunnel up between them: neither has used a TRS before. The
    /// starts of the whole agents, and the set-ups, in milliseconds.
    pub(crate) fn cold_setups(&mut self, pair: Pair, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut starts, mut setups) = (Vec::new(), Vec::new());
        for _ in 0..count {
            for node in [pair.0, pair.1] {
                let (lab, cancel) = (self.lab, self.cancel);
                starts.push(milliseconds(self.device_mut(node)?.restart(lab, cancel)?));
            }
            let (source, target) = self.pair(pair)?;
            setups.push(milliseconds(source.resolve(target, self.cancel)?.time));
        }
        Ok((starts, setups))
    }

    /// Round trips over the direct route, and below it.
    pub(crate) fn direct_round_trips(&self, rounds: u32, pings: u32) -> Result<RoundTrips> {
        self.round_trips(DIRECT, &[(DIRECT.0, self.ipv4(DIRECT.1)?)], rounds, pings)
    }

    /// Round trips through the TRS, and of both legs to it, as the paper adds them.
    pub(crate) fn relayed_round_trips(&self, rounds: u32, pings: u32) -> Result<RoundTrips> {
        let trs = self.server(Role::Trs)?;
        self.round_trips(RELAYED, &[(RELAYED.0, trs), (RELAYED.1, trs)], rounds, pings)
    }

    /// Rounds alternate, so that whatever else the machine does falls on the overlay and on the plain network
    /// alike.
    fn round_trips(
        &self,
        pair: Pair,
        legs: &[(&str, IpAddr)],
        rounds: u32,
        pings: u32,
    ) -> Result<RoundTrips> {
        let (source, target) = self.pair(pair)?;
        source.resolve(target, self.cancel)?;
        let mut found = RoundTrips { overlay: Vec::new(), legs: vec![Vec::new(); legs.len()], lost: 0 };
        for _ in 0..rounds {
            let report = source.ping(&PingRun::new(target.fqdn(), pings), self.cancel)?;
            found.lost += report.lost();
            found.overlay.extend(report.rtts_ms);
            for ((from, to), samples) in legs.iter().zip(&mut found.legs) {
                samples.extend(self.plain(from, *to, pings)?);
            }
        }
        Ok(found)
    }

    /// Round trips of the plain network, milliseconds.
    pub(crate) fn plain(&self, from: &str, to: IpAddr, pings: u32) -> Result<Vec<f64>> {
        Ok(self.device(from)?.ping(&PingRun::new(to, pings), self.cancel)?.rtts_ms)
    }

    /// A transfer between two devices by name; the receiver's iperf3 server must run.
    pub(crate) fn iperf(&self, pair: Pair, transport: Transport, time: Duration) -> Result<Transfer> {
        let (source, target) = self.pair(pair)?;
        let run = IperfRun { target: target.fqdn().to_owned(), transport, time };
        let transfer = run.run(source.machine(), self.cancel);
        transfer.with_context(|| format!("iperf3 from {} to {} failed", pair.0, pair.1))
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
