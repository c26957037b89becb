//! `cyphonic-cloud backup`

use std::path::PathBuf;

use cyphonic_cloud::backup;

use crate::ConfigArgument;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The folder to make; it appears when it is whole.
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let to = arguments.to.display();
    let made = backup::write(&arguments.config.load()?, &arguments.config.config, &arguments.to)?;
    let what = if made.has_register { "register, keys, certificates" } else { "keys, certificates" };
    say!("{to}: {what} and configuration. Keep it as you keep keys: whoever has it can play the services.");
    for path in made.outside {
        say!("{} is in {to}/{}, since it belongs elsewhere.", path.display(), backup::OUTSIDE);
    }
    for path in made.left_out {
        say!("{} is not in it: the root's key belongs on media of its own, offline.", path.display());
    }
    Ok(())
}
