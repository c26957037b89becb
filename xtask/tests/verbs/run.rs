//! A verb that ran, and what it wrote.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::programs::programs;

/// Labs measure, so there is one at a time.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Run {
    /// The lab's.
    pub(crate) name: String,
    /// By both streams.
    pub(crate) said: String,
    written: serde_json::Value,
}

impl Run {
    /// `cargo xtask VERB ARGUMENTS` in a lab of its own.
    pub(crate) fn of<A: AsRef<OsStr>>(verb: &str, arguments: impl IntoIterator<Item = A>) -> Self {
        let programs = programs();
        Self::of_command(verb, |name, figures| {
            let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
            xtask
                .arg(verb)
                .args(arguments)
                .args(["--name", name, "--json", figures, "--programs"])
                .arg(&programs);
            xtask
        })
    }

    /// A command that runs a verb with the lab's name and the file for its figures that it is given.
    pub(crate) fn of_command(what: &str, command: impl FnOnce(&str, &str) -> Command) -> Self {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{what}-t{}", std::process::id());
        let figures = std::env::temp_dir().join(format!("{name}.json"));
        let mut command = command(&name, figures.to_str().unwrap());
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
        let written = serde_json::from_slice(&fs::read(&figures).unwrap()).unwrap();
        fs::remove_file(&figures).unwrap();
        Self { name, said, written }
    }

    /// A figure, if it was measured.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.written["figures"][name]["value"].as_f64()
    }

    pub(crate) fn value(&self, name: &str) -> f64 {
        self.figure(name).unwrap_or_else(|| panic!("no {name}: {}", self.said))
    }

    /// Why something has no figure.
    pub(crate) fn note(&self, name: &str) -> Option<&str> {
        self.written["notes"][name].as_str()
    }
}
