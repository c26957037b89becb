//! Running other programs.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end with this one's terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = describe(command);
    println!("  $ {text}");
    let status = command.status().with_context(|| format!("cannot start `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed: {status}");
    }
    Ok(())
}

/// What a program prints on its standard output, or `None` if it is not there or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program succeeds, without showing what it says.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Finds a program as a shell would, and where only root's shell would.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A command that runs as root: itself if this process is root, through sudo otherwise.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!(
            "{} must run as root, and there is no sudo: run this as root",
            program.as_ref().to_string_lossy()
        );
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    Ok(command)
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_some_and(|id| id == "0")
}

/// Cargo and rustc of the toolchain this program was started by. Variables that cargo set for xtask itself
/// are taken out: they would rebuild everything, or send another toolchain's cargo the wrong way.
pub(crate) fn without_cargo_environment(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_");
        if ours || matches!(&*text, "CARGO" | "RUSTC" | "RUSTFLAGS" | "CARGO_ENCODED_RUSTFLAGS") {
            command.env_remove(&name);
        }
    }
    command
}

/// The workspace's cargo.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    without_cargo_environment(&mut command).current_dir(crate::workspace::root());
    command
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        // Writing to a string does not fail.
        let _ = write!(text, " {}", argument.to_string_lossy());
    }
    text
}
