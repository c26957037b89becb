//! Programs that run in the lab for a while, with their output in a log file.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::Cancel;
use crate::emulator::detach;
use crate::{LabError, Namespace, command, netns};

/// How long a program has between SIGTERM and SIGKILL. Agents and services take a few seconds for their
/// farewells, and longer where the machine is busy.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A running program. Dropping it stops it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
    status: Option<ExitStatus>,
    /// The standard input of a program that ends with it: one on another machine, which no signal reaches.
    lifeline: Option<ChildStdin>,
    /// Whether it goes on running after this value is gone.
    released: bool,
}

impl Daemon {
    /// Starts a program whose output goes to `log`.
    pub(crate) fn start(command: &mut Command, name: String, log: PathBuf) -> Result<Self, LabError> {
        Self::start_with(command.stdin(Stdio::null()), name, log)
    }

    /// The same for a program that ends when its standard input does.
    pub(crate) fn start_held(command: &mut Command, name: String, log: PathBuf) -> Result<Self, LabError> {
        let mut daemon = Self::start_with(command.stdin(Stdio::piped()), name, log)?;
        daemon.lifeline = daemon.child.stdin.take();
        Ok(daemon)
    }

    fn start_with(command: &mut Command, name: String, log: PathBuf) -> Result<Self, LabError> {
        let file = File::create(&log).map_err(LabError::file("create", &log))?;
        let errors = file.try_clone().map_err(LabError::file("share", &log))?;
        let child = command::start(detach(command).stdout(file).stderr(errors))?;
        Ok(Self { child, name, log, status: None, lifeline: None, released: false })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of what it has written.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.status = self.status.or_else(|| self.child.try_wait().ok().flatten());
        self.status
    }

    /// Asks it to end, and kills it if it does not; returns how it ended.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        match self.lifeline.take() {
            Some(lifeline) => drop(lifeline),
            None => self.signal(Signal::SIGTERM),
        }
        if !wait_until(GRACE, || self.exit_status().is_some()) {
            self.kill();
        }
        self.exit_status()
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.status = self.status.or_else(|| self.child.wait().ok());
    }

    /// Lets it run on after this value is gone; the lab still ends it.
    pub fn release(mut self) {
        self.released = true;
    }

    pub(crate) fn not_ready(&self, problem: String) -> LabError {
        LabError::NotReady { name: self.name.clone(), problem, log: self.log_tail(15) }
    }

    fn signal(&mut self, signal: Signal) {
        // A child that has not been waited for keeps its id, so this reaches no other process.
        if self.exit_status().is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.released {
            self.stop();
        }
    }
}

/// Waits for a daemon to say that it is ready, as it would say to systemd (sd_notify(3)).
#[derive(Debug)]
pub struct Readiness {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Readiness {
    /// A socket in `dir` for the daemon called `label`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(dir: &Path, label: &str) -> Result<Self, LabError> {
        let path = dir.join(format!("{label}.notify"));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).map_err(LabError::file("bind", &path))?;
        socket.set_read_timeout(Some(POLL)).map_err(LabError::file("set up", &path))?;
        Ok(Self { socket, path })
    }

    /// Tells the program to be started where to report.
    pub fn announce_in(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path);
    }

    /// Waits for the report.
    ///
    /// # Errors
    /// The daemon ended, or said nothing within `limit`, or `cancel` was set.
    pub fn wait(&self, daemon: &mut Daemon, limit: Duration, cancel: &Cancel) -> Result<(), LabError> {
        let started = Instant::now();
        loop {
            cancel.check()?;
            let mut message = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut message)
                && message
                    .get(..length)
                    .is_some_and(|text| text.split(|byte| *byte == b'\n').any(|l| l == b"READY=1"))
            {
                return Ok(());
            }
            if let Some(status) = daemon.exit_status() {
                return Err(daemon.not_ready(format!("ended before it was ready ({status})")));
            }
            if started.elapsed() > limit {
                return Err(daemon.not_ready(format!("was not ready within {limit:?}")));
            }
        }
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Ends everything that runs in the namespaces.
pub(crate) fn stop_all(namespaces: &[Namespace]) {
    for pid in netns::processes(namespaces) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if !wait_until(GRACE, || netns::processes(namespaces).is_empty()) {
        for pid in netns::processes(namespaces) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        wait_until(GRACE, || netns::processes(namespaces).is_empty());
    }
}

/// Polls until `done` or `limit`; whether it was done.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if done() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        thread::sleep(POLL);
    }
}
