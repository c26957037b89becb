//! The agent's control socket, asked directly: where a process for each question would disturb what is
//! measured.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The agent gives up a set-up long before this.
const PATIENCE: Duration = Duration::from_secs(20);
/// The version of the socket's protocol.
const VERSION: u32 = 1;

/// Sends one request, as in `{"op":"status"}`, and returns what it was answered.
///
/// # Errors
/// The agent is not there, or refused; the error is its message.
pub(super) fn ask(socket: &Path, mut request: Value) -> Result<Value> {
    let mut talk = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        request["v"] = VERSION.into();
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        Ok(reply)
    };
    let reply = talk().with_context(|| format!("no answer at {}", socket.display()))?;
    let mut reply: Value = serde_json::from_str(&reply).context("the agent's answer is no JSON")?;
    if let Some(message) = reply["error"]["message"].as_str() {
        bail!("{message}");
    }
    Ok(reply["ok"].take())
}
