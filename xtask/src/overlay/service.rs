//! A program of the overlay on a node: a process of the lab's, or the unit of the package that is installed
//! there.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cyphonic_lab::Machine;
use cyphonic_lab::command::{Cancel, check, run};
use cyphonic_lab::process::Daemon;

/// For systemd to do what it is asked.
const LIMIT: Duration = Duration::from_secs(60);
/// What provisioning leaves on a machine of the lab (`vagrant/provision.sh`).
const MARK: &str = "/etc/cyphonic-lab/node";
/// Whether this is systemd's own network: another's processes see its files too.
const OWN_SYSTEMD: &str =
    r#"[ -d /run/systemd/system ] && [ "$(readlink /proc/1/ns/net)" = "$(readlink /proc/self/ns/net)" ]"#;

/// What runs.
pub(crate) enum Service {
    /// A process that was started here.
    Process(Daemon),
    /// A unit of systemd.
    Unit(Running),
}

/// A unit that was started here, and is stopped with this value.
pub(crate) struct Running {
    unit: Unit,
    released: bool,
}

/// A unit on a machine of the lab.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    machine: Machine,
    name: &'static str,
}

impl Service {
    /// Ends it.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::Process(daemon) => drop(daemon.stop()),
            // What cannot be stopped now is, by the next run.
            Self::Unit(running) => drop(running.unit.stop()),
        }
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        match self {
            Self::Process(daemon) => daemon.kill(),
            Self::Unit(running) => {
                check(&mut running.unit.systemctl(&["kill", "-s", "KILL"]), LIMIT, &Cancel::default())?;
            }
        }
        Ok(())
    }

    /// The process, if it is one.
    pub(crate) fn daemon(&self) -> Option<&Daemon> {
        match self {
            Self::Process(daemon) => Some(daemon),
            Self::Unit(_) => None,
        }
    }

    /// Whether it has ended by itself, as far as is known here.
    pub(crate) fn has_ended(&mut self) -> bool {
        match self {
            Self::Process(daemon) => daemon.exit_status().is_some(),
            Self::Unit(_) => false,
        }
    }

    /// The end of what it has logged.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        match self {
            Self::Process(daemon) => daemon.log_tail(lines),
            Self::Unit(running) => running.unit.log_tail(lines),
        }
    }

    /// What it is, and where all of its log is.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Process(daemon) => format!("{} ({})", daemon.name(), daemon.log_path().display()),
            Self::Unit(running) => format!("journalctl -u {}", running.unit.name),
        }
    }

    /// Sends it a signal by name, as in `STOP`.
    pub(crate) fn signal(&self, machine: &Machine, signal: &str, cancel: &Cancel) -> Result<()> {
        let mut command = match self {
            Self::Process(_) if machine.is_remote() => {
                bail!("a process on another machine cannot be signalled: install the packages there")
            }
            Self::Process(daemon) => {
                let mut kill = Command::new("kill");
                kill.args(["-s", signal, &daemon.pid().to_string()]);
                kill
            }
            Self::Unit(running) => running.unit.systemctl(&["kill", "-s", signal]),
        };
        check(&mut command, LIMIT, cancel)?;
        Ok(())
    }

    /// Lets it run on.
    pub(crate) fn release(self) {
        match self {
            Self::Process(daemon) => daemon.release(),
            Self::Unit(mut running) => running.released = true,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.released {
            // What cannot be stopped now is, by the next run.
            let _ = self.unit.stop();
        }
    }
}

impl Unit {
    /// A machine's unit, where systemd runs the machine and a package has brought the unit.
    ///
    /// # Errors
    /// It is there, but the machine is none of the lab's: what its owner has set up there must not be undone.
    pub(crate) fn find(machine: &Machine, name: &'static str) -> Result<Option<Self>> {
        if !machine.is_remote() {
            return Ok(None);
        }
        let cancel = Cancel::default();
        let own = run(machine.command("sh").args(["-c", OWN_SYSTEMD]), LIMIT, &cancel)?;
        let unit = Self { machine: machine.clone(), name };
        if !own.status.success() || !run(&mut unit.systemctl(&["cat"]), LIMIT, &cancel)?.status.success() {
            return Ok(None);
        }
        if !machine.has(Path::new(MARK)) {
            bail!(
                "{name} is installed on a machine that vagrant/provision.sh has not set up; it is left alone"
            );
        }
        Ok(Some(unit))
    }

    /// Starts it anew, and waits until it says that it is ready if `ready`.
    pub(crate) fn restart(&self, ready: bool) -> Result<Service> {
        self.order(if ready { &["restart"] } else { &["restart", "--no-block"] })?;
        Ok(Service::Unit(Running { unit: self.clone(), released: false }))
    }

    /// Ends it.
    pub(crate) fn stop(&self) -> Result<()> {
        self.order(&["stop"])
    }

    /// The end of its journal.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let mut journal = self.machine.command("journalctl");
        journal.args(["--no-pager", "-o", "cat", "-n", &lines.to_string(), "-u", self.name]);
        check(&mut journal, LIMIT, &Cancel::default()).unwrap_or_else(|error| error.to_string())
    }

    fn order(&self, words: &[&str]) -> Result<()> {
        let done = check(&mut self.systemctl(words), LIMIT, &Cancel::default());
        done.map(drop).with_context(|| format!("its log ends:\n{}", self.log_tail(12)))
    }

    fn systemctl(&self, words: &[&str]) -> Command {
        let mut command = self.machine.command("systemctl");
        command.args(words).arg(self.name);
        command
    }
}
