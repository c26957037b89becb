//! `cyphonic-cloud trs-status`

use cyphonic_cloud::server::{Relayed, read_kept, unix_now};
use cyphonic_dataplane::relay::xdp::{RunningRelay, running_relays};

use crate::{complain, runtime_directory};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let userspace: Option<Relayed> = read_kept(&runtime_directory(), None, unix_now());
    let relays = match running_relays() {
        Ok(relays) => Some(relays),
        // In a container the kernel may tell nothing of its programs.
        Err(error) if userspace.is_some() => {
            complain(&error.into());
            None
        }
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
        let relays = relays.map(|relays| relays.iter().map(json).collect::<Vec<_>>());
        let userspace = userspace.as_ref().map(userspace_json);
        say!("{}", serde_json::json!({ "version": 1, "xdp": relays, "userspace": userspace }));
        return Ok(());
    }
    if relays.as_ref().is_some_and(Vec::is_empty) {
        say!("No relay runs in XDP here. The log of a TRS says where it relays, and why.");
    }
    for relay in relays.unwrap_or_default() {
        let RunningRelay { program, port, legs, counters, interfaces } = relay;
        say!("XDP program {program}: UDP port {port}, up to {legs} bindings");
        for place in &interfaces {
            say!("  on {} ({}: {})", place.interface, place.hook, place.why);
        }
        if interfaces.is_empty() {
            say!("  on interfaces of another network namespace");
        }
        say!(
            "  forwarded      {:>12} packets {:>15} bytes",
            counters.forwarded.packets,
            counters.forwarded.bytes
        );
        for (reason, counter) in counters.passed {
            say!("  to the stack   {:>12} packets  ({reason})", counter.packets);
        }
        for (reason, counter) in counters.dropped {
            say!("  dropped        {:>12} packets  ({reason})", counter.packets);
        }
    }
    // With a program in XDP, this is what that leaves.
    if let Some(Relayed { port, legs, packets, bytes, dropped }) = userspace {
        say!("In userspace: UDP port {port}, {legs} bindings in use");
        say!("  forwarded      {packets:>12} packets {bytes:>15} bytes");
        for (reason, packets) in dropped {
            say!("  dropped        {packets:>12} packets  ({reason})");
        }
    }
    Ok(())
}

fn userspace_json(relay: &Relayed) -> serde_json::Value {
    serde_json::json!({
        "port": relay.port,
        "bindings_in_use": relay.legs,
        "forwarded_packets": relay.packets,
        "forwarded_bytes": relay.bytes,
        "dropped": relay.dropped,
    })
}

fn json(relay: &RunningRelay) -> serde_json::Value {
    let passed = relay.counters.passed.iter().map(|(why, n)| (why.to_string(), n.packets.into()));
    let dropped = relay.counters.dropped.iter().map(|(why, n)| (why.to_string(), n.packets.into()));
    let interfaces: Vec<_> = relay.interfaces.iter().map(|place| {
        serde_json::json!({ "name": place.interface, "mode": place.hook.to_string(), "why": place.why })
    }).collect();
    serde_json::json!({
        "program": relay.program,
        "port": relay.port,
        "interfaces": interfaces,
        "bindings": relay.legs,
        "forwarded_packets": relay.counters.forwarded.packets,
        "forwarded_bytes": relay.counters.forwarded.bytes,
        "passed": passed.collect::<serde_json::Map<_, _>>(),
        "dropped": dropped.collect::<serde_json::Map<_, _>>(),
    })
}
