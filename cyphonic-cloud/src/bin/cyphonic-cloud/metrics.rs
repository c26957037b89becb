//! `cyphonic-cloud metrics`: what there is to measure of this machine's services, for a monitor. No series is
//! of one device.

use std::collections::BTreeMap;

use cyphonic_cloud::VERSION;
use cyphonic_cloud::config::{Config, ServiceRole};
use cyphonic_cloud::register::{Register, RegisterError, UnixSeconds};
use cyphonic_cloud::server::{self, Online, Relayed, read_kept, unix_now};
use cyphonic_common::DropReason;
use cyphonic_dataplane::relay::xdp::{Mode, RunningRelay, running_relays};
use cyphonic_transport::metrics::Text;

use crate::{ConfigArgument, complain, runtime_directory};

pub(crate) fn run(argument: &ConfigArgument) -> anyhow::Result<()> {
    let config = argument.load()?;
    let (directory, network, now) = (runtime_directory(), Some(config.network.id), unix_now());
    let online: Option<Online> = read_kept(&directory, network, now);
    let relayed: Option<Relayed> = read_kept(&directory, network, now);
    let mut text = Text::new("cyphonic_cloud");
    text.gauge("build_info", "The program's version.");
    text.sample(&[("version", VERSION)], 1);
    let (manages, relays) = (config.runs(ServiceRole::Nms), config.runs(ServiceRole::Trs));
    if manages || relays {
        text.gauge("ready", "Whether the services run: they said so within three minutes.");
        text.sample(&[], u8::from(if manages { online.is_some() } else { relayed.is_some() }));
    }
    text.gauge("certificate_not_after_seconds", "When a service's certificate ends, Unix time.");
    for term in server::terms(&config)? {
        text.sample(&[("service", &term.service)], term.not_after);
    }
    if let Some(path) = &config.register {
        render_register(&mut text, &Register::open(path)?, now)?;
    }
    if let Some(online) = online {
        text.gauge("devices_online", "Devices that are connected to the NMS.");
        text.sample(&[], online.0.len());
    }
    if relays {
        render_relay(&mut text, &config, relayed.as_ref(), &xdp_relays(&config));
    }
    tell!("{}", text.into_string());
    Ok(())
}

fn render_register(text: &mut Text, register: &Register, now: UnixSeconds) -> Result<(), RegisterError> {
    text.gauge("devices", "Devices in the register, by their state.");
    for (state, count) in register.count_devices(now)? {
        text.sample(&[("state", state.name())], count);
    }
    text.gauge("tokens_open", "Tokens that nobody has used yet, and that have not ended.");
    text.sample(&[], register.count_open_tokens(now)?);
    Ok(())
}

/// This cloud's, as far as the kernel lists programs for this process.
fn xdp_relays(config: &Config) -> Vec<RunningRelay> {
    if config.relay.mode == Mode::Userspace {
        return Vec::new();
    }
    let is_ours = |relay: &RunningRelay| config.listen.iter().any(|listen| listen.port() == relay.port);
    match running_relays() {
        Ok(relays) => relays.into_iter().filter(is_ours).collect(),
        Err(error) => {
            complain(&anyhow::Error::new(error).context("no counters of XDP"));
            Vec::new()
        }
    }
}

/// What a relay did on one of the ways that packets take.
struct Way {
    path: &'static str,
    packets: u64,
    bytes: u64,
    drops: BTreeMap<String, u64>,
}

impl Way {
    /// All drops that there can be: who counts the increase of a series misses what it begins with.
    fn new(path: &'static str) -> Self {
        let drops = DropReason::ALL.iter().map(|reason| (reason.to_string(), 0)).collect();
        Self { path, packets: 0, bytes: 0, drops }
    }

    fn xdp(relays: &[RunningRelay]) -> Option<Self> {
        let mut way = Self::new("xdp");
        for relay in relays {
            way.packets += relay.counters.forwarded.packets;
            way.bytes += relay.counters.forwarded.bytes;
            for (reason, counter) in &relay.counters.dropped {
                *way.drops.entry(reason.to_string()).or_default() += counter.packets;
            }
        }
        (!relays.is_empty()).then_some(way)
    }

    fn userspace(relay: &Relayed) -> Self {
        let mut way = Self { packets: relay.packets, bytes: relay.bytes, ..Self::new("userspace") };
        way.drops.extend(relay.dropped.clone());
        way
    }
}

/// A way of which nobody tells has no samples: zeros would look like a restart.
fn render_relay(text: &mut Text, config: &Config, userspace: Option<&Relayed>, xdp: &[RunningRelay]) {
    let ways: Vec<_> = Way::xdp(xdp).into_iter().chain(userspace.map(Way::userspace)).collect();
    text.counter("relay_packets_total", "Packets forwarded, since the service started.");
    ways.iter().for_each(|way| text.sample(&[("path", way.path)], way.packets));
    text.counter("relay_bytes_total", "Their bytes: of frames in XDP, of datagrams in userspace.");
    ways.iter().for_each(|way| text.sample(&[("path", way.path)], way.bytes));
    text.counter("relay_drops_total", "Packets that the relay dropped, since the service started.");
    for way in &ways {
        for (reason, packets) in &way.drops {
            text.sample(&[("path", way.path), ("reason", reason)], packets);
        }
    }
    text.gauge("relay_bindings_limit", "How many bindings the relay may have, as configured.");
    text.sample(&[], config.relay.bindings);
    if let Some(relay) = userspace {
        text.gauge("relay_bindings", "Bindings in use: two for each tunnel that is relayed.");
        text.sample(&[], relay.legs);
    }
}
