//! `cargo xtask demo`: the paper's Figs. 3 to 5 on real packets, in one command.
//!
//! It builds the programs, lays the topology out as network namespaces, founds a cloud, enrols every device
//! with a one-time token, and then shows what the overlay promises: names that resolve, pairs that connect
//! whatever lies between them, and what that costs beside the plain network and the paper. Every program is a
//! process of its own, with a configuration file a user could have written. A promise that is broken makes
//! the exit status non-zero.
//!
//! Whatever happens (an error, Ctrl-C, SIGTERM), the lab goes and everything in it ends; after SIGKILL the
//! next demo does that.

mod experiments;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::figures::{Figure, Figures};
use cyphonic_lab::{Lab, Topology};

use self::experiments::Experiments;
use crate::overlay::{
    AgentSettings, Capture, Device, Fig5, Overlay, Programs, Progress, ZONE, become_root, conclude,
    watch_signals,
};

/// The whole demo, without the build, takes no longer on a small machine; it is a promise like the others.
const LONGEST: Duration = Duration::from_secs(60);

/// How to run the demo.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave the lab up at the end and print how to enter each device.
    #[arg(long, conflicts_with = "ssh")]
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
    /// Record what crosses the core router into FILE, and hold it to be QUIC with right checksums. Slows the
    /// transfers.
    #[arg(long, value_name = "FILE", conflicts_with = "ssh")]
    capture: Option<PathBuf>,
    /// Use machines reached over SSH in place of namespaces: an OpenSSH configuration that names the scene's
    /// nodes, as `vagrant ssh-config` prints it. They run the installed packages, or what `--programs`
    /// names there.
    #[arg(long, value_name = "CONFIG")]
    ssh: Option<PathBuf>,
    /// Use the programs in this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let cancel = watch_signals()?;
    let topology = crate::lab::topology(args.topology.clone(), None)?;
    let programs = Programs::choose(args.programs.as_deref(), args.ssh.is_some())?;
    if args.ssh.is_none() {
        become_root(&programs)?;
    }
    show(args, &topology, &programs, &cancel)
}

/// Everything after the build.
fn show(args: &DemoArgs, topology: &Topology, programs: &Programs, cancel: &Cancel) -> Result<()> {
    let progress = Progress::start();
    // Links with delay of their own have other times.
    let timed = args.profile == "zero" && !args.untimed && args.capture.is_none();
    remove_kept(&args.name, &progress)?;
    let lab = crate::lab::build(topology, &args.name, &args.profile, args.ssh.as_deref())?;
    progress.done(&format!("{}, profile `{}`", crate::lab::describe(&lab), args.profile));

    let capture = args.capture.as_deref().map(|file| Capture::start(&lab, file, cancel)).transpose()?;
    let settings = AgentSettings { ring: args.ring.clone(), ..AgentSettings::default() };
    let mut overlay = Overlay::new(settings, &args.relay);
    let started = overlay.start(&lab, topology, programs, &progress, cancel);
    let outcome = started.and_then(|()| {
        let devices = overlay.devices_mut();
        Experiments::new(Fig5 { lab: &lab, topology, devices, progress: &progress, cancel }).run(timed)
    });
    let outcome = outcome.inspect_err(|error| overlay.explain(error));
    let (mut figures, mut broken) = match outcome {
        Ok(findings) => findings,
        Err(error) if args.keep => {
            keep(lab, overlay, programs)?;
            return Err(error);
        }
        Err(error) => {
            overlay.end(lab)?;
            return Err(error);
        }
    };
    if let Some(capture) = capture {
        broken.extend(capture.finish(&progress, cancel)?);
    }
    if let Some(cloud) = overlay.cloud() {
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
        overlay.end(lab)?;
    }
    conclude(broken)
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
    for device in overlay.devices() {
        let namespace = lab.namespace(device.node())?;
        println!("  ip netns exec {} bash    # {}", namespace.name(), device.fqdn());
        println!("    {} --socket {} status", programs.cyphonic.display(), device.socket().display());
    }
    println!(
        "Try `ping {}` in another device's shell.",
        overlay.devices().first().map_or(ZONE, Device::fqdn)
    );
    println!("Remove everything with `cargo xtask lab down --name {name}`.");
    overlay.release();
    lab.keep()?;
    Ok(())
}
