//! `cyphonic-cloud token`

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use cyphonic_cloud::config::parse_token_lifetime;
use cyphonic_cloud::names::{NamePattern, device_fqdn, new_device_fqdn};
use cyphonic_cloud::pki;
use cyphonic_cloud::register::{MAX_USES, NewToken, TokenRecord, TokenState};
use cyphonic_cloud::server::unix_now;
use cyphonic_proto::identity::sha256;
use cyphonic_proto::token::EnrolmentToken;
use serde_json::json;

use crate::table::{Table, time};
use crate::{ConfigArgument, ensure_no_copy};

/// Version of the JSON that `token list` prints; fields are only added within one.
const JSON_VERSION: u32 = 1;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a token by which one device can enrol under this name, or many under names like it, and print it.
    Create {
        #[command(flatten)]
        config: ConfigArgument,
        /// The device's name, with or without the zone. With a `*` in its first label, as in 'camera-*.gate', each device
        /// chooses one that fits: its host name, unless `enrol_as` in its agent.yaml says another.
        #[arg(long)]
        name: String,
        /// How many devices may enrol by it, where `--name` has a `*`.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_USES)))]
        uses: Option<u32>,
        /// How long the token can be used, such as 1h or 7d, at most 365d. The default stands in the
        /// configuration.
        #[arg(long, value_parser = parse_token_lifetime)]
        ttl: Option<Duration>,
        /// Let the new device take the name over from one that is enrolled already (or was revoked).
        #[arg(long)]
        replace: bool,
    },
    /// Show the tokens and what became of them.
    List {
        #[command(flatten)]
        config: ConfigArgument,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Make what is unused of a token void.
    Revoke {
        #[command(flatten)]
        config: ConfigArgument,
        /// The token's number as `token list` shows it, or a name for all tokens that were made with it.
        token: String,
    },
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Create { config, name, uses, ttl, replace } => create(config, name, *uses, *ttl, *replace),
        Command::List { config, json } => list(config, *json),
        Command::Revoke { config, token } => revoke(config, token),
    }
}

fn create(
    argument: &ConfigArgument,
    name: &str,
    uses: Option<u32>,
    ttl: Option<Duration>,
    replaces: bool,
) -> anyhow::Result<()> {
    let (config, register) = argument.open()?;
    ensure_no_copy(&config)?;
    let (name, uses) = grant(name, uses, replaces, &config.network.zone).map_err(anyhow::Error::msg)?;
    let certificates = pki::read_certificates(&config.root)?;
    let root = certificates.first().context("the root certificate is missing")?;
    let token = EnrolmentToken::new(pki::random()?, sha256(root));
    let now = unix_now();
    let expires_at = now.saturating_add(ttl.unwrap_or(config.token_lifetime).as_secs());
    let secret_hash = token.secret_hash();
    let new = NewToken { secret_hash, name: name.clone(), expires_at, replaces, uses };
    let number = register.create_token(&new, now)?;
    // The token and nothing else, so that a script can catch it; the rest goes elsewhere.
    if let Err(error) = writeln!(io::stdout(), "{}", token.format().as_str()) {
        // Nobody has it, and it would stay open.
        let made_void = register.revoke_tokens(&number.to_string(), unix_now());
        let state = made_void.map_or("it stays open: `token revoke` makes it void", |_| "it was made void");
        return Err(error).context(format!("token {number} for {name} could not be written, {state}"));
    }
    // The token is out, whether anybody hears of it or not.
    let times = if uses > 1 { format!(", for {uses} devices") } else { String::new() };
    let _ = writeln!(io::stderr(), "token {number} for {name}{times}, until {}", time(expires_at));
    let is_another =
        |token: &&TokenRecord| token.name == name && token.state == TokenState::Open && token.id != number;
    let others = register.tokens(now)?.iter().filter(is_another).count();
    if others > 0 {
        let _ = writeln!(io::stderr(), "{others} other tokens for this name are open: see `token list`");
    }
    Ok(())
}

/// What a token is for, by its full name, and how many devices it is for.
fn grant(name: &str, uses: Option<u32>, replaces: bool, zone: &str) -> Result<(String, u32), String> {
    match (NamePattern::is_meant(name), uses) {
        (false, None) => Ok((new_device_fqdn(name, zone)?, 1)),
        (false, Some(_)) => Err(format!(
            "--uses is for a --name with a `*`: no two devices have one name, and {name:?} is one"
        )),
        (true, _) if replaces => {
            Err("--replace is for one name: who has a token for many could take any of them over".into())
        }
        (true, None) => Err(format!("{name:?} is for many devices: say for how many with --uses")),
        (true, Some(uses)) => Ok((NamePattern::parse(name, zone)?.to_string(), uses)),
    }
}

fn list(argument: &ConfigArgument, as_json: bool) -> anyhow::Result<()> {
    let (_, register) = argument.open()?;
    let tokens = register.tokens(unix_now())?;
    if as_json {
        let tokens: Vec<_> = tokens.iter().map(to_json).collect();
        say!("{}", serde_json::to_string_pretty(&json!({ "version": JSON_VERSION, "tokens": tokens }))?);
        return Ok(());
    }
    let mut table = Table::new(["ID", "NAME", "STATE", "USED", "REPLACES", "CREATED", "EXPIRES", "BY"]);
    for token in tokens {
        table.row([
            token.id.to_string(),
            token.name,
            state(token.state).to_owned(),
            format!("{}/{}", token.used, token.uses),
            if token.replaces { "yes" } else { "no" }.to_owned(),
            time(token.created_at),
            time(token.expires_at),
            token.created_by.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    tell!("{table}");
    Ok(())
}

fn to_json(token: &TokenRecord) -> serde_json::Value {
    json!({
        "id": token.id,
        "name": token.name,
        "state": state(token.state),
        "uses": token.uses,
        "used": token.used,
        "replaces": token.replaces,
        "created_at": time(token.created_at),
        "created_by": token.created_by,
        "expires_at": time(token.expires_at),
        "revoked_at": token.revoked_at.map(time),
        "revoked_by": token.revoked_by,
    })
}

fn state(state: TokenState) -> &'static str {
    match state {
        TokenState::Open => "open",
        TokenState::Used => "used",
        TokenState::Expired => "expired",
        TokenState::Revoked => "revoked",
    }
}

fn revoke(argument: &ConfigArgument, token: &str) -> anyhow::Result<()> {
    let (config, register) = argument.open()?;
    ensure_no_copy(&config)?;
    let is_number = token.bytes().all(|b| b.is_ascii_digit());
    let zone = &config.network.zone;
    let selector = if is_number {
        token.to_owned()
    } else if NamePattern::is_meant(token) {
        NamePattern::parse(token, zone).map_err(anyhow::Error::msg)?.to_string()
    } else {
        device_fqdn(token, zone).map_err(anyhow::Error::msg)?
    };
    let revoked = register.revoke_tokens(&selector, unix_now())?;
    say!("Revoked {revoked} token{}.", if revoked == 1 { "" } else { "s" });
    Ok(())
}
