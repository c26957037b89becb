//! The process of the cloud.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::overlay::Overlay;

/// For it to be ready, whatever is in its register.
const LIMIT: Duration = Duration::from_secs(180);
/// How often it is looked after meanwhile. Its report is not waited for so long.
const LOOK: Duration = Duration::from_millis(100);
/// The kernel's unit in `/proc/PID/stat`, the same on every architecture (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
/// Fields of `/proc/PID/stat` behind the name, which may have spaces: time in user and kernel mode.
const TIMES: [usize; 2] = [11, 12];

/// A cloud that runs. It is killed with this value.
pub(crate) struct Cloud {
    process: Child,
    log: PathBuf,
}

impl Cloud {
    /// Starts it; it is ready when this returns, as it would tell systemd.
    pub(crate) fn start(program: &Path, overlay: &Overlay) -> Result<Self> {
        let directory = &overlay.directory;
        let (report, log) = (directory.join("notify"), directory.join("cloud.log"));
        // Of an earlier start.
        let _ = fs::remove_file(&report);
        let socket =
            UnixDatagram::bind(&report).with_context(|| format!("cannot bind {}", report.display()))?;
        socket.set_read_timeout(Some(LOOK))?;
        let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--config")
            .arg(&overlay.config_path)
            .stdout(output.try_clone()?)
            .stderr(output);
        // As under systemd, where it also tells who is online.
        command.env("NOTIFY_SOCKET", &report).env("RUNTIME_DIRECTORY", directory).env_remove("RUST_LOG");
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut cloud = Self { process, log };
        let mut message = [0; 4096];
        loop {
            let length = socket.recv(&mut message).unwrap_or_default();
            if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(cloud);
            }
            cloud.check_alive()?;
            if started.elapsed() > LIMIT {
                bail!("the cloud was not ready within {LIMIT:?}");
            }
        }
    }

    /// Fails if it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the cloud has ended ({status}):\n{log}")
            }
        }
    }

    /// Bytes of memory that it holds.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kibibytes.context("the kernel does not say how much memory the cloud holds")? * 1024)
    }

    /// For how long processors have worked for it.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = TIMES.map(|field| fields.get(field).and_then(|ticks| ticks.parse::<u32>().ok()));
        let ticks: Option<u32> = ticks.into_iter().sum();
        Ok(TICK * ticks.context("the kernel does not say for how long the cloud has run")?)
    }

    fn read(&self, what: &str) -> Result<String> {
        let path = format!("/proc/{}/{what}", self.process.id());
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has the cloud ended?"))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
