//! The emulator of what the kernel lacks: NATs that conntrack cannot be (see [`crate::nat`]), and cables with
//! delay, jitter, loss and a rate, where the kernel has no netem (and, with jitter, also where it has, since
//! netem would reorder the frames).
//!
//! One process serves all such cables of a lab. Each cable is a pair of TAP devices, one in either namespace;
//! frames read from one wait in a [`Queue`] and are written to the other. TAP devices offer no offloads here,
//! so the kernel hands over single frames with complete checksums, as a wire would carry them.
//!
//! The process is `cyphonic-link-emulator` or any other program that calls [`main`]; [`Emulator`] says which.

mod bridge;
mod queue;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::bridge::is_passing;
pub(crate) use self::queue::{BUFFER, MAX_FRAMES};
pub use self::queue::{Fate, Queue};
use crate::nat::gate::Gate;
use crate::topology::Way;
use crate::{LabError, Namespace, command};

/// What the emulator writes once every device is there.
const READY: &str = "ready";

/// How to start the emulator: a program and the arguments that come before the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    /// The program.
    pub program: PathBuf,
    /// Its leading arguments.
    pub arguments: Vec<String>,
}

/// All that the emulator of a lab does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// The cables.
    pub wires: Vec<Wire>,
    /// The NATs.
    pub gates: Vec<Gate>,
}

/// A cable that the emulator joins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wire {
    /// Its two ends.
    pub ends: [Tap; 2],
    /// Largest packet; frames are longer by the Ethernet header.
    pub mtu: u16,
    /// What it does to frames from the first end to the second, and back.
    pub impairments: [Impairment; 2],
}

/// A TAP device to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// File of the namespace it belongs in.
    pub namespace: PathBuf,
    /// Its name there.
    pub device: String,
}

/// What a wire does to frames in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Impairment {
    /// One-way delay.
    pub delay: Duration,
    /// Largest deviation from it.
    pub jitter: Duration,
    /// Share of frames lost.
    pub loss: f64,
    /// Share of frames that skip the delay.
    pub reorder: f64,
    /// Bits per second, if limited.
    pub rate: Option<u64>,
}

impl From<Way> for Impairment {
    fn from(way: Way) -> Self {
        let rate = way.rate.map(crate::topology::BitRate::bits_per_second);
        let (loss, reorder) = (way.loss.fraction(), way.reorder.fraction());
        Self { delay: way.delay, jitter: way.jitter, loss, reorder, rate }
    }
}

impl Default for Emulator {
    /// `cyphonic-link-emulator` beside the running program, or beside its folder as for cargo's tests, or
    /// wherever `PATH` has it.
    fn default() -> Self {
        let name = "cyphonic-link-emulator";
        let beside = std::env::current_exe().ok().and_then(|own| {
            let folders = own.ancestors().skip(1).take(2).map(Path::to_owned).collect::<Vec<_>>();
            folders.into_iter().map(|folder| folder.join(name)).find(|program| program.is_file())
        });
        Self { program: beside.unwrap_or_else(|| name.into()), arguments: Vec::new() }
    }
}

impl Emulator {
    /// Starts it in `home` for the work that is written to `file`, and returns once every device is there.
    pub(crate) fn start(
        &self,
        home: &Namespace,
        work: &Work,
        file: &Path,
        log: &Path,
    ) -> Result<(), LabError> {
        let list = serde_json::to_vec(work).map_err(|error| LabError::Emulator(error.to_string()))?;
        std::fs::write(file, list).map_err(LabError::file("write", file))?;
        let errors = File::create(log).map_err(LabError::file("create", log))?;
        let mut command = home.command(&self.program);
        command.args(&self.arguments).arg(file);
        detach(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command::start(&mut command)?;
        let mut answer = String::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut answer);
        }
        if answer.trim() == READY {
            return Ok(());
        }
        let _ = child.kill();
        let _ = child.wait();
        let said = std::fs::read_to_string(log).unwrap_or_default();
        Err(LabError::Emulator(format!(
            "{} said: {} (build it with `cargo build -p cyphonic-lab`)",
            self.program.display(),
            said.trim()
        )))
    }
}

/// The emulator process: makes the devices for the [`Work`] in the JSON file, says so on standard output, and
/// carries packets until it is killed.
///
/// # Errors
/// A message for people, if the file does not read or a device cannot be made.
pub fn main(file: &Path) -> Result<(), String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let work: Work = serde_json::from_slice(&text)
        .map_err(|error| format!("{} does not say what to emulate: {error}", file.display()))?;
    let joined = bridge::join(&work)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot report: {error}"))?;
    joined.wait();
    Ok(())
}

/// Puts a program into a process group of its own, so that Ctrl-C at a terminal reaches only who started it.
pub(crate) fn detach(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    command.process_group(0)
}
