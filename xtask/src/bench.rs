//! `cargo xtask bench`: what Cyphonic carries and what that costs, beside what other systems do in the same
//! networks.
//!
//! Without a subcommand it compares tunnels: this project's rings, the plain network, and other VPNs. Each
//! measuring subcommand prints a table, writes its figures to `docs/figures/` and renders
//! `docs/performance.md` from all the files there ([`document`]).

mod crypto;
pub(crate) mod document;
mod memory;
mod pi;
mod promises;
mod relay;
mod tunnels;

use anyhow::Result;
use clap::{Args, Subcommand};

/// What to measure.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    tunnels: tunnels::TunnelArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Install the programs that tunnels are compared with.
    Setup,
    /// What one processor relays: by XDP, in userspace, by coturn.
    Relay(relay::RelayArgs),
    /// What an agent keeps in memory, idle and with fifty peers.
    Memory(memory::MemoryArgs),
    /// How many instructions of a Raspberry Pi 4 a packet takes, and what that allows.
    Pi(pi::PiArgs),
    /// What sealing and opening a packet takes, by both ciphers.
    Crypto(crypto::CryptoArgs),
}

/// Runs the verb.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        None => tunnels::run(&args.tunnels),
        Some(What::Setup) => tunnels::setup(),
        Some(What::Relay(args)) => relay::run(args),
        Some(What::Memory(args)) => memory::run(args),
        Some(What::Pi(args)) => pi::run(args),
        Some(What::Crypto(args)) => crypto::run(args),
    }
}
