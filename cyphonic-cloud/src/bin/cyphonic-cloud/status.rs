//! `cyphonic-cloud trs-status`

use cyphonic_dataplane::relay::xdp::{RunningRelay, running_relays};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let relays = running_relays()?;
    if arguments.json {
        let relays: Vec<_> = relays.iter().map(json).collect();
        say!("{}", serde_json::json!({ "version": 1, "xdp": relays }));
        return Ok(());
    }
    if relays.is_empty() {
        say!("No relay runs in XDP here. A TRS may relay in userspace: its log says where it does, and why.");
    }
    for relay in relays {
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
    Ok(())
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
