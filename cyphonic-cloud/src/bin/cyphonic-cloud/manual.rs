//! `cyphonic-cloud manual`: man pages and shell completions, made from the definition that parses the
//! arguments.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum as _;
use clap_complete::Shell;

/// Writes them into a folder, which is made.
pub(crate) fn write(command: clap::Command, folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write into {}", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    let name = command.get_name().to_owned();
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut command.clone(), &name, folder).with_context(failed)?;
    }
    clap_mangen::generate_to(without_help(command), folder).with_context(failed)
}

/// A page that says how to ask for help, for every verb and each of its own, helps nobody.
fn without_help(command: clap::Command) -> clap::Command {
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let command = command.disable_help_subcommand(true);
    verbs.into_iter().fold(command, |command, verb| command.mut_subcommand(verb, without_help))
}
