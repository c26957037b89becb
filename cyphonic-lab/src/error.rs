//! What can go wrong while a lab is built, used or removed.

use std::path::PathBuf;
use std::time::Duration;

use crate::topology::TopologyError;

/// Why the lab could not do what it was asked. A lab that failed to come up has been removed again.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The topology file is wrong.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A program could not be started at all.
    #[error("cannot run `{program}`: {source}{}", hint(program, source))]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A program did not end in time and was killed.
    #[error("`{command}` did not end within {limit:?} and was killed")]
    TimedOut {
        /// The command line.
        command: String,
        /// The time it had.
        limit: Duration,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A state file does not read.
    #[error("the lab state file {} is damaged ({source}); delete its folder and the lab's namespaces by hand", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The name is in use.
    #[error(
        "a lab called `{0}` is up already; remove it with `cargo xtask lab down --name {0}` or choose another name"
    )]
    Exists(String),
    /// Something of a namespace that the lab would have is there, and no lab is known that made it.
    #[error(
        "this is there already, and no lab that is up made it: {0}; remove it, if it is what a lab left before the \
         machine was restarted, or choose another name"
    )]
    Taken(String),
    /// There is no such lab.
    #[error("no lab called `{name}` is up; there are: {known}")]
    NoSuchLab {
        /// The name.
        name: String,
        /// Those that are up.
        known: String,
    },
    /// The name cannot be a lab's.
    #[error(
        "`{0}` cannot be a lab's name: use 1 to 32 small letters, digits and inner hyphens, a letter first"
    )]
    BadName(String),
    /// The lab has no such node.
    #[error("the lab has no node called `{name}`; there are: {known}")]
    NoSuchNode {
        /// The name.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A machine lacks one of its node's interfaces.
    #[error("this machine has no interface on the network `{network}`{}", of(address.as_deref()))]
    NoInterface {
        /// The network.
        network: String,
        /// The hardware address it should have, if it was told.
        address: Option<String>,
    },
    /// A machine lets nobody in over SSH.
    #[error("cannot reach `{host}` over SSH as root: try `ssh -F {} -l root {host}`", config.display())]
    Unreachable {
        /// Its name.
        host: String,
        /// The configuration that should name it.
        config: PathBuf,
    },
    /// The node is a machine of its own.
    #[error("`{0}` is a machine of its own, and this needs a namespace of this one")]
    NotHere(String),
    /// Not root.
    #[error("the lab needs root, because it makes network namespaces; run it with sudo")]
    NotRoot,
    /// Interfaces did not come up.
    #[error("the interfaces of {0} did not come up within {1:?}")]
    Down(String, Duration),
    /// The link emulator did not come up.
    #[error("the link emulator did not start: {0}")]
    Emulator(String),
    /// A daemon did not become ready.
    #[error("{name} {problem}; its log ends:\n{log}")]
    NotReady {
        /// The daemon.
        name: String,
        /// What happened instead.
        problem: String,
        /// The end of its log.
        log: String,
    },
    /// A program's output could not be understood.
    #[error("cannot understand the output of {program}: {problem}\n{output}")]
    Output {
        /// The program.
        program: &'static str,
        /// What is missing.
        problem: String,
        /// What it wrote.
        output: String,
    },
}

impl LabError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

fn of(address: Option<&str>) -> String {
    address.map_or_else(
        || ": no link was named for it".to_owned(),
        |address| format!(" (none with the address {address})"),
    )
}

fn hint(program: &str, error: &std::io::Error) -> String {
    let package = match program {
        "ip" | "tc" => "iproute2",
        "nft" => "nftables",
        "sysctl" => "procps",
        "ping" => "iputils-ping",
        "dig" => "bind9-dnsutils",
        other => other,
    };
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("; install the package {package} (`cargo xtask setup` does)"),
        _ => String::new(),
    }
}
