//! `cyphonic-cloud renew`

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use cyphonic_cloud::installation;
use cyphonic_cloud::server::unix_now;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directory that `init` made, with the services' key.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Certificates of relays elsewhere, brought from their machines. Without any: those of this directory's
    /// services.
    #[arg(value_name = "CERTIFICATE")]
    certificates: Vec<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    for renewed in installation::renew(&arguments.dir, &arguments.certificates, unix_now())? {
        // Those before one that fails are told: they are renewed.
        let renewed = renewed?;
        let until = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(renewed.not_after));
        say!("{}: {} until {until}", renewed.certificate.display(), renewed.fqdn);
    }
    say!("Services take them into use when they are reloaded or restarted, at the latest within a day.");
    Ok(())
}
