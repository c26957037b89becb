//! The cloud of an overlay: Authentication Service, Node Management Service and Tunnel Relay Service.
//!
//! One process runs all three, or each runs alone; the configuration says which.
//!
//! - [`installation`] founds an overlay, [`config`] reads what it wrote, [`pki`] makes the certificates;
//! - [`register`] keeps what was promised;
//! - [`authentication`] decides for the AS; the NMS and the TRS decide in `cyphonic_proto`;
//! - [`server`] gives all of them sockets, a clock and each other.
//!
//! Architecture invariants: SQL is spoken in [`register`] only; decisions take the time as an argument and
//! are tested without sockets; the register has what an answer promises before the answer leaves.

pub mod authentication;
pub mod backup;
pub mod config;
pub mod installation;
pub mod names;
pub mod network;
pub mod pki;
pub mod register;
mod seldom;
pub mod server;

/// The software's version, as shown by `cyphonic-cloud --version` and in the log at the start.
pub const VERSION: &str = match option_env!("CYPHONIC_VERSION") {
    Some(of_package) => of_package,
    None => env!("CARGO_PKG_VERSION"),
};
