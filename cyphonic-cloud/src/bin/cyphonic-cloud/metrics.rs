//! `cyphonic-cloud metrics`: what there is to measure of this machine's services, for a monitor. Series of single devices
//! are told only to who asks for them.

use std::collections::BTreeMap;
use std::path::Path;

use cyphonic_cloud::VERSION;
use cyphonic_cloud::config::{Config, ServiceRole};
use cyphonic_cloud::register::{DeviceRecord, DeviceState, Register, RegisterError, UnixSeconds};
use cyphonic_cloud::server::{self, Companions, Relayed, read_kept, unix_now};
use cyphonic_common::DropReason;
use cyphonic_dataplane::relay::xdp::{Mode, RunningRelay, running_relays};
use cyphonic_transport::metrics::Text;

use crate::presence::Presence;
use crate::{ConfigArgument, complain, runtime_directory};

/// What is told besides.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Choice {
    /// Also three series of each device that is not revoked: whether it is online, when it was last seen, and when its
    /// certificate ends.
    #[arg(long)]
    devices: bool,
}

pub(crate) fn run(argument: &ConfigArgument, choice: Choice) -> anyhow::Result<()> {
    let mut text = Text::new("cyphonic_cloud");
    text.gauge("build_info", "The program's version.");
    text.sample(&[("version", VERSION)], 1);
    match read(argument.load()) {
        Some(config) => render(&mut text, &config, choice),
        None => render_ready(&mut text, false),
    }
    tell!("{}", text.into_string());
    Ok(())
}

/// What cannot be read is complained of and left out: an error would have the monitor go by what it was told
/// before.
fn read<T>(found: anyhow::Result<T>) -> Option<T> {
    found.inspect_err(complain).ok()
}

fn render(text: &mut Text, config: &Config, choice: Choice) {
    let (directory, network, now) = (runtime_directory(), Some(config.network.id), unix_now());
    let presence = Presence::read(config, now);
    let relayed: Option<Relayed> = read_kept(&directory, network, now);
    let terms = read(server::terms(config).map_err(Into::into));
    let counts =
        config.register.as_ref().map(|path| read(Counts::read(path, choice, now).map_err(Into::into)));
    let is_all_read = terms.is_some() && counts.as_ref().is_none_or(Option::is_some);
    let (manages, relays) = (config.runs(ServiceRole::Nms), config.runs(ServiceRole::Trs));
    // An AS alone tells nobody that it runs.
    if manages || relays || !is_all_read {
        let runs = if manages { presence.online().is_some() } else { relayed.is_some() };
        render_ready(text, runs && is_all_read);
    }
    if let Some(terms) = terms {
        text.gauge("certificate_not_after_seconds", "When a service's certificate ends, Unix time.");
        terms.iter().for_each(|term| text.sample(&[("service", &term.service)], term.not_after));
    }
    if let Some(counts) = counts.flatten() {
        render_counts(text, &counts);
        if choice.devices {
            render_devices(text, &counts.single, &presence);
        }
    }
    if let Some(online) = presence.online() {
        text.gauge("devices_online", "Devices that are connected to the NMS.");
        text.sample(&[], online.len());
        text.gauge("devices_doubled", "Devices whose identity two machines have had within the last hour.");
        text.sample(&[], online.values().filter(|present| present.is_doubled(now)).count());
    }
    if let Some(companions) = read_kept(&directory, network, now) {
        render_companions(text, &companions);
    }
    if relays {
        render_relay(text, config, relayed.as_ref(), &xdp_relays(config));
    }
}

fn render_ready(text: &mut Text, is_ready: bool) {
    text.gauge(
        "ready",
        "Whether the services run, as they said within three minutes, and configuration, certificates and register can be read.",
    );
    text.sample(&[], u8::from(is_ready));
}

/// What there is in the register.
struct Counts {
    devices: BTreeMap<DeviceState, u64>,
    tokens_open: u32,
    /// Those that are told of one by one.
    single: Vec<DeviceRecord>,
}

impl Counts {
    fn read(path: &Path, choice: Choice, now: UnixSeconds) -> Result<Self, RegisterError> {
        let register = Register::open(path)?;
        let mut single = if choice.devices { register.devices()? } else { Vec::new() };
        single.retain(|device| device.revoked_at.is_none());
        let (devices, tokens_open) = (register.count_devices(now)?, register.count_open_tokens(now)?);
        Ok(Self { devices, tokens_open, single })
    }
}

fn render_counts(text: &mut Text, counts: &Counts) {
    text.gauge("devices", "Devices in the register, by their state.");
    counts.devices.iter().for_each(|(state, count)| text.sample(&[("state", state.name())], count));
    text.gauge("tokens_open", "Tokens that nobody has used yet, and that have not ended.");
    text.sample(&[], counts.tokens_open);
}

fn render_devices(text: &mut Text, devices: &[DeviceRecord], presence: &Presence) {
    let mut of_each = |name, help: &str, value: &dyn Fn(&DeviceRecord) -> Option<u64>| {
        text.gauge(name, help);
        for device in devices {
            if let Some(value) = value(device) {
                text.sample(&[("device", &device.fqdn)], value);
            }
        }
    };
    of_each("device_online", "Whether a device is connected to the NMS.", &|device| {
        presence.is_online(device).map(u64::from)
    });
    of_each("device_last_seen_seconds", "When a device was last seen, Unix time.", &|device| {
        presence.last_seen(device)
    });
    of_each(
        "device_certificate_not_after_seconds",
        "When a device's certificate ends, Unix time.",
        &|device| device.certificate_not_after,
    );
}

fn render_companions(text: &mut Text, companions: &Companions) {
    match companions {
        Companions::Standbys(standbys) => {
            text.gauge("standby_follows", "Whether a standby follows this NMS.");
            for (name, since) in standbys {
                text.sample(&[("standby", name)], u8::from(since.is_some()));
            }
        }
        Companions::Follows(following) => {
            text.gauge("standby_stands_in", "Whether this standby stands in for the overlay's own NMS.");
            text.sample(&[], u8::from(following.stands_in_since.is_some()));
            text.gauge("standby_hears", "Whether this standby hears of the overlay's own NMS.");
            text.sample(&[], u8::from(following.hears));
        }
    }
}

/// This cloud's, as far as the kernel lists programs for this process.
fn xdp_relays(config: &Config) -> Vec<RunningRelay> {
    if config.relay.mode == Mode::Userspace {
        return Vec::new();
    }
    let is_ours = |relay: &RunningRelay| {
        // Those of another network namespace are on no interface of this one.
        !relay.interfaces.is_empty() && config.listen.iter().any(|listen| listen.port() == relay.port)
    };
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
