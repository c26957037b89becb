//! The agent of one device: everything around the tunnel that makes a name usable by any program.
//!
//! A program asks the host's resolver for `press-7.plant.cyphonic.internal`. The host's [`resolver`] hands
//! that one zone to our [`dns`] server, which holds the answer until the engine says that the tunnel stands,
//! and then answers with the peer's virtual address. The packets that follow find their way by what
//! [`netlink`] has put on the interface. People see all of it through [`control`]: a Unix socket, spoken to
//! by the `cyphonic` command.
//!
//! Who owns what:
//!
//! - [`config`] is read once and never changes while the daemon runs.
//! - [`state`] is the only thing that survives a restart: the device's key, its certificates, the node's
//!   cached state.
//! - [`enrol`] turns a token into that identity.
//! - [`renew`] turns that identity into a younger one, for as long as the overlay wants it.
//! - [`engine`] drives the node's state machine with real connections and a real ring.
//! - [`adapter`] carries what peers open on to a machine without an agent, for which this one stands.
//! - [`daemon`] starts the parts in order and takes them down again, whatever happens in between.
//!
//! **Invariant:** the host is left as it was found. What the agent changes outside its own directories (the
//! resolver's configuration, the interface) is written down before it is changed, undone on stop, and undone
//! by the next start after a crash.

pub mod adapter;
pub mod cli;
mod complaints;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod engine;
pub mod enrol;
mod nat64;
mod netcheck;
pub mod netlink;
pub mod renew;
pub mod resolver;
pub mod state;

/// The software's version, as shown by `cyphonic version` and sent in Login Requests.
pub const VERSION: &str = match option_env!("CYPHONIC_VERSION") {
    Some(of_package) => of_package,
    None => env!("CARGO_PKG_VERSION"),
};
