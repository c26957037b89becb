//! `cyphonic-cloud access`

use cyphonic_cloud::config::{Config, ServiceRole};
use cyphonic_cloud::names::device_fqdn;
use cyphonic_cloud::register::Register;
use cyphonic_proto::access::OverlayAccess;

use crate::{ConfigArgument, complain, ensure_no_copy};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The device that opens; with or without the zone.
    from: String,
    /// The device that it opens something with.
    at: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    ensure_no_copy(&config)?;
    if !config.runs(ServiceRole::Nms) {
        anyhow::bail!(
            "no NMS runs by this file, so it says nothing of access: ask on the machine of the NMS"
        );
    }
    let zone = &config.network.zone;
    let fqdn = |name: &str| device_fqdn(name, zone).map_err(anyhow::Error::msg);
    let (from, at) = (fqdn(&arguments.from)?, fqdn(&arguments.at)?);
    let access = OverlayAccess::at(&at, zone, config.access.as_deref());
    if access.rules().is_none() {
        say!("{from} may open everything with {at}: {} has no `access`.", arguments.config.config.display());
        return note_unknown(&config, [&from, &at]);
    }
    match access.services(|rule| rule.is_for(&from, zone)).words() {
        none if none.is_empty() => say!("{from} may open nothing with {at}."),
        words => say!("{from} may open with {at}: {}", words.join(", ")),
    }
    note_unknown(&config, [&from, &at])?;
    say!("What {at} denies by rules of its own is denied. As the file has it; a reload puts it into force.");
    Ok(())
}

/// Rules are also for devices that are yet to come; but a name may be mistyped.
fn note_unknown(config: &Config, names: [&String; 2]) -> anyhow::Result<()> {
    let Some(path) = config.register.as_deref().filter(|path| path.exists()) else { return Ok(()) };
    // What the rules say was told already, and needs no register.
    let known = Register::open_for(path, config.network.prefix).and_then(|register| {
        names
            .into_iter()
            .map(|name| Ok((name, register.device(name)?.is_some())))
            .collect::<Result<Vec<_>, _>>()
    });
    match known {
        Ok(known) => {
            for (name, _) in known.into_iter().filter(|(_, is_known)| !is_known) {
                say!("Note: no device is named {name}, at present.");
            }
        }
        Err(error) => complain(&error.into()),
    }
    Ok(())
}
