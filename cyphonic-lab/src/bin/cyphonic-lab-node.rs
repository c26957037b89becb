//! Makes a node of the topology out of the machine it runs on (see `cyphonic_lab::node`), and has on it what
//! scenarios need.

#![expect(clippy::print_stderr, reason = "a program tells people on standard error what went wrong")]

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

use cyphonic_lab::Topology;
use cyphonic_lab::node::{Resolver, Setup};

const USAGE: &str = "usage: cyphonic-lab-node up TOPOLOGY SCENE PROFILE NODE RESOLVER NETWORK=MAC...
  sets this machine up as that node, reports to systemd when it stands, and holds it until it is ended
  RESOLVER is resolv-conf:FILE or resolved:FILE, MAC the hardware address of the interface on that network
       cyphonic-lab-node flow ...
  an end of a transfer whose content is checked; the scenarios start it";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((verb, arguments)) if verb == "up" => up(arguments),
        Some((verb, arguments)) if verb == "flow" => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            cyphonic_lab::flow::main(&arguments).map_err(Into::into)
        }
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("cyphonic-lab-node: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn up(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [topology, scene, profile, node, resolver, links @ ..] = arguments else {
        return Err(USAGE.into());
    };
    let links = links.iter().map(|link| {
        let (network, address) =
            link.split_once('=').ok_or_else(|| format!("`{link}` is not NETWORK=MAC"))?;
        Ok((network.to_owned(), address.to_owned()))
    });
    let links: BTreeMap<String, String> = links.collect::<Result<_, String>>()?;
    let resolver = match resolver.split_once(':') {
        Some(("resolv-conf", file)) => Resolver::ResolvConf(file.into()),
        Some(("resolved", file)) => Resolver::Resolved(file.into()),
        _ => return Err(format!("`{resolver}` is neither resolv-conf:FILE nor resolved:FILE").into()),
    };
    let topology = Topology::load(topology.as_ref())?.scene(scene)?;
    let profile = topology.profile(profile)?;
    let standing = Setup { topology: &topology, profile, node, links, resolver }.run()?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    standing.wait();
    Ok(())
}
