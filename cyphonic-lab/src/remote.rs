//! Machines that are reached over SSH, by OpenSSH's own client.
//!
//! One connection to each machine carries everything (`ControlMaster`), so that a command costs a round trip
//! and not a handshake. A command is handed to a shell there, which needs every word quoted; that is done by
//! the *launcher*, a program that calls [`replace`], so that a [`Command`] takes arguments as any other does.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::command::configure;
use crate::process::wait_until;
use crate::{LabError, Machine};

/// A machine that has just been started may take this long to let anyone in.
const ARRIVAL: Duration = Duration::from_secs(60);
/// How the launcher is told that a program ends with its standard input.
const HELD: &str = "held";
/// Its counterpart.
const PLAIN: &str = "plain";
/// Runs a program until standard input ends, then asks it to end and waits for that. What waits for the end
/// of input must not hold the program's own output open.
const HOLD: &str = r#"exec 3<&0; "$@" </dev/null 3<&- & program=$!; { cat; kill "$program"; } <&3 >/dev/null 2>&1 & exec 3<&-; wait "$program""#;

/// The program that hands a command to SSH, and the arguments that come before its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its leading arguments.
    pub arguments: Vec<String>,
}

/// A machine reached over SSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    launcher: Launcher,
    config: PathBuf,
    sockets: PathBuf,
    host: String,
}

/// The machines of a lab, while connections to them stand.
#[derive(Debug)]
pub(crate) struct Fleet {
    launcher: Launcher,
    config: PathBuf,
    sockets: PathBuf,
    masters: Vec<Child>,
}

impl Fleet {
    /// Connects to all of `hosts`, by the names that an OpenSSH configuration has for them.
    pub(crate) fn connect(config: &Path, launcher: Launcher, hosts: &[String]) -> Result<Self, LabError> {
        let config = config.canonicalize().map_err(LabError::file("find", config))?;
        // Short, since sockets' paths may have but 107 bytes; of this user alone.
        let sockets = std::env::temp_dir().join(format!("cyphonic-lab-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&sockets);
        made.map_err(LabError::file("create", &sockets))?;
        let mut fleet = Self { launcher, config, sockets, masters: Vec::new() };
        for host in hosts {
            let mut ssh = ssh(&fleet.config, &fleet.sockets);
            ssh.args(["-N", "-o", "ControlMaster=yes", "-o", "ServerAliveInterval=15", "--", host]);
            ssh.stdin(Stdio::null()).stdout(Stdio::null());
            fleet.masters.push(crate::command::start(crate::emulator::detach(&mut ssh))?);
        }
        for (host, master) in hosts.iter().zip(&mut fleet.masters) {
            let mut check = ssh(&fleet.config, &fleet.sockets);
            check.args(["-O", "check", "--", host]);
            let mut is_up = || configure(&mut check, "").is_ok();
            let ended = |master: &mut Child| master.try_wait().is_ok_and(|status| status.is_some());
            if !wait_until(ARRIVAL, || is_up() || ended(master)) || ended(master) {
                return Err(LabError::Unreachable { host: host.clone(), config: fleet.config.clone() });
            }
        }
        Ok(fleet)
    }

    /// One of the machines.
    pub(crate) fn machine(&self, host: &str) -> Machine {
        Machine::Remote(Remote {
            launcher: self.launcher.clone(),
            config: self.config.clone(),
            sockets: self.sockets.clone(),
            host: host.to_owned(),
        })
    }

    /// A folder of this machine for the connections' time.
    pub(crate) fn dir(&self) -> &Path {
        &self.sockets
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for master in &mut self.masters {
            // Both fail only where it has ended already.
            let _ = master.kill();
            let _ = master.wait();
        }
        let _ = std::fs::remove_dir_all(&self.sockets);
    }
}

impl Remote {
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        self.launch(PLAIN, [program])
    }

    /// The same command as one that ends when its standard input does.
    pub(crate) fn held(&self, command: &Command) -> Command {
        // The launcher's, the kind, configuration, sockets, host.
        let leading = self.launcher.arguments.len() + 4;
        self.launch(HELD, command.get_args().skip(leading))
    }

    fn launch<'a>(&self, kind: &str, words: impl IntoIterator<Item = &'a OsStr>) -> Command {
        let mut command = Command::new(&self.launcher.program);
        command.args(&self.launcher.arguments).arg(kind).arg(&self.config).arg(&self.sockets).arg(&self.host);
        command.args(words);
        command
    }

    /// Makes a Unix socket of that machine a socket of this one, and returns where.
    pub(crate) fn bring_near(&self, socket: &Path) -> Result<PathBuf, LabError> {
        let near = self.sockets.join(format!("{}.sock", self.host));
        let _ = std::fs::remove_file(&near);
        let mut forward = ssh(&self.config, &self.sockets);
        let pair = format!("{}:{}", near.display(), socket.display());
        configure(forward.args(["-O", "forward", "-L", &pair, "--", &self.host]), "")?;
        Ok(near)
    }
}

/// Becomes an SSH client that runs a command on another machine: what a launcher does with the arguments
/// after its own. Returns only if that fails.
pub fn replace(arguments: &[OsString]) -> io::Error {
    let [kind, config, sockets, host, words @ ..] = arguments else {
        return io::Error::other("arguments are missing");
    };
    let mut line: Vec<u8> = Vec::new();
    if kind == HELD {
        line.extend_from_slice(b"sh -c ");
        line.extend(quoted(OsStr::new(HOLD)));
        line.extend_from_slice(b" sh");
    }
    for word in words {
        line.push(b' ');
        line.extend(quoted(word));
    }
    let mut ssh = ssh(Path::new(config), Path::new(sockets));
    ssh.args(["-o", "ControlMaster=no", "-T", "--"]).arg(host).arg(OsStr::from_bytes(&line)).exec()
}

/// As root, since nodes are configured and programs of the overlay are started.
fn ssh(config: &Path, sockets: &Path) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(config).args(["-l", "root", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
    ssh.arg("-o").arg(format!("ControlPath={}/%n", sockets.display()));
    ssh
}

/// A word that a shell leaves as it is.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_every_word_as_it_was() {
        for word in ["plain", "two words", "it's", "$(reboot)", "`x`", "", "a\\b\"c", "*", "new\nline"] {
            let mut line = b"printf %s ".to_vec();
            line.extend(quoted(OsStr::new(word)));
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&line)).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn a_held_command_has_the_same_words() {
        let launcher = Launcher { program: "/launcher".into(), arguments: vec!["lab".into(), "on".into()] };
        let remote = Remote { launcher, config: "/c".into(), sockets: "/s".into(), host: "a".into() };
        let mut command = remote.command(OsStr::new("prog"));
        command.args(["--x", "y z"]);
        let words = |command: &Command| -> Vec<String> {
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(words(&command), ["lab", "on", "plain", "/c", "/s", "a", "prog", "--x", "y z"]);
        assert_eq!(
            words(&remote.held(&command)),
            ["lab", "on", "held", "/c", "/s", "a", "prog", "--x", "y z"]
        );
    }

    #[test]
    fn what_is_held_is_asked_to_end_with_its_input_and_waited_for() {
        let script = "trap 'echo ending; exit 7' TERM; echo begun; while :; do sleep 0.05; done";
        let mut child = Command::new("sh")
            .args(["-c", HOLD, "sh", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
        assert_eq!(lines.next().unwrap().unwrap(), "begun");
        drop(child.stdin.take());
        assert_eq!(lines.next().unwrap().unwrap(), "ending");
        assert_eq!(child.wait().unwrap().code(), Some(7));
        // And the program's own end is the whole's.
        let mut short = Command::new("sh");
        let mut short =
            short.args(["-c", HOLD, "sh", "sh", "-c", "exit 3"]).stdin(Stdio::piped()).spawn().unwrap();
        let _open = short.stdin.take();
        assert_eq!(short.wait().unwrap().code(), Some(3));
    }
}
