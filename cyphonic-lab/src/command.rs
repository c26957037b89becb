//! Running programs: with captured output, a time limit, and a way to stop early.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::LabError;

/// How often a running program is looked after. Its end is seen this late, so a device's start-up is timed
/// this exactly.
const POLL: Duration = Duration::from_millis(2);
/// How often one that has run for [`LONG`] is: it may be a measurement, and each look takes time from it.
const LONG_POLL: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(1);

/// A flag that a signal handler sets and that [`run`] watches.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The flag itself, to hand to a signal handler.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Asks everything that watches to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error if it is time to stop, for `?`.
    ///
    /// # Errors
    /// [`LabError::Interrupted`] once cancelled.
    pub fn check(&self) -> Result<(), LabError> {
        if self.is_cancelled() { Err(LabError::Interrupted) } else { Ok(()) }
    }
}

/// What a program that ended had to say.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end and returns its output, whatever its exit status.
///
/// # Errors
/// It cannot be started, outlives `limit`, or `cancel` is set; in the last two cases it has been killed.
pub fn run(command: &mut Command, limit: Duration, cancel: &Cancel) -> Result<Output, LabError> {
    cancel.check()?;
    let started = Instant::now();
    let mut child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|source| start_error(command, source))? {
            break status;
        }
        let elapsed = started.elapsed();
        let late = elapsed > limit;
        if late || cancel.is_cancelled() {
            kill(&mut child);
            cancel.check()?;
            return Err(LabError::TimedOut { command: line(command), limit });
        }
        thread::sleep(if elapsed < LONG { POLL } else { LONG_POLL });
    };
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Like [`run`], but a failing exit status is an error too.
///
/// # Errors
/// As [`run`], or the program failed.
pub fn check(command: &mut Command, limit: Duration, cancel: &Cancel) -> Result<String, LabError> {
    let output = run(command, limit, cancel)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = if output.stderr.trim().is_empty() { output.stdout } else { output.stderr };
    Err(failed(command, output.status, &stderr))
}

/// Runs one of the system's configuration tools, with `input` as its standard input.
pub(crate) fn configure(command: &mut Command, input: &str) -> Result<String, LabError> {
    let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    // A tool that stops reading early has failed; its own message says why, not the broken pipe.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|source| start_error(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(failed(command, output.status, &format!("{}\ninput was:\n{input}", stderr.trim())))
}

/// Starts a program; the error names it.
pub(crate) fn start(command: &mut Command) -> Result<Child, LabError> {
    command.spawn().map_err(|source| start_error(command, source))
}

/// The command line for people.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn start_error(command: &Command, source: std::io::Error) -> LabError {
    LabError::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn failed(command: &Command, status: ExitStatus, stderr: &str) -> LabError {
    LabError::Failed { command: line(command), status: status.to_string(), stderr: stderr.trim().to_owned() }
}

fn kill(child: &mut Child) {
    // Both fail only if the child has ended meanwhile.
    let _ = child.kill();
    let _ = child.wait();
}

/// Drains a pipe on a thread of its own, so that a talkative program never blocks on it.
fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn text(reader: Option<thread::JoinHandle<String>>) -> String {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn output_and_status_are_both_returned() {
        let output =
            run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), LONG, &Cancel::default())
                .unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_failing_program_is_named_with_what_it_said() {
        let error = check(Command::new("sh").args(["-c", "echo no >&2; exit 1"]), LONG, &Cancel::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("no"), "{error}");
        let error =
            check(&mut Command::new("no-such-program"), LONG, &Cancel::default()).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("install"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_at_its_limit_or_when_cancelled() {
        let limit = Duration::from_millis(50);
        let error = run(Command::new("sleep").arg("60"), limit, &Cancel::default()).unwrap_err();
        assert!(matches!(error, LabError::TimedOut { .. }), "{error}");

        let cancel = Cancel::default();
        let later = cancel.clone();
        let canceller = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            later.cancel();
        });
        let error = run(Command::new("sleep").arg("60"), LONG, &cancel).unwrap_err();
        assert!(matches!(error, LabError::Interrupted), "{error}");
        canceller.join().unwrap();
    }
}
