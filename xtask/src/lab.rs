//! `cargo xtask lab`: builds the networks of the topology file on this machine, for people to look around in.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use cyphonic_lab::emulator::{self, Emulator};
use cyphonic_lab::lab::{default_topology, down, list};
use cyphonic_lab::remote::{self, Launcher};
use cyphonic_lab::{Lab, LabConfig, Topology};

/// The lab's name where none is given.
const DEFAULT_NAME: &str = "lab";

/// What to do with labs.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build a lab and leave it up.
    Up {
        /// Which of the topology's link profiles to use.
        #[arg(long, default_value = "zero")]
        profile: String,
        /// The lab's name; every namespace is called NAME-NODE.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// The topology file [default: vagrant/topology.yaml]
        #[arg(long)]
        topology: Option<PathBuf>,
        /// Which of the topology's scenes to build [default: paper, or all of a file without it]
        #[arg(long)]
        scene: Option<String>,
    },
    /// End everything that runs in a lab and remove it.
    Down {
        /// The lab's name.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Run a program on a node of a lab.
    Exec {
        /// The lab's name.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// The node.
        node: String,
        /// The program and its arguments; a shell if there are none.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Show the labs that are up.
    List,
    /// Join emulated links; the lab starts this itself.
    #[command(hide = true)]
    EmulateLinks {
        /// The list of links.
        file: PathBuf,
    },
    /// Run a command on a machine reached over SSH; the lab starts this itself.
    #[command(hide = true)]
    On {
        /// Which, and what.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Be an end of a transfer whose content is checked; scenarios start this themselves.
    #[command(hide = true)]
    Flow {
        /// Which end, and where.
        arguments: Vec<String>,
    },
}

/// Runs the verb.
pub(crate) fn run(args: LabArgs) -> Result<()> {
    match args.verb {
        Verb::Up { profile, name, topology, scene } => up(&profile, &name, topology, scene.as_deref()),
        Verb::Down { name } => down(&name).map_err(Into::into),
        Verb::Exec { name, node, command } => exec(&name, &node, &command),
        Verb::List => {
            show();
            Ok(())
        }
        Verb::EmulateLinks { file } => emulator::main(&file).map_err(anyhow::Error::msg),
        Verb::On { arguments } => Err(remote::replace(&arguments)).context("cannot start ssh"),
        Verb::Flow { arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            cyphonic_lab::flow::main(&arguments).map_err(anyhow::Error::msg)
        }
    }
}

/// How a lab is built from here: its links are emulated by this very program.
pub(crate) fn config(name: &str, profile: &str) -> Result<LabConfig> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let arguments = ["lab", "emulate-links"].map(str::to_owned).to_vec();
    Ok(LabConfig { emulator: Emulator { program, arguments }, ..LabConfig::new(name, profile) })
}

/// The lab that a verb works in: namespaces, or the machines that an SSH configuration names.
pub(crate) fn build(topology: &Topology, name: &str, profile: &str, ssh: Option<&Path>) -> Result<Lab> {
    let Some(file) = ssh else { return Ok(Lab::up(topology, &config(name, profile)?)?) };
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let launcher = Launcher { program, arguments: ["lab", "on"].map(str::to_owned).to_vec() };
    Ok(Lab::over_ssh(topology, name, file, launcher)?)
}

/// What has been built, in a line.
pub(crate) fn describe(lab: &Lab) -> String {
    let nodes = lab.state().nodes.len();
    if lab.is_remote() {
        format!("{nodes} machines reached over SSH")
    } else {
        format!("{} network namespaces", nodes + 1)
    }
}

/// A scene of the topology at `path`, or of the repository's; the default scene where none is named.
pub(crate) fn topology(path: Option<PathBuf>, scene: Option<&str>) -> Result<Topology> {
    let path = path.map_or_else(default_topology, Ok)?;
    let whole = Topology::load(&path);
    let scene = whole.and_then(|whole| scene.map_or_else(|| whole.default_scene(), |name| whole.scene(name)));
    scene.with_context(|| format!("in {}", path.display()))
}

fn up(profile: &str, name: &str, path: Option<PathBuf>, scene: Option<&str>) -> Result<()> {
    let topology = topology(path, scene)?;
    let state = Lab::up(&topology, &config(name, profile)?)?.keep()?;
    println!("The lab `{name}` is up with the profile `{profile}`.");
    for (node, host) in &topology.hosts {
        let addresses = host.addresses().map(|address| address.to_string()).collect::<Vec<_>>().join(", ");
        println!("  {:<24} {addresses}", state.namespace(node).name());
    }
    println!(
        "Enter a node with `cargo xtask lab exec --name {name} NODE`, remove it with `cargo xtask lab down --name {name}`."
    );
    Ok(())
}

fn exec(name: &str, node: &str, command: &[String]) -> Result<()> {
    let lab = Lab::attach(name)?;
    let shell = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let Some((program, arguments)) = (if command.is_empty() { &shell[..] } else { command }).split_first()
    else {
        bail!("there is nothing to run");
    };
    // Returns only if it fails: the program takes this one's place, terminal and exit status included.
    let error = lab.command(node, program)?.args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program} on {node}"))
}

fn show() {
    let labs = list();
    if labs.is_empty() {
        println!("No lab is up.");
    }
    for lab in labs {
        println!("{:<20} profile {:<8} nodes {}", lab.name, lab.profile, lab.nodes.join(" "));
    }
}
