//! The command line.

use std::env;
use std::ffi::OsStr;

use clap::{Command, Parser};

/// Reads the command line, with environment variables in place of flags that are not given. A variable that
/// is empty counts as not set: `CYPHONIC_PORT=` in a file of settings is how people take a value away.
///
/// # Errors
///
/// As [`Parser::try_parse`]; help and version are among them.
pub fn parse<P: Parser>() -> Result<P, clap::Error> {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let mut matches = without_empty(P::command(), &is_empty).try_get_matches()?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut P::command()))
}

/// Arguments whose variable is empty are those of a command that has none.
fn without_empty(command: Command, is_empty: &impl Fn(&OsStr) -> bool) -> Command {
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(None::<&str>),
        _ => arg,
    });
    command.mut_subcommands(|inner| without_empty(inner, is_empty))
}
