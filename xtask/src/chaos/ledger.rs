//! What the cloud has acknowledged while everything around it failed, to be compared with what it knows
//! afterwards.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use cyphonic_lab::Machine;
use cyphonic_lab::command::{Cancel, check};
use serde_json::Value;

use crate::overlay::{Administration, Programs, ZONE};

/// Between two devices.
const PAUSE: Duration = Duration::from_millis(300);
/// An enrolment that has had no answer by then is given up; what became of it nobody was told.
const LIMIT: Duration = Duration::from_secs(8);
/// One in so many devices is revoked again.
const REVOKED: usize = 3;

/// Writes until it is told to stop.
pub(super) struct Ledger {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Written>,
}

/// Names of devices, by what was acknowledged.
#[derive(Debug, Default)]
pub(super) struct Written {
    tokens: Vec<String>,
    enrolled: Vec<String>,
    revoked: Vec<String>,
}

struct Writer {
    administration: Administration,
    cloud: String,
    machine: Machine,
    cyphonic: PathBuf,
    home: PathBuf,
    cancel: Cancel,
}

impl Ledger {
    /// Enrols devices on `machine`, each with a folder of its own in `home`.
    pub(super) fn start(
        administration: Administration,
        cloud: &[SocketAddr],
        machine: Machine,
        programs: &Programs,
        home: PathBuf,
    ) -> Result<Self> {
        let cloud = cloud.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (cyphonic, cancel) = (programs.cyphonic.clone(), Cancel::default());
        let writer = Writer { administration, cloud, machine, cyphonic, home, cancel };
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let write = move || writer.write(&stopped);
        let writer = thread::Builder::new().name("ledger".to_owned()).spawn(write);
        Ok(Self { stop, writer: writer.context("cannot start a thread")? })
    }

    /// Stops, and says what was acknowledged.
    pub(super) fn finish(self) -> Written {
        self.stop.store(true, Relaxed);
        self.writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Writer {
    fn write(&self, stop: &AtomicBool) -> Written {
        let mut written = Written::default();
        let mut number = 0;
        while !stop.load(Relaxed) {
            number += 1;
            let name = format!("newcomer-{number}");
            // What fails was not acknowledged; that it does is what faults are for.
            if let Ok(token) = self.administration.create_token(&name, &self.cancel) {
                written.tokens.push(name.clone());
                if self.enrol(&name, &token).is_ok() {
                    written.enrolled.push(name.clone());
                    if number % REVOKED == 0 && self.administration.revoke(&name, &self.cancel).is_ok() {
                        written.revoked.push(name);
                    }
                }
            }
            thread::sleep(PAUSE);
        }
        written
    }

    fn enrol(&self, name: &str, token: &str) -> Result<()> {
        let home = self.home.join(name);
        let token_file = home.join("token");
        std::fs::create_dir_all(&home)?;
        self.machine.write(&token_file, &format!("{token}\n"), true)?;
        let mut command = self.machine.command(&self.cyphonic);
        command.arg("--socket").arg(home.join("socket")).arg("up").args(["--cloud", &self.cloud]);
        command.arg("--token").arg(format!("file:{}", token_file.display()));
        command.arg("--config").arg(home.join("agent.yaml")).arg("--state-dir").arg(home.join("state"));
        check(&mut command, LIMIT, &self.cancel)?;
        Ok(())
    }
}

impl Written {
    /// How many acknowledgements there were.
    pub(super) fn count(&self) -> usize {
        self.tokens.len() + self.enrolled.len() + self.revoked.len()
    }

    /// Those of which nothing is left.
    pub(super) fn lost(&self, administration: &Administration, cancel: &Cancel) -> Result<Vec<String>> {
        Ok(self.missing(&administration.list("token", cancel)?, &administration.list("device", cancel)?))
    }

    fn missing(&self, tokens: &[Value], devices: &[Value]) -> Vec<String> {
        let find = |list: &[Value], name: &str| {
            let fqdn = format!("{name}.{ZONE}");
            list.iter().find(|entry| entry["name"] == fqdn.as_str()).map(|entry| entry["state"].clone())
        };
        let mut missing = Vec::new();
        for name in &self.tokens {
            let used = self.enrolled.contains(name);
            if find(tokens, name).is_none_or(|state| used && state != "used") {
                missing.push(format!("the token for {name}"));
            }
        }
        for name in &self.enrolled {
            let revoked = self.revoked.contains(name);
            match find(devices, name) {
                None => missing.push(format!("the device {name}")),
                Some(state) if revoked && state != "revoked" => {
                    missing.push(format!("the revocation of {name}"));
                }
                Some(_) => {}
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_told() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let written = Written {
            tokens: names(&["a", "b", "c", "d"]),
            enrolled: names(&["a", "b", "c"]),
            revoked: names(&["c"]),
        };
        let entry = |name: &str, state| json!({ "name": format!("{name}.{ZONE}"), "state": state });
        let tokens = [entry("a", "used"), entry("b", "used"), entry("c", "used"), entry("d", "open")];
        let devices = [entry("a", "active"), entry("b", "active"), entry("c", "revoked")];
        assert_eq!(written.missing(&tokens, &devices), [""; 0]);
        assert_eq!(written.count(), 8);
        assert_eq!(written.missing(&tokens[..3], &devices), ["the token for d"]);
        assert_eq!(written.missing(&tokens, &devices[1..]), ["the device a"]);
        let undone = [entry("a", "active"), entry("b", "active"), entry("c", "active")];
        assert_eq!(written.missing(&tokens, &undone), ["the revocation of c"]);
        let reopened = [entry("a", "open"), entry("b", "used"), entry("c", "used"), entry("d", "open")];
        assert_eq!(written.missing(&reopened, &devices), ["the token for a"]);
    }
}
