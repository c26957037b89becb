//! `cargo xtask ci`: what must hold before a change is merged, quickest check first.

use std::process::Command;

use anyhow::{Context, Result};

use crate::test::TestArgs;
use crate::{ebpf, setup, shell, test, workspace};

/// Runs the verb.
pub(crate) fn run() -> Result<()> {
    formatting()?;
    let ruled = dependency_rules()?;
    setup::lab()?;
    lints()?;
    test::run(&TestArgs::default())?;
    println!("ci: passed{}", if ruled { "" } else { ", but for deny.toml, which was not checked" });
    Ok(())
}

fn formatting() -> Result<()> {
    println!("ci: formatting");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    let mut ebpf = shell::cargo();
    ebpf.args(["fmt", "--check"]).current_dir(workspace::ebpf());
    shell::run(&mut ebpf).context("run `cargo fmt` in cyphonic-ebpf")
}

fn lints() -> Result<()> {
    println!("ci: lints");
    // The object first: what embeds it is linted as it is built.
    ebpf::build()?;
    let arguments = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    shell::run(shell::cargo().args(arguments))?;
    ebpf::lint()
}

/// Whether they were checked: cargo-deny takes minutes to build and asks a database beside the packages'
/// registry, so it is used where it is installed.
fn dependency_rules() -> Result<bool> {
    if !shell::succeeds(Command::new("cargo").args(["deny", "--version"])) {
        println!(
            "ci: cargo-deny is not installed, so deny.toml is not checked (`cargo install cargo-deny --locked`)"
        );
        return Ok(false);
    }
    println!("ci: licences, advisories and bans");
    shell::run(shell::cargo().args(["deny", "--workspace", "check"]))?;
    shell::run(shell::cargo().args(["deny", "--manifest-path", "cyphonic-ebpf/Cargo.toml", "check"]))?;
    Ok(true)
}
