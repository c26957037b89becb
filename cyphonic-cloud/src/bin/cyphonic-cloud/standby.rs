//! `cyphonic-cloud standby-status`

use cyphonic_cloud::register::UnixSeconds;
use cyphonic_cloud::server::{Companions, Following, read_kept, unix_now};
use serde_json::json;

use crate::runtime_directory;
use crate::table::time;

/// Version of the JSON; fields are only added within one.
const JSON_VERSION: u32 = 1;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// For programs.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let companions: Option<Companions> = read_kept(&runtime_directory(), None, unix_now());
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&to_json(companions.as_ref()))?);
        return Ok(());
    }
    match companions {
        None => say!("No NMS runs here that has a standby or is one."),
        Some(Companions::Standbys(standbys)) => {
            for (name, since) in standbys {
                say!("{name}  {}", follows(since));
            }
        }
        Some(Companions::Follows(following)) => say!("{}", stance(&following)),
    }
    Ok(())
}

fn follows(since: Option<UnixSeconds>) -> String {
    since.map_or_else(|| "does not follow".to_owned(), |since| format!("follows since {}", time(since)))
}

fn stance(following: &Following) -> String {
    let Following { stands_in_since, has_copy, hears, error } = following;
    let why = error.as_deref().unwrap_or("it has just started");
    match (stands_in_since, hears) {
        (Some(since), false) => format!("stands in since {}: {why}", time(*since)),
        (Some(since), true) => format!("stands in since {}, until its copy is whole again", time(*since)),
        (None, true) if *has_copy => {
            "stands by, with a copy of the register that is kept up to date".to_owned()
        }
        (None, true) => "copies the register for the first time".to_owned(),
        (None, false) if *has_copy => format!("stands by, and hears nothing of the cloud: {why}"),
        (None, false) => format!("has no copy of the register yet, and cannot stand in: {why}"),
    }
}

fn to_json(companions: Option<&Companions>) -> serde_json::Value {
    let (mut standbys, mut own) = (None, None);
    match companions {
        None => {}
        Some(Companions::Standbys(all)) => {
            let all =
                all.iter().map(|(name, since)| json!({ "name": name, "follows_since": since.map(time) }));
            standbys = Some(all.collect::<Vec<_>>());
        }
        Some(Companions::Follows(Following { stands_in_since, has_copy, hears, error })) => {
            own = Some(json!({
                "stands_in_since": stands_in_since.map(time),
                "has_copy": has_copy,
                "hears": hears,
                "error": error,
            }));
        }
    }
    json!({ "version": JSON_VERSION, "standbys": standbys, "standby": own })
}
