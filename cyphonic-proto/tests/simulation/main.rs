//! Whole networks under virtual time: real node, NMS and TRS machines, joined by a simulated network.
//!
//! `net` has firewalls and NATs (`nat`), `world` the clock, the event queue and the faults, `cloud` the
//! services' shells, `host` a device's shell and its dataplane, `moves` what it is to move. Every message
//! passes through the codec. Whatever the scenario, `world` checks what must always hold: no two tunnels
//! share a key, and an address is answered only with a tunnel in place.

#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected should stop there")]

mod access;
mod cloud;
mod comebacks;
mod dataplane;
mod detours;
mod dials;
mod faults;
mod host;
mod looks;
mod moves;
mod mtu;
mod nat;
mod nat64;
mod net;
mod paths;
mod relay_choice;
mod relay_restarts;
mod restarts;
mod revocations;
mod round_trips;
mod scenarios;
mod security;
mod services;
mod sleep;
mod standbys;
mod successors;
mod world;
