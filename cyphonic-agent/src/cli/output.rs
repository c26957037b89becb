//! What commands print.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

use crate::control::report::SCHEMA;

/// Prints as it is.
///
/// # Errors
///
/// Nobody reads it any more, as behind `| head -1`, which is no failure ([`super::exit_code`]); or it cannot
/// be written.
pub fn print(text: impl Display) -> Result<(), OutputError> {
    let mut output = io::stdout().lock();
    write!(output, "{text}").and_then(|()| output.flush()).map_err(OutputError)
}

/// Prints a line, as [`print`].
pub(super) fn say(text: impl Display) -> Result<(), OutputError> {
    print(format_args!("{text}\n"))
}

/// Prints a part of the status report that is a report of its own, so it has the version of its form too.
pub(super) fn say_json(part: &impl Serialize) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Versioned<T> {
        schema: u32,
        #[serde(flatten)]
        part: T,
    }

    Ok(say(serde_json::to_string_pretty(&Versioned { schema: SCHEMA, part })?)?)
}

/// Standard output takes no more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct OutputError(io::Error);

impl OutputError {
    /// Whether its reader has gone, having read enough.
    pub(super) fn is_read_enough(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}
