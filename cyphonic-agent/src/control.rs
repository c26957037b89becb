//! The daemon's local interface: a Unix socket that speaks one JSON object per line.
//!
//! Only root and the socket file's group are served (`cyphonic`, where the host has it; file mode 0660, and
//! peer credentials checked on every connection): whoever can talk to it can take the tunnel down. There is
//! no TCP form, so a web page cannot reach it.
//!
//! [`report`] holds what `cyphonic status --json` prints; its field names are an interface and only ever
//! grow.

mod backend;
mod client;
mod group;
pub mod metrics;
pub mod netcheck;
mod protocol;
pub mod report;
mod server;
mod settings;
pub mod text;

pub use backend::{Backend, BackendError, ResetTarget};
pub use client::{ClientError, ControlClient};
pub use group::group;
pub use protocol::{
    DnsStatus, Failure, FailureCode, MAX_LINE_BYTES, PROTOCOL_VERSION, Reloaded, Reply, Request, ResetDone,
    Resolved, VersionInfo,
};
pub use report::StatusReport;
pub use server::{ControlError, ControlServer};
pub use settings::Settings;
