//! `cargo xtask demo`: the paper's Figs. 3 to 5 on real packets, in one command.
//!
//! It builds the programs, lays the topology out as network namespaces, founds a cloud, enrols every device with a
//! one-time token, and then shows what the overlay promises: names that resolve, pairs that connect whatever lies
//! between them, and what that costs beside the plain network and the paper. Every program is a process of its own,
//! with a configuration file a user could have written. A promise that is broken makes the exit status non-zero.
//!
//! Whatever happens (an error, Ctrl-C, SIGTERM), the lab goes and everything in it ends; after SIGKILL the next
//! demo does that.

pub(crate) mod agent;
mod capture;
pub(crate) mod cloud;
mod experiments;
pub(crate) mod programs;
pub(crate) mod progress;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::{Figure, Figures};
use cyphonic_lab::{Lab, LabError, Role, Topology};

use self::agent::Device;
use self::capture::Capture;
use self::cloud::Cloud;
use self::experiments::Experiments;
use self::programs::Programs;
use self::progress::Progress;

/// The overlay's zone in the demo.
pub(crate) const ZONE: &str = "cyphonic.internal";
/// The whole demo, without the build, takes no longer on a small machine; it is a promise like the others.
const LONGEST: Duration = Duration::from_secs(60);

/// How to run the demo.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave the lab up at the end and print how to enter each device.
    #[arg(long)]
    keep: bool,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Link profile of the topology: `zero`, or `paper` for the paper's distances.
    #[arg(long, default_value = "zero")]
    profile: String,
    /// The lab's name.
    #[arg(long, default_value = "demo")]
    name: String,
    /// The topology file [default: vagrant/topology.yaml]
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// The encapsulation ring of every agent.
    #[arg(long, default_value = "auto", value_parser = ["auto", "xdp", "offload"])]
    ring: String,
    /// How the TRS relays.
    #[arg(long, default_value = "auto", value_parser = ["auto", "native", "generic", "userspace"])]
    relay: String,
    /// Hold the demo only to what works, not to how fast: for unoptimised programs and busy machines.
    #[arg(long)]
    untimed: bool,
    /// Record what crosses the core router into FILE, and hold it to be QUIC with right checksums. Slows the transfers.
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let cancel = Cancel::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, cancel.flag()).context("cannot watch for Ctrl-C")?;
    }
    let topology = crate::lab::topology(args.topology.clone())?;
    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder)?,
        None => Programs::build()?,
    };
    programs::become_root(&programs, args)?;
    show(args, &topology, &programs, &cancel)
}

/// Everything after the build.
fn show(args: &DemoArgs, topology: &Topology, programs: &Programs, cancel: &Cancel) -> Result<()> {
    let progress = Progress::start();
    // Links with delay of their own have other times.
    let timed = args.profile == "zero" && !args.untimed && args.capture.is_none();
    remove_kept(&args.name, &progress)?;
    let lab = Lab::up(topology, &crate::lab::config(&args.name, &args.profile)?)?;
    progress.done(&format!("{} network namespaces, profile `{}`", lab.state().nodes.len() + 1, args.profile));

    let capture = args.capture.as_deref().map(|file| Capture::start(&lab, file, cancel)).transpose()?;
    let mut overlay =
        Overlay { ring: args.ring.clone(), relay: args.relay.clone(), cloud: None, devices: Vec::new() };
    let started = overlay.start(&lab, topology, programs, &progress, cancel);
    let outcome = started.and_then(|()| {
        let experiments = Experiments::new(&lab, topology, &mut overlay.devices, &progress, cancel);
        experiments.run(timed)
    });
    let outcome = outcome.inspect_err(|error| {
        let interrupted =
            error.downcast_ref::<LabError>().is_some_and(|error| matches!(error, LabError::Interrupted));
        if !interrupted {
            overlay.show_logs();
        }
    });
    let (mut figures, mut broken) = match outcome {
        Ok(findings) => findings,
        Err(error) if args.keep => {
            keep(lab, overlay, programs)?;
            return Err(error);
        }
        Err(error) => {
            lab.down()?;
            return Err(error);
        }
    };
    if let Some(capture) = capture {
        broken.extend(capture.finish(&progress, cancel)?);
    }
    if let Some(cloud) = &overlay.cloud {
        broken.extend(cloud.xdp_promises(&args.relay, &progress, cancel)?);
    }
    let wall = progress.elapsed();
    figures.insert("wall_s", Figure::single(wall.as_secs_f64(), "s"));
    if wall > LONGEST && timed {
        broken.push(format!("the demo took {:.0} s, more than {} s", wall.as_secs_f64(), LONGEST.as_secs()));
    }
    finish(args, lab, overlay, programs, &figures, &broken)
}

fn finish(
    args: &DemoArgs,
    lab: Lab,
    overlay: Overlay,
    programs: &Programs,
    figures: &Figures,
    broken: &[String],
) -> Result<()> {
    report::print(figures, &args.profile);
    if let Some(file) = &args.json {
        figures.write(file)?;
        println!("Figures are in {}.", file.display());
    }
    if !broken.is_empty() {
        overlay.show_logs();
    }
    if args.keep {
        keep(lab, overlay, programs)?;
    } else {
        // Ends everything at once; what `overlay` does when it goes would be one after the other.
        lab.down()?;
        drop(overlay);
    }
    if broken.is_empty() {
        println!("Every promise was kept.");
        return Ok(());
    }
    println!("Broken promises:");
    broken.iter().for_each(|promise| println!("  - {promise}"));
    bail!("{} promise(s) broken", broken.len())
}

/// A lab that an earlier demo left up on request makes room for this one.
fn remove_kept(name: &str, progress: &Progress) -> Result<()> {
    cyphonic_lab::lab::sweep();
    if cyphonic_lab::lab::list().iter().any(|state| state.name == name && state.kept) {
        cyphonic_lab::lab::down(name)?;
        progress.done(&format!("removed the lab `{name}` that was kept earlier"));
    }
    Ok(())
}

/// Leaves everything running and says how to look at it.
fn keep(lab: Lab, overlay: Overlay, programs: &Programs) -> Result<()> {
    let name = lab.state().name.clone();
    println!("\nThe lab stays up. On each device, as root:");
    for device in &overlay.devices {
        let namespace = lab.namespace(device.node())?;
        println!("  ip netns exec {} bash    # {}", namespace.name(), device.fqdn());
        println!("    {} --socket {} status", programs.cyphonic.display(), device.socket().display());
    }
    println!("Try `ping {}` in another device's shell.", overlay.devices.first().map_or(ZONE, Device::fqdn));
    println!("Remove everything with `cargo xtask lab down --name {name}`.");
    overlay.release();
    lab.keep()?;
    Ok(())
}

/// The processes of the demo.
struct Overlay {
    /// What every agent is configured to.
    ring: String,
    relay: String,
    cloud: Option<Cloud>,
    devices: Vec<Device>,
}

impl Overlay {
    fn start(
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
            let token = cloud.create_token(name, cancel)?;
            self.devices.push(Device::enrol(
                lab,
                node,
                name,
                &token,
                cloud.addresses(),
                &self.ring,
                programs,
            )?);
        }
        progress.done(&format!("{} agents started, each with a one-time token", self.devices.len()));
        for device in &mut self.devices {
            device.wait_online(cancel)?;
            let address = device.learn_address(cancel)?;
            let ring = device.ring(cancel)?;
            if self.ring != "auto" && ring != self.ring {
                bail!("{} has the ring `{ring}`, not `{}`", device.fqdn(), self.ring);
            }
            progress.detail(&format!("{:<28} {address}, ring {ring}", device.fqdn()));
        }
        progress.done("every device is enrolled, has its name and its virtual address, and is online");
        Ok(())
    }

    fn show_logs(&self) {
        let cloud = self.cloud.iter().flat_map(Cloud::daemons);
        for daemon in cloud.chain(self.devices.iter().filter_map(Device::daemon)) {
            println!("--- {} ({}):\n{}", daemon.name(), daemon.log_path().display(), daemon.log_tail(12));
        }
    }

    fn release(self) {
        self.cloud.into_iter().for_each(Cloud::release);
        self.devices.into_iter().for_each(Device::release);
    }
}
