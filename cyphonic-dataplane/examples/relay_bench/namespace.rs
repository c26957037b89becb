//! A network namespace that lives as long as the thread in it, so nothing is left behind however a run ends.

use std::io;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that is in it.
pub(crate) struct Namespace {
    tid: u32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub(crate) fn new() -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (started, starting) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: it takes no pointers, and only this thread changes its namespace.
            let result = match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
                // SAFETY: it takes no arguments and cannot fail.
                0 => Ok(unsafe { libc::gettid() }.cast_unsigned()),
                _ => Err(io::Error::last_os_error()),
            };
            let failed = result.is_err();
            if started.send(result).is_ok() && !failed {
                todo.into_iter().for_each(|job| job());
            }
        });
        let tid = starting.recv()?.context("cannot make a network namespace (are you root?)")?;
        let this = Self { tid, jobs: Some(jobs), thread: Some(thread) };
        this.sh("ip link set lo up")?;
        Ok(this)
    }

    /// By which others move interfaces into it.
    pub(crate) fn tid(&self) -> u32 {
        self.tid
    }

    /// Runs something in the namespace and waits for it. Threads and processes it starts are in it as well.
    pub(crate) fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (done, result) = channel();
        let job = move || drop(done.send(work()));
        let jobs = self.jobs.as_ref().context("the namespace is closed")?;
        jobs.send(Box::new(job)).ok().context("the namespace's thread has ended")?;
        result.recv().context("the namespace's thread has ended")?
    }

    /// Runs a shell script in the namespace, which sees the namespace's own `/sys`.
    pub(crate) fn sh(&self, script: &str) -> Result<()> {
        let script = format!("set -e; mount -t sysfs sysfs /sys; {script}");
        self.run(move || {
            let mut command = Command::new("unshare");
            let output = command.args(["--mount", "sh", "-c", &script]).output().context("unshare")?;
            ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
