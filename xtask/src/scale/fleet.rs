//! The program that measures: `cyphonic-cloud/examples/fleet`.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use serde_json::Value;

use crate::overlay::Programs;
use crate::shell;

pub(super) const HOST: &str = "cloud";
pub(super) const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 443));
/// All of it is the host's own, so that nodes have many addresses: RFC 2544 has it for measurements.
const SOURCES: &str = "198.18.0.0/15";
const FIRST_SOURCE: &str = "198.18.0.1";
/// For one run of the program.
const LIMIT: Duration = Duration::from_secs(900);

/// The program, and the cloud that it starts.
pub(super) struct Fleet {
    program: PathBuf,
    cloud: PathBuf,
}

/// What nodes cost the cloud.
pub(super) struct Nodes {
    pub(super) nodes: usize,
    /// Its bytes of memory: without nodes, with them, and after they have asked for each other.
    pub(super) resident: [u64; 3],
    pub(super) connecting: Spent,
    pub(super) idle: Spent,
    pub(super) load: Spent,
    pub(super) setups: usize,
    pub(super) setup_ms: Vec<f64>,
}

/// A span of time, and how much of it a processor worked for the cloud.
pub(super) struct Spent {
    pub(super) seconds: f64,
    pub(super) cpu: f64,
}

/// What a register costs.
pub(super) struct Registered {
    pub(super) bytes: u64,
    /// How many seconds each start of the cloud took.
    pub(super) starts: Vec<f64>,
    pub(super) resident: Vec<u64>,
}

impl Fleet {
    /// Beside the programs, where it is built first if `build`.
    pub(super) fn find(programs: &Programs, build: bool) -> Result<Self> {
        if build {
            let mut cargo = shell::cargo();
            cargo.args(["build", "--release", "--locked", "-p", "cyphonic-cloud", "--example", "fleet"]);
            shell::run(&mut cargo).context("the measuring program does not build")?;
        }
        let cloud = programs.cloud.clone();
        let program = cloud.parent().unwrap_or(Path::new(".")).join("examples/fleet");
        if !program.is_file() {
            bail!("there is no {}: build it first", program.display());
        }
        Ok(Self { program, cloud })
    }

    /// Connects nodes to a cloud of their own, and lets them ask for each other.
    pub(super) fn nodes(
        &self,
        lab: &Lab,
        dir: &Path,
        nodes: usize,
        quick: bool,
        cancel: &Cancel,
    ) -> Result<Nodes> {
        lab.machine(HOST)?.ip(&format!("route replace local {SOURCES} dev lo\n"))?;
        let mut command = self.command(lab, "nodes", dir)?;
        command.args(["--sources", FIRST_SOURCE, "--nodes", &nodes.to_string()]);
        if quick {
            command.args(["--settle", "300ms", "--idle", "1s", "--load", "1s"]);
        }
        let found = found(&mut command, cancel)?;
        let spent = |what: &str| {
            let spent = &found[what];
            Ok::<_, anyhow::Error>(Spent {
                seconds: number(&spent["seconds"])?,
                cpu: number(&spent["cloud_cpu"])?,
            })
        };
        let resident = numbers(&found["resident"], Value::as_u64)?;
        Ok(Nodes {
            nodes: usize::try_from(found["nodes"].as_u64().context(UNEXPECTED)?)?,
            resident: resident.try_into().ok().context(UNEXPECTED)?,
            connecting: spent("connecting")?,
            idle: spent("idle")?,
            load: spent("load")?,
            setups: usize::try_from(found["setups"].as_u64().context(UNEXPECTED)?)?,
            setup_ms: numbers(&found["setup_ms"], Value::as_f64)?,
        })
    }

    /// Makes a register with so many devices, and starts a cloud with it.
    pub(super) fn register(
        &self,
        lab: &Lab,
        dir: &Path,
        devices: usize,
        cancel: &Cancel,
    ) -> Result<Registered> {
        let mut command = self.command(lab, "register", dir)?;
        let found = found(command.args(["--devices", &devices.to_string()]), cancel)?;
        Ok(Registered {
            bytes: found["bytes"].as_u64().context(UNEXPECTED)?,
            starts: numbers(&found["start_s"], Value::as_f64)?,
            resident: numbers(&found["resident"], Value::as_u64)?,
        })
    }

    fn command(&self, lab: &Lab, what: &str, dir: &Path) -> Result<Command> {
        let mut command = lab.command(HOST, &self.program)?;
        command.arg(what).arg("--cloud").arg(&self.cloud).arg("--dir").arg(dir);
        command.args(["--address", &ADDRESS.to_string()]);
        Ok(command)
    }
}

const UNEXPECTED: &str = "the measuring program says something else: build it again";

fn found(command: &mut Command, cancel: &Cancel) -> Result<Value> {
    serde_json::from_str(&check(command, LIMIT, cancel)?).context(UNEXPECTED)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context(UNEXPECTED)
}

fn numbers<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
    value.as_array().and_then(|all| all.iter().map(read).collect()).context(UNEXPECTED)
}
