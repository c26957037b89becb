//! `cyphonic-cloud init`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cyphonic_cloud::config::{DEFAULT_PATH, ServiceAddresses, parse_address, parse_listen};
use cyphonic_cloud::installation::{self, Plan};
use cyphonic_cloud::server::unix_now;

/// Where the package has its unit.
const UNIT: &str = "/lib/systemd/system/cyphonic-cloud.service";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directory for configuration, keys and register; made if it is not there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The DNS zone of all names.
    #[arg(long, default_value = "cyphonic.internal")]
    zone: String,
    /// An address to listen on (UDP); may be repeated. The default is every address, IPv4 and IPv6.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_listen, default_value = "[::]:443")]
    listen: Vec<SocketAddr>,
    /// An address by which devices reach this machine; repeat it for IPv4 and IPv6.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address, required = true)]
    public: Vec<SocketAddr>,
    /// A relay on another machine; may be repeated. Without any, this machine relays.
    #[arg(long, value_name = "NAME=ADDRESS:PORT,ADDRESS:PORT")]
    trs: Vec<ServiceAddresses>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let plan = Plan {
        directory: arguments.dir.clone(),
        zone: arguments.zone.clone(),
        listen: arguments.listen.clone(),
        public: arguments.public.clone(),
        relays: arguments.trs.clone(),
    };
    let installed = installation::init(&plan, unix_now())?;
    let config = installed.config.display();
    say!("Founded the overlay {} ({}).", installed.network.zone, installed.network.prefix);
    say!();
    say!("Configuration: {config}");
    say!("Root key:      {}", installed.root_key.display());
    say!("  The services do not need the root key. Copy it to two offline media and delete it here: whoever");
    say!("  has it can impersonate every device and service.");
    say!();
    for relay in &arguments.trs {
        let (dir, name) = (arguments.dir.display(), &relay.name);
        say!("Relay {name}:    cyphonic-cloud trs-credentials --dir {dir} --name {name} --out {name}");
    }
    say!("Start:         {}", start_command(&installed.config));
    say!("Add a device:  cyphonic-cloud token create --config {config} --name press-7.plant");
    Ok(())
}

/// How the services are started: by the package's unit, where it is installed and the configuration is its.
fn start_command(config: &Path) -> String {
    if config == Path::new(DEFAULT_PATH) && Path::new(UNIT).exists() {
        "systemctl start cyphonic-cloud".to_owned()
    } else {
        format!("cyphonic-cloud run --config {}", config.display())
    }
}
