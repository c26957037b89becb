//! `cyphonic-cloud trs-credentials` and `cyphonic-cloud standby-credentials`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cyphonic_cloud::config::{DEFAULT_PATH, parse_label, parse_listen};
use cyphonic_cloud::installation::{self, Elsewhere};
use cyphonic_cloud::server::unix_now;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directory that `init` made.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The service's name, as in the cloud's configuration.
    #[arg(long, value_parser = parse_label)]
    name: String,
    /// The directory for the service's files; made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The address that the service listens on. The default is every address, IPv4 and IPv6.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_listen, default_value = "[::]:443")]
    listen: SocketAddr,
}

pub(crate) fn run(what: Elsewhere, arguments: &Arguments) -> anyhow::Result<()> {
    let made = installation::credentials_elsewhere(
        &arguments.dir,
        what,
        &arguments.name,
        &arguments.out,
        &[arguments.listen],
        unix_now(),
    )?;
    let installed = Path::new(DEFAULT_PATH).parent().unwrap_or(Path::new("/"));
    say!("Made the credentials of {} in {}.", made.fqdn, arguments.out.display());
    say!("Copy that directory to the service's machine. If the package is installed there, make it");
    say!("{} and give `systemctl start cyphonic-cloud`, or else start it by", installed.display());
    say!("  cyphonic-cloud run --config {}", made.config.display());
    if !made.listed {
        let (key, then) = match what {
            Elsewhere::Relay => ("trs", ""),
            Elsewhere::Standby => ("standbys", ", and the standby learns nothing"),
        };
        say!();
        say!(
            "The cloud's configuration does not list it yet, so no device will use it{then}. Add to `{key}`,"
        );
        say!("and restart the cloud:");
        say!("  - name: {}", arguments.name);
        say!("    addresses: [\"ADDRESS:PORT\"]");
    }
    Ok(())
}
