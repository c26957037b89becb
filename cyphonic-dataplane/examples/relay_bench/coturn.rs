//! Debian's coturn, and TURN clients that do what it takes to get packets relayed (RFC 8656): an allocation
//! each, and a channel to a peer.
//!
//! Everything is in coturn's favour: no authentication, channels instead of indications, and a peer that is
//! reached directly, so that a packet passes the server once.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND};
use turn_types::stun::message::{
    Message, MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, TransactionId,
};

use crate::cable::{Cable, END_PORT, FIRST_RECEIVER, RELAY, pin, relay_cpu};
use crate::generator::Traffic;
use crate::traffic::FIRST_SENDER;

/// The channel that every client binds.
pub(crate) const CHANNEL: u16 = 0x4000;
/// STUN's own port.
const PORT: u16 = 3478;
/// An allocation is a port of the server's address: this many are left for them.
pub(crate) const MOST_BINDINGS: u32 = 40_000;
const TRIES: usize = 20;
const PATIENCE: Duration = Duration::from_millis(250);

/// A running server with its clients' allocations.
pub(crate) struct Coturn {
    child: Child,
    /// Their ports stay theirs.
    _clients: Vec<UdpSocket>,
}

impl Coturn {
    pub(crate) fn traffic(bindings: u32, payload: u16) -> Traffic {
        Traffic { bindings, train: 1, payload, turn: true, port: PORT }
    }

    pub(crate) fn start(cable: &Cable, bindings: u32) -> Result<Self> {
        ensure!(
            bindings <= MOST_BINDINGS,
            "a TURN allocation is a port and a socket of the server: it has no room for {bindings}"
        );
        let mut child =
            cable.relay.run(|| serve().spawn().context("cannot start turnserver (package coturn)"))?;
        let clients = cable.world.run(move || (0..bindings).map(client).collect::<Result<Vec<_>>>());
        match clients {
            Ok(clients) => Ok(Self { child, _clients: clients }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let mut said = String::new();
                child.stdout.take().map(|mut out| out.read_to_string(&mut said)).transpose()?;
                let tail: Vec<&str> = said.lines().rev().take(5).collect();
                Err(error.context(format!("coturn said: {}", tail.join(" / "))))
            }
        }
    }

    /// All its threads.
    pub(crate) fn threads(&self) -> Result<Vec<u32>> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        let tids: Vec<u32> =
            tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
        tids.iter().try_for_each(|tid| pin(*tid, relay_cpu()))?;
        Ok(tids)
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve() -> Command {
    let mut command = Command::new("turnserver");
    let directory = std::env::temp_dir().join(format!("cyphonic-bench-{}", std::process::id()));
    command
        .args(["-n", "--no-auth", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp", "--no-tcp-relay"])
        .args(["--no-software-attribute", "--log-file", "stdout", "--simple-log"])
        .args(["--listening-ip", &RELAY.to_string(), "--relay-ip", &RELAY.to_string()])
        .args(["--listening-port", &PORT.to_string(), "--relay-threads", "1"])
        .args(["--min-port", "10000", "--max-port", "65000"])
        .arg("--pidfile")
        .arg(directory.with_extension("pid"))
        .arg("--userdb")
        .arg(directory.with_extension("db"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// A client with an allocation and a channel.
fn client(binding: u32) -> Result<UdpSocket> {
    let own = Ipv4Addr::from(FIRST_SENDER + binding);
    let socket = UdpSocket::bind((own, END_PORT)).with_context(|| format!("cannot bind {own}:{END_PORT}"))?;
    socket.connect((RELAY, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    request(
        &socket,
        |message| Ok(message.add_attribute(&RequestedTransport::new(RequestedTransport::UDP))?),
        ALLOCATE,
    )
    .context("Allocate")?;
    let peer = SocketAddr::from((Ipv4Addr::from(u32::from(FIRST_RECEIVER) + binding), END_PORT));
    let bind = |message: &mut MessageWriteVec| {
        message.add_attribute(&ChannelNumber::new(CHANNEL))?;
        Ok(message.add_attribute(&XorPeerAddress::new(peer, message.transaction_id()))?)
    };
    request(&socket, bind, CHANNEL_BIND).context("ChannelBind")?;
    Ok(socket)
}

/// Asks until there is an answer.
fn request(
    socket: &UdpSocket,
    fill: impl FnOnce(&mut MessageWriteVec) -> Result<()>,
    method: turn_types::stun::message::Method,
) -> Result<()> {
    let mut message = Message::builder_request(method, MessageWriteVec::new());
    fill(&mut message)?;
    let id: TransactionId = message.transaction_id();
    let bytes = message.finish();
    let mut buffer = [0; 1500];
    for _ in 0..TRIES {
        let started = Instant::now();
        // While the server is starting its port is closed, which a connected socket is told.
        if socket.send(&bytes).is_ok()
            && let Ok(len) = socket.recv(&mut buffer)
            && let Ok(answer) = Message::from_bytes(&buffer[..len])
            && answer.transaction_id() == id
        {
            let kind: MessageType = answer.get_type();
            ensure!(!answer.has_class(turn_types::stun::message::MessageClass::Error), "refused: {kind}");
            return Ok(());
        }
        std::thread::sleep(PATIENCE.saturating_sub(started.elapsed()));
    }
    bail!("no answer from the TURN server")
}
