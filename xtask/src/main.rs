//! The workshop of this repository: `cargo xtask VERB`.
//!
//! | Verb | Does |
//! |---|---|
//! | `setup` | installs what building and testing need, saying what and why |
//! | `build` | builds the eBPF objects, then the programs |
//! | `package` | Debian packages of agent and cloud |
//! | `test` | `setup`, `build` and every test there is |
//! | `ci` | formatting, lints, dependency rules, then `test` |
//! | `fuzz` | millions of damaged frames: kernel and userspace must judge alike |
//! | `test-kernels` | the eBPF programs on other kernels, emulated |
//! | `test-packages` | the Debian packages from installation to purge, on an emulated machine with systemd |
//! | `test-aarch64` | agents, relay and eBPF programs on an emulated Raspberry Pi 4 |
//! | `vagrant-stage` | what the virtual machines of `vagrant/` are given |
//! | `vagrant-rehearse` | the scenarios over SSH, with namespaces as machines |
//! | `test-vagrant` | provisioning and a scenario over SSH, on an emulated machine with systemd |
//! | `lab` | networks with NATs on this machine, from `vagrant/topology.yaml` |
//! | `bench` | rates, round trips and costs, beside other VPNs and relays |
//! | `roam` | two devices move between networks under traffic: gaps and what is lost |
//! | `nat-grid` | a device behind every kind of NAT, and each pair of them connected |
//! | `mtu` | tunnels over 26 outer MTUs, and over one that changes |
//! | `chaos` | faults at random, from a seed: processes killed, cables pulled out |
//! | `scale` | what one cloud bears: ten thousand nodes, a million devices |
//! | `paper` | the paper's Section IV over links with its distances |
//! | `demo` | the whole system in such networks: enrols devices, connects them, measures |
//!
//! A module per verb, each thin: what takes thought lives in the crates.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program talks to its user")]

mod aarch64;
mod bars;
mod bench;
mod build;
mod chaos;
mod ci;
mod demo;
mod ebpf;
mod fuzz;
mod kernels;
mod lab;
mod mtu;
mod nat_grid;
mod overlay;
mod package;
mod page;
mod paper;
mod roam;
mod scale;
mod server;
mod setup;
mod shell;
mod target;
mod test;
mod vagrant;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and demonstrates Cyphonic.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what building and testing need: Debian packages, the eBPF toolchain and linker.
    Setup(setup::SetupArgs),
    /// Build the eBPF objects and the programs.
    Build(build::BuildArgs),
    /// Make Debian packages of agent and cloud, in target/debian.
    Package(package::PackageArgs),
    /// Install what is missing, build, and run every test. Prints the total.
    Test(test::TestArgs),
    /// What must hold before a change is merged: formatting, lints, dependency rules, and the tests of `cargo
    /// xtask test`, which are what runs for each change.
    Ci,
    /// Send millions of damaged frames through every program and its twin in userspace.
    Fuzz(fuzz::FuzzArgs),
    /// Load and test the eBPF programs on Debian's kernels, in an emulator.
    TestKernels(kernels::KernelsArgs),
    /// Install, upgrade and purge the Debian packages on an emulated machine with systemd.
    TestPackages(package::trial::TrialArgs),
    /// Run agents, relay and the eBPF programs' tests on an emulated Raspberry Pi 4.
    TestAarch64(aarch64::Aarch64Args),
    /// Bring together what the virtual machines of vagrant/ are given: packages and the lab's program.
    VagrantStage(vagrant::StageArgs),
    /// Run a scenario over SSH as on the virtual machines of vagrant/, with namespaces in their parts.
    VagrantRehearse(vagrant::rehearsal::RehearsalArgs),
    /// Provision an emulated machine as one of vagrant/ and run a scenario on it over SSH.
    TestVagrant(vagrant::trial::TrialArgs),
    /// Build networks with NATs on this machine from the topology file.
    Lab(lab::LabArgs),
    /// Measure rates, round trips and costs beside other systems in the same networks.
    Bench(Box<bench::BenchArgs>),
    /// Move two devices between networks under traffic, and measure what that costs.
    Roam(roam::RoamArgs),
    /// Kill, freeze and unplug things at random under traffic, and see that nothing stays broken and nothing
    /// acknowledged is lost.
    Chaos(chaos::ChaosArgs),
    /// Connect devices behind every kind of NAT and firewall with each other.
    NatGrid(nat_grid::GridArgs),
    /// Carry traffic over tunnels whose path has each of 26 MTUs from 1,280 to 9,000 bytes, and one that changes.
    Mtu(mtu::MtuArgs),
    /// Connect ten thousand nodes to one cloud, start it with a million devices, and measure what that costs.
    Scale(scale::ScaleArgs),
    /// Repeat the paper's measurements over links with its distances.
    Paper(paper::PaperArgs),
    /// Show the whole system on real packets: the paper's experiment on this machine, in under a minute.
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Package(args) => package::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Ci => ci::run(),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::TestKernels(args) => kernels::run(&args),
        Verb::TestPackages(args) => package::trial::run(&args),
        Verb::TestAarch64(args) => aarch64::run(&args),
        Verb::TestVagrant(args) => vagrant::trial::run(&args),
        Verb::VagrantStage(args) => vagrant::stage(&args),
        Verb::VagrantRehearse(args) => vagrant::rehearsal::run(&args),
        Verb::Lab(args) => lab::run(args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Roam(args) => roam::run(&args),
        Verb::Chaos(args) => chaos::run(&args),
        Verb::NatGrid(args) => nat_grid::run(&args),
        Verb::Mtu(args) => mtu::run(&args),
        Verb::Scale(args) => scale::run(&args),
        Verb::Paper(args) => paper::run(&args),
        Verb::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
