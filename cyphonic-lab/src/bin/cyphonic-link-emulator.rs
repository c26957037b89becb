//! Joins TAP devices by wires with delay, jitter, loss and a rate; see `cyphonic_lab::emulator`.

#![expect(clippy::print_stderr, reason = "a program tells people on standard error what went wrong")]

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(file) = std::env::args_os().nth(1) else {
        eprintln!("usage: cyphonic-link-emulator WIRES.json (the lab writes that file)");
        return ExitCode::from(2);
    };
    match cyphonic_lab::emulator::main(Path::new(&file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("cyphonic-link-emulator: {problem}");
            ExitCode::FAILURE
        }
    }
}
