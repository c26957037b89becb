//! Why the services did not start.

use std::path::PathBuf;

use cyphonic_dataplane::relay::xdp::XdpError;
use cyphonic_dataplane::udp::BindError;
use cyphonic_transport::{TlsError, TransportError};

use crate::pki::PkiError;
use crate::register::RegisterError;

/// Why the services did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// AS and NMS need one.
    #[error("the configuration names no register")]
    NoRegister,
    /// The register.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The register can be read and not written, and the last start was just now.
    #[error(
        "the register cannot be written: {0}; so soon after the last start, set-ups' numbers could come again: mend its disk, or try \
         again two minutes after that"
    )]
    Unreserved(String),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A certificate that does not fit its role.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate that TLS does not take.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A port that cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: BindError,
    },
    /// A TCP port that the configuration insists on.
    #[error(
        "cannot listen on TCP {address}: {source}; stop the program that does, or set tcp to auto or off"
    )]
    Tcp {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// QUIC.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The relay's XDP program, where the configuration insists on it.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    /// Whether it stays so until somebody changes something.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Register(error) => error.needs_a_person(),
            Self::Pki(error) => matches!(error, PkiError::Overlay(..)),
            _ => false,
        }
    }
}
