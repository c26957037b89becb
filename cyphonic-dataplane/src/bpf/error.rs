//! What can go wrong between an embedded object and an attached program, in words for the person who must
//! act.

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::classifier::AttachKind;
use crate::errno::errno;

/// The oldest version of Linux that the programs are written for.
const OLDEST: (u32, u32) = (5, 11);

/// Why eBPF could not be used. The tunnel works without it.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The binary holds no programs.
    #[error("this binary was built without eBPF objects: run `cargo xtask build`")]
    NotBuilt,
    /// The process lacks privileges.
    #[error(
        "the kernel does not permit eBPF to this process ({source}): it needs CAP_BPF and CAP_NET_ADMIN (under systemd: \
         AmbientCapabilities=CAP_BPF CAP_NET_ADMIN), or CAP_SYS_ADMIN before Linux 5.8; in a container, seccomp must \
         allow bpf(2)"
    )]
    NotPermitted {
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel has no eBPF, or lacks a feature the programs need.
    #[error(
        "this kernel ({kernel}) lacks what the eBPF programs need ({source}): use Linux 5.11 or later with \
         CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT"
    )]
    Unsupported {
        /// The running kernel's version.
        kernel: String,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's verifier refused a program: a bug of this project on this kernel.
    #[error(
        "this kernel ({kernel}) refuses the eBPF program {program}; please report this with the verifier's log: {log}"
    )]
    Rejected {
        /// The program.
        program: &'static str,
        /// The running kernel's version.
        kernel: String,
        /// What the verifier said last.
        log: String,
    },
    /// The embedded object does not hold what this version expects.
    #[error("the embedded eBPF object has no {what}: it is from another version, run `cargo xtask build`")]
    Missing {
        /// The program or map.
        what: &'static str,
    },
    /// The embedded object cannot be read.
    #[error("the embedded eBPF object cannot be loaded: {0}; run `cargo xtask build`")]
    Object(Box<EbpfError>),
    /// There is no such interface.
    #[error("there is no network interface {interface} to attach an eBPF program to")]
    NoInterface {
        /// The interface's name.
        interface: String,
    },
    /// The kernel did not attach a loaded program.
    #[error("cannot attach the eBPF program {program} to {interface} by {kind}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface's name.
        interface: String,
        /// How it was tried.
        kind: AttachKind,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// The kernel did not attach a loaded XDP program.
    #[error("cannot attach the eBPF program {program} to {interface} by native XDP: {advice} ({source})")]
    AttachXdp {
        /// The program.
        program: &'static str,
        /// The interface's name.
        interface: String,
        /// What to do.
        advice: &'static str,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// The interface was renamed while programs were attached.
    #[error("another interface is called {0} by now")]
    Renamed(String),
    /// Further cards' sockets would have no place.
    #[error(
        "{interface} has no place: {most} network cards give packets to AF_XDP sockets already, and more cannot; its \
         packets come by the UDP port"
    )]
    TooManyCards {
        /// The interface's name.
        interface: String,
        /// How many can.
        most: u32,
    },
    /// The kernel did not let a program choose queues or sockets.
    #[error("the kernel does not let the eBPF program {program} choose among several {what}: {source}")]
    Steer {
        /// The program.
        program: &'static str,
        /// Queues or sockets.
        what: &'static str,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be read or written.
    #[error("cannot access the eBPF map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// The programs' log could not be opened.
    #[error("cannot read the eBPF programs' log: {0}")]
    Log(#[from] aya_log::Error),
}

impl BpfError {
    pub(super) fn from_load(error: EbpfError) -> Self {
        let code = match &error {
            EbpfError::MapError(_) | EbpfError::ProgramError(_) => errno(&error),
            _ => None,
        };
        match code {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { source: error.into() },
            Some(libc::ENOSYS | libc::EINVAL) => Self::Unsupported { kernel: kernel(), source: error.into() },
            _ => Self::Object(Box::new(error)),
        }
    }

    pub(super) fn from_program(program: &'static str, error: ProgramError) -> Self {
        let code = errno(&error);
        match error {
            ProgramError::LoadError { verifier_log, .. } if !verifier_log.to_string().is_empty() => {
                Self::refused(program, kernel(), tail(&verifier_log.to_string()))
            }
            error if matches!(code, Some(libc::EPERM | libc::EACCES)) => {
                Self::NotPermitted { source: error.into() }
            }
            error if matches!(code, Some(libc::ENOSYS | libc::EINVAL)) => {
                Self::Unsupported { kernel: kernel(), source: error.into() }
            }
            error => Self::Object(Box::new(error.into())),
        }
    }

    /// A verifier that is older than what the programs are written for has no need to be reported.
    fn refused(program: &'static str, kernel: String, log: String) -> Self {
        match version(&kernel).is_some_and(|version| version < OLDEST) {
            true => {
                Self::Unsupported { kernel, source: format!("its verifier refuses {program}: {log}").into() }
            }
            false => Self::Rejected { program, kernel, log },
        }
    }

    pub(super) fn from_attach(
        program: &'static str,
        interface: &str,
        kind: AttachKind,
        error: ProgramError,
    ) -> Self {
        match errno(&error) {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { source: error.into() },
            Some(libc::ENODEV) => Self::NoInterface { interface: interface.to_owned() },
            _ => Self::Attach { program, interface: interface.to_owned(), kind, source: Box::new(error) },
        }
    }
}

/// The last lines of a verifier log say what was wrong; the rest is the program.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
}

/// Major and minor version of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "version unknown".to_owned(), |release| release.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verifier_that_should_take_a_program_is_worth_a_report() {
        let told =
            |kernel: &str| BpfError::refused("cyphonic_veth", kernel.into(), "R1 invalid".into()).to_string();
        for kernel in ["5.10.0-23-arm64", "4.19.0", "5.4"] {
            let told = told(kernel);
            assert!(told.contains("use Linux 5.11 or later") && told.contains("R1 invalid"), "{told}");
            assert!(told.contains("cyphonic_veth") && !told.contains("report"), "{told}");
        }
        for kernel in ["5.11.0", "6.1.0-9-amd64", "6.18.44-fc-v669", "version unknown"] {
            let told = told(kernel);
            assert!(told.contains("please report this") && told.contains("R1 invalid"), "{told}");
        }
    }
}
