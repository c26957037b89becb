//! Sends or counts datagrams; see `cyphonic_lab::datagrams`. Prints its count as JSON.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to who started it")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use cyphonic_lab::datagrams::{Count, bind, receive, send};

const USAGE: &str = "usage: cyphonic-datagrams send TO RUN BYTES RATE MILLISECONDS
       cyphonic-datagrams receive AT RUN IDLE_MILLISECONDS LIMIT_MILLISECONDS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments).and_then(|count| Ok(serde_json::to_string(&count)?)) {
        Ok(count) => {
            println!("{count}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("cyphonic-datagrams: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<Count, Box<dyn Error>> {
    let millis = |text: &str| text.parse().map(Duration::from_millis);
    match *arguments {
        ["send", to, run, bytes, rate, time] => {
            Ok(send(to.parse()?, run.parse()?, bytes.parse()?, rate.parse()?, millis(time)?)?)
        }
        ["receive", at, run, idle, limit] => {
            let socket = bind(at.parse()?)?;
            println!("listening");
            Ok(receive(&socket, run.parse()?, millis(idle)?, millis(limit)?)?)
        }
        _ => Err(USAGE.into()),
    }
}
