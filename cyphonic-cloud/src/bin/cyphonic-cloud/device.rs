//! `cyphonic-cloud device`

use std::collections::HashSet;

use clap::Subcommand;
use cyphonic_cloud::names::device_fqdn;
use cyphonic_cloud::register::{DeviceRecord, DeviceState, Register};
use cyphonic_cloud::server::{Companions, Following, read_kept, unix_now};
use serde_json::json;

use crate::presence::Presence;
use crate::table::{Table, time};
use crate::{ConfigArgument, runtime_directory};

/// Version of the JSON that `device list` prints; fields are only added within one.
const JSON_VERSION: u32 = 1;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the devices, without those that were revoked.
    List {
        #[command(flatten)]
        config: ConfigArgument,
        /// Also those that were revoked; with --json they are always there.
        #[arg(long)]
        all: bool,
        /// Only those that (last) enrolled by the token of this number, as `token list` shows it.
        #[arg(long, value_name = "NUMBER")]
        token: Option<i64>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Take a device's right to be in the network away: from now on AS and NMS refuse it, and it sets up no
    /// new tunnel. Its key does not come back, and unused tokens for its name are void.
    Revoke {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        whom: Whom,
    },
}

/// One device, or those of one token.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whom {
    /// The device's name, with or without the zone.
    name: Option<String>,
    /// All devices that (last) enrolled by the token of this number.
    #[arg(long, value_name = "NUMBER")]
    token: Option<i64>,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { config, all, token, json } => list(config, *all, *token, *json),
        Command::Revoke { config, whom } => revoke(config, whom),
    }
}

/// A device and what else is known of it.
struct Listed {
    device: DeviceRecord,
    state: DeviceState,
    is_condemned: bool,
}

fn list(argument: &ConfigArgument, all: bool, token: Option<i64>, as_json: bool) -> anyhow::Result<()> {
    let (config, register) = argument.open()?;
    let now = unix_now();
    let condemned: HashSet<_> = register.condemned()?.into_iter().map(|device| device.fqdn).collect();
    let is_meant = |device: &DeviceRecord| token.is_none() || device.token == token;
    let listed = register.devices()?.into_iter().filter(is_meant).map(|device| {
        let (state, is_condemned) = (DeviceState::of(&device, now), condemned.contains(&device.fqdn));
        Listed { device, state, is_condemned }
    });
    let presence = Presence::read(&config, now);
    if as_json {
        let devices: Vec<_> = listed.map(|listed| to_json(&listed, &presence)).collect();
        let text = serde_json::to_string_pretty(&json!({ "version": JSON_VERSION, "devices": devices }))?;
        say!("{text}");
        return Ok(());
    }
    let mut table = Table::new([
        "NAME",
        "ADDRESS",
        "STATE",
        "ONLINE SINCE",
        "ENROLLED",
        "CERTIFICATE UNTIL",
        "LAST SEEN",
        "SOFTWARE",
    ]);
    let shown = listed.filter(|listed| all || listed.state != DeviceState::Revoked);
    for Listed { device, state, is_condemned } in shown {
        table.row([
            device.fqdn.clone(),
            device.virtual_address.to_string(),
            if is_condemned { format!("{}, key revoked", state.name()) } else { state.name().to_owned() },
            online_since(&device, &presence),
            time(device.enrolled_at),
            device.certificate_not_after.map_or_else(|| "-".to_owned(), time),
            last_seen(&device, &presence),
            device.software_version.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    tell!("{table}");
    Ok(())
}

fn revoke(argument: &ConfigArgument, whom: &Whom) -> anyhow::Result<()> {
    let (config, register) = argument.open()?;
    if let Some(Companions::Follows(Following { hears: true, .. })) =
        read_kept(&runtime_directory(), Some(config.network.id), unix_now())
    {
        anyhow::bail!(
            "this is a standby that hears of the cloud: revoke the device there, and it is revoked here"
        );
    }
    let names = match (&whom.name, whom.token) {
        (Some(name), _) => vec![device_fqdn(name, &config.network.zone).map_err(anyhow::Error::msg)?],
        (None, token) => by_token(&register, token)?,
    };
    for fqdn in &names {
        revoke_one(&register, fqdn)?;
    }
    if config.follows.is_some() {
        say!(
            "This is a standby: when it hears of the cloud again, what holds there holds here. Revoke it there, too."
        );
    }
    Ok(())
}

/// The devices that came by a token and are not revoked.
fn by_token(register: &Register, token: Option<i64>) -> anyhow::Result<Vec<String>> {
    let came = register.devices()?.into_iter().filter(|device| device.token == token);
    let names: Vec<_> = came.filter(|device| device.revoked_at.is_none()).map(|device| device.fqdn).collect();
    anyhow::ensure!(!names.is_empty(), "no device came by this token, or all were revoked");
    Ok(names)
}

fn revoke_one(register: &Register, fqdn: &str) -> anyhow::Result<()> {
    let revocation = register.revoke_device(fqdn, unix_now())?;
    say!(
        "Revoked {fqdn}. AS and NMS refuse it from now on, and its peers end their tunnels with it as the NMS tells them."
    );
    say!("Unused tokens for its name made void: {}.", revocation.void_tokens);
    for token in register.open_tokens_of(fqdn, unix_now())? {
        say!(
            "It enrolled by token {}, with which {} more can enrol, as names like {}. If others may have that token from it: \
             `token revoke {}`, and a new one for those that are to come.",
            token.id,
            token.uses - token.used,
            token.name,
            token.id
        );
    }
    for other in revocation.same_key {
        say!(
            "{other} has its key, too: who has {fqdn} can be {other}. Revoke that as well, and enrol it anew."
        );
    }
    Ok(())
}

/// Since when it is online, where that is known.
fn online_since(device: &DeviceRecord, presence: &Presence) -> String {
    match presence.of(device) {
        None if presence.online().is_none() => "?".to_owned(),
        None => "-".to_owned(),
        Some(present) => {
            let by_tcp = if present.by_tcp { " by TCP" } else { "" };
            let doubled = if present.is_doubled(unix_now()) { ", two machines" } else { "" };
            format!("{}{by_tcp}{doubled}", time(present.since))
        }
    }
}

fn last_seen(device: &DeviceRecord, presence: &Presence) -> String {
    match presence.is_online(device) {
        Some(true) => "now".to_owned(),
        _ => presence.last_seen(device).map_or_else(|| "never".to_owned(), time),
    }
}

fn to_json(listed: &Listed, presence: &Presence) -> serde_json::Value {
    let Listed { device, state, is_condemned } = listed;
    let present = presence.of(device);
    json!({
        "online": presence.is_online(device),
        "online_since": present.map(|present| time(present.since)),
        "by_tcp": present.map(|present| present.by_tcp),
        "doubled": present.map(|present| present.is_doubled(unix_now())),
        "name": device.fqdn,
        "address": device.virtual_address,
        "state": state.name(),
        "key_revoked": is_condemned,
        "enrolled_at": time(device.enrolled_at),
        "token": device.token,
        "certificate_not_after": device.certificate_not_after.map(time),
        "revoked_at": device.revoked_at.map(time),
        "revoked_by": device.revoked_by,
        "last_seen_at": presence.last_seen(device).map(time),
        "last_login_at": device.last_login_at.map(time),
        "software_version": device.software_version,
    })
}
