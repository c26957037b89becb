//! The daemon's end of the control socket.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use cyphonic_proto::name::{canonical, is_below};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::group::{GROUP, way_in};
use super::{
    Backend, BackendError, DnsStatus, FailureCode, MAX_LINE_BYTES, PROTOCOL_VERSION, Reply, Request,
    ResetDone, Resolved, Settings, VersionInfo, protocol,
};

/// Clients at once; one more is told that the daemon is busy.
const MAX_CLIENTS: usize = 32;

/// A client that asks nothing for so long is disconnected.
const IDLE: Duration = Duration::from_secs(60);

/// Stable for a client that waits: below `cyphonic`'s own time-out. An answer is also to be read in so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The listening control socket; stops, and removes its file, when dropped.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    inode: u64,
    // Aborts its task when dropped.
    _tasks: JoinSet<()>,
}

impl ControlServer {
    /// Listens at `path`, mode 0660, for root and the members of `group`; where there is none, or this
    /// process has another group than root's, for those of the process's group. A file left by a crashed
    /// daemon is replaced; a living daemon's is not.
    ///
    /// # Errors
    ///
    /// When something else is there, or the directory cannot be written.
    pub async fn start(
        path: &Path,
        group: Option<u32>,
        backend: Arc<dyn Backend>,
        settings: Arc<Settings>,
    ) -> Result<Self, ControlError> {
        let failed = |what| move |source| ControlError::Io { what, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("create the directory of"))?;
        }
        clear_stale(path).await?;
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        // Another group than root's is the choice of whoever started this process (`Group=` in a unit), or
        // made the directory.
        let is_roots = fs::metadata(path).map_err(failed("look at"))?.gid() == 0;
        // Whoever owns a file may give it to a group that they are of, without a capability: the unit makes
        // the daemon one of this.
        if let Some(group) = group.filter(|_| is_roots)
            && let Err(error) = chown(path, None, Some(group))
        {
            tracing::info!(%error, "the control socket is for root alone: this process is not of the group {GROUP}");
        }
        // Peer credentials are checked on every connection, so nothing is open in between.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed("set the mode of"))?;
        let meta = fs::metadata(path).map_err(failed("look at"))?;
        let allowed = Allowed { owner: meta.uid(), group: meta.gid() };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, backend, settings, allowed));
        Ok(Self { path: path.to_owned(), inode: meta.ino(), _tasks: tasks })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // A newer daemon may have put its own there.
        if fs::metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn clear_stale(path: &Path) -> Result<(), ControlError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ControlError::Io { what: "look at", path: path.to_owned(), source }),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ControlError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(ControlError::InUse { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|source| ControlError::Io { what: "remove", path: path.to_owned(), source })
}

/// Whose requests are served: root's, the daemon's own user's, and those of the socket file's group.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    owner: u32,
    group: u32,
}

impl Allowed {
    /// The kernel has checked the file's mode with supplementary groups when it let the client connect; the
    /// credentials say who connected, also where the file system does not enforce a socket's mode.
    fn admits(self, peer: &UCred) -> bool {
        peer.uid() == 0 || peer.uid() == self.owner || peer.gid() == self.group || self.has_group(peer)
    }

    /// Supplementary groups are not in the credentials; `/proc` lists them.
    fn has_group(self, peer: &UCred) -> bool {
        let Some(pid) = peer.pid() else { return false };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        groups.is_some_and(|groups| groups.split_whitespace().any(|group| group.parse() == Ok(self.group)))
    }
}

async fn accept(
    listener: UnixListener,
    backend: Arc<dyn Backend>,
    settings: Arc<Settings>,
    allowed: Allowed,
) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting a control connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            let busy =
                Reply::failed(FailureCode::Busy, format!("{MAX_CLIENTS} clients are connected already"));
            let _ = timeout(Duration::from_millis(100), send(&mut stream, &busy)).await;
            continue;
        };
        let (backend, settings) = (backend.clone(), settings.clone());
        tasks.spawn(async move {
            let _slot = slot;
            if let Err(error) = serve(stream, backend.as_ref(), &settings, allowed).await {
                tracing::debug!(%error, "a control connection failed");
            }
        });
    }
}

async fn serve(
    mut stream: UnixStream,
    backend: &dyn Backend,
    settings: &Settings,
    allowed: Allowed,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if !allowed.admits(&peer) {
        tracing::warn!(uid = peer.uid(), "a user outside the control socket's group was refused");
        let refusal = Reply::failed(
            FailureCode::NotAllowed,
            format!("only root and the control socket's group may ask: {}", way_in(allowed.group)),
        );
        return send(&mut stream, &refusal).await;
    }
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES as u64 + 1);
        match timeout(IDLE, bounded.read_until(b'\n', &mut line)).await {
            Err(_) | Ok(Ok(0)) => return Ok(()),
            Ok(read) => read?,
        };
        if line.len() > MAX_LINE_BYTES {
            let reply = Reply::failed(
                FailureCode::Malformed,
                format!("a request has at most {MAX_LINE_BYTES} bytes"),
            );
            return send(&mut writer, &reply).await;
        }
        let reply = match protocol::parse(line.trim_ascii_end()) {
            Ok(request) => timeout(PATIENCE, handle(backend, settings, request)).await.unwrap_or_else(|_| {
                Reply::failed(
                    FailureCode::TimedOut,
                    format!("the daemon did not answer in {} s", PATIENCE.as_secs()),
                )
            }),
            Err(failure) => Reply { v: PROTOCOL_VERSION, ok: None, error: Some(failure) },
        };
        send(&mut writer, &reply).await?;
    }
}

async fn send<W: tokio::io::AsyncWrite + Unpin>(writer: &mut W, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    // Larger answers than the socket holds wait for a client that reads, which one that was stopped never does.
    timeout(PATIENCE, writer.write_all(&line)).await?
}

async fn handle(backend: &dyn Backend, settings: &Settings, request: Request) -> Reply {
    match request {
        Request::Version => {
            Reply::ok(VersionInfo { version: crate::VERSION.to_owned(), protocol: PROTOCOL_VERSION })
        }
        Request::Status => Reply::ok(backend.status().await),
        Request::Resolve { name } => resolve(backend, &name).await,
        Request::Reset { target } => match backend.reset(target).await {
            Ok(tunnels) => Reply::ok(ResetDone { tunnels }),
            Err(error) => failed(&error),
        },
        Request::DnsStatus => {
            let report = backend.status().await;
            Reply::ok(DnsStatus { zone: report.zone, dns: report.dns })
        }
        Request::Reload => match settings.reload(backend).await {
            Ok(reloaded) => Reply::ok(reloaded),
            Err(error) => failed(&error),
        },
        Request::Shutdown => {
            backend.shutdown().await;
            Reply::ok(())
        }
    }
}

fn failed(error: &BackendError) -> Reply {
    let code = match error {
        BackendError::UnknownPeer(_) | BackendError::AmbiguousPeer(_) => FailureCode::NoSuchPeer,
        BackendError::Settings(_) => FailureCode::Settings,
        BackendError::Unavailable(_) => FailureCode::Unavailable,
    };
    Reply::failed(code, error.to_string())
}

async fn resolve(backend: &dyn Backend, name: &str) -> Reply {
    let zone = backend.zone();
    let Some(name) = full_name(name, zone) else {
        let shown: String = name.chars().take(80).collect();
        return Reply::failed(
            FailureCode::NoSuchPeer,
            format!("{shown:?} is no device's name in the zone {zone:?}"),
        );
    };
    let start = Instant::now();
    match backend.resolve(&name).await {
        Ok(address) => Reply::ok(Resolved { name, address, took_ms: start.elapsed().as_secs_f64() * 1e3 }),
        Err(error) => Reply::failed(FailureCode::from(&error), format!("{name}: {error}")),
    }
}

/// People type `press-7`; the engine wants `press-7.plant.cyphonic.internal`.
fn full_name(name: &str, zone: &str) -> Option<String> {
    let name = canonical(name).ok().filter(|name| !zone.is_empty() && name != zone)?;
    if is_below(&name, zone) { Some(name) } else { canonical(&format!("{name}.{zone}")).ok() }
}

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The file system said no.
    #[error("cannot {what} the control socket {}: {source}", path.display())]
    Io {
        /// `listen on`…
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon answers there.
    #[error("another daemon listens on {}: stop it first (`cyphonic down`), or give this one its own --socket", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// A file of another kind is in the way.
    #[error("{} is there already and is no socket: remove it, or choose another --socket", path.display())]
    NotASocket {
        /// Which file.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        let zone = "plant.cyphonic.internal";
        assert_eq!(full_name("Press-7", zone).unwrap(), "press-7.plant.cyphonic.internal");
        assert_eq!(
            full_name("press-7.plant.cyphonic.internal.", zone).unwrap(),
            "press-7.plant.cyphonic.internal"
        );
        assert_eq!(full_name("a.b", zone).unwrap(), "a.b.plant.cyphonic.internal");
        for name in ["", ".", zone, "a b", "a..b", "ü"] {
            assert_eq!(full_name(name, zone), None, "{name}");
        }
    }
}
