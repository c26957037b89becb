//! `cyphonic dns`: what the overlay's DNS server does and says.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::output::{say, say_json};
use crate::control::{ControlClient, DnsStatus};

/// Longer than the server takes to give up.
const PATIENCE: Duration = Duration::from_secs(6);

#[derive(Debug, Subcommand)]
pub(super) enum Dns {
    /// Show the server, the zone, and how the host's resolver finds it.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask the overlay's DNS server for a name, past the host's resolver.
    Query {
        /// The name: in full, or the part before the zone.
        name: String,
    },
}

impl Dns {
    pub(super) async fn run(self, mut client: ControlClient) -> Result<ExitCode> {
        let status = client.dns_status().await?;
        match self {
            Self::Status { json: true } => say_json(&status)?,
            Self::Status { json: false } => show(&status)?,
            Self::Query { name } => return query(&status, &name).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(status: &DnsStatus) -> Result<()> {
    let dns = &status.dns;
    say(format_args!("zone             {}", status.zone))?;
    say(format_args!(
        "server           {}",
        dns.listen.map_or_else(|| "-".into(), |listen| listen.to_string())
    ))?;
    say(format_args!("host's resolver  {} ({})", dns.resolver, dns.why))?;
    say(format_args!(
        "queries          {}, of which {} failed and {} were relayed",
        dns.queries, dns.failures, dns.relayed
    ))?;
    Ok(())
}

async fn query(status: &DnsStatus, name: &str) -> Result<ExitCode> {
    let Some(server) = status.dns.listen else {
        bail!("the daemon serves no DNS: see `cyphonic dns status`")
    };
    let name = name.trim_end_matches('.');
    let inside = name.eq_ignore_ascii_case(&status.zone)
        || name.to_ascii_lowercase().ends_with(&format!(".{}", status.zone));
    let full = if inside { format!("{name}.") } else { format!("{name}.{}.", status.zone) };
    let name = Name::from_ascii(&full).with_context(|| format!("{full:?} is no name"))?;
    let start = Instant::now();
    let reply = exchange(server, name).await.with_context(|| {
        format!("cannot ask the agent's DNS server at {server} (its address is of the network namespace that the agent runs in)")
    })?;
    let took_ms = start.elapsed().as_secs_f64() * 1e3;
    say(format_args!("{} from {server} in {took_ms:.3} ms", reply.metadata.response_code))?;
    for record in &reply.answers {
        say(format_args!("{record}"))?;
    }
    if let Some((code, text)) = extended_error(&reply) {
        say(format_args!("Extended DNS Error {code}: {text}"))?;
    }
    let found = reply.metadata.response_code == ResponseCode::NoError && !reply.answers.is_empty();
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn exchange(server: SocketAddr, name: Name) -> Result<Message> {
    let mut query = Message::query();
    query.add_query(Query::query(name, RecordType::AAAA));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    query.set_edns(edns);
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::LOCALHOST, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&query.to_vec()?).await?;
    let mut buffer = [0; 1500];
    let length =
        timeout(PATIENCE, socket.recv(&mut buffer)).await.context("the DNS server does not answer")??;
    let reply = Message::from_vec(&buffer[..length]).context("the DNS server's answer cannot be read")?;
    if reply.metadata.id != query.metadata.id {
        bail!("the DNS server answered another question");
    }
    Ok(reply)
}

/// RFC 8914 section 2.
fn extended_error(reply: &Message) -> Option<(u16, String)> {
    let EdnsOption::Unknown(_, data) = reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? else {
        return None;
    };
    let (code, text) = data.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
}
