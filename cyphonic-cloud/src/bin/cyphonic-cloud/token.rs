//! `cyphonic-cloud token`

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use cyphonic_cloud::config::parse_duration;
use cyphonic_cloud::names::device_fqdn;
use cyphonic_cloud::pki;
use cyphonic_cloud::register::{NewToken, TokenState};
use cyphonic_cloud::server::unix_now;
use cyphonic_proto::identity::sha256;
use cyphonic_proto::token::EnrolmentToken;

use crate::ConfigArgument;
use crate::table::{Table, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a token by which one device can enrol under this name, and print it.
    Create {
        #[command(flatten)]
        config: ConfigArgument,
        /// The device's name, with or without the zone.
        #[arg(long)]
        name: String,
        /// How long the token can be used, such as 1h or 7d. The default stands in the configuration.
        #[arg(long, value_parser = parse_duration)]
        ttl: Option<Duration>,
        /// Let the new device take the name over from one that is enrolled already (or was revoked).
        #[arg(long)]
        replace: bool,
    },
    /// Show the tokens and what became of them.
    List {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Make an open token void.
    Revoke {
        #[command(flatten)]
        config: ConfigArgument,
        /// The token's number as `token list` shows it, or a device name for all its tokens.
        token: String,
    },
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Create { config, name, ttl, replace } => create(config, name, *ttl, *replace),
        Command::List { config } => list(config),
        Command::Revoke { config, token } => revoke(config, token),
    }
}

fn create(
    argument: &ConfigArgument,
    name: &str,
    ttl: Option<Duration>,
    replaces: bool,
) -> anyhow::Result<()> {
    let (config, register) = argument.open()?;
    let fqdn = device_fqdn(name, &config.network.zone).map_err(anyhow::Error::msg)?;
    let certificates = pki::read_certificates(&config.root)?;
    let root = certificates.first().context("the root certificate is missing")?;
    let token = EnrolmentToken::new(pki::random()?, sha256(root));
    let now = unix_now();
    let expires_at = now.saturating_add(ttl.unwrap_or(config.token_lifetime).as_secs());
    let new = NewToken { secret_hash: token.secret_hash(), fqdn, expires_at, replaces };
    register.create_token(&new, now)?;
    // The token and nothing else, so that a script can catch it.
    println!("{}", token.format().as_str());
    Ok(())
}

fn list(argument: &ConfigArgument) -> anyhow::Result<()> {
    let (_, register) = argument.open()?;
    let mut table = Table::new(["ID", "NAME", "STATE", "CREATED", "EXPIRES"]);
    for token in register.tokens(unix_now())? {
        let state = match token.state {
            TokenState::Open => "open",
            TokenState::Used => "used",
            TokenState::Expired => "expired",
        };
        table.row([
            token.id.to_string(),
            token.fqdn,
            state.to_owned(),
            time(token.created_at),
            time(token.expires_at),
        ]);
    }
    print!("{table}");
    Ok(())
}

fn revoke(argument: &ConfigArgument, token: &str) -> anyhow::Result<()> {
    let (config, register) = argument.open()?;
    let is_number = token.bytes().all(|b| b.is_ascii_digit());
    let selector = if is_number {
        token.to_owned()
    } else {
        device_fqdn(token, &config.network.zone).map_err(anyhow::Error::msg)?
    };
    let revoked = register.revoke_tokens(&selector, unix_now())?;
    println!("Revoked {revoked} token{}.", if revoked == 1 { "" } else { "s" });
    Ok(())
}
