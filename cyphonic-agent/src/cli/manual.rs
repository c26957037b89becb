//! Man pages and shell completions, made from the very definition that parses the arguments.

use std::path::Path;
use std::{fs, io};

use clap::{Command, ValueEnum};
use clap_complete::Shell;

/// Writes a man page for a program and each of its verbs, and completions for every shell that is known, into
/// a folder, which is made. For those who make packages.
///
/// # Errors
/// The folder or a file in it cannot be written.
pub fn write_manual(command: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let name = command.get_name().to_owned();
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut command.clone(), &name, folder)?;
    }
    clap_mangen::generate_to(without_help(command), folder)
}

/// A page that says how to ask for help, for every verb and each of its own, helps nobody.
fn without_help(command: Command) -> Command {
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let command = command.disable_help_subcommand(true);
    verbs.into_iter().fold(command, |command, verb| command.mut_subcommand(verb, without_help))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_verb_has_a_page_and_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        write_manual(Cli::command(), folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let verbs = Cli::command();
        let verbs: Vec<_> = verbs.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
        assert!(verbs.len() > 5);
        for verb in verbs {
            let page = read(&format!("cyphonic-{}.1", verb.get_name()));
            assert!(page.contains(".SH SYNOPSIS"), "{page}");
            for completions in ["cyphonic.bash", "_cyphonic", "cyphonic.fish"] {
                assert!(
                    read(completions).contains(verb.get_name()),
                    "{completions} lacks {}",
                    verb.get_name()
                );
            }
        }
        assert!(!folder.path().join("cyphonic-help.1").exists());
        assert!(read("cyphonic.1").contains("cyphonic\\-status(1)"));
    }
}
