use std::fs::Permissions;
use std::net::Ipv6Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cyphonic_agent::config::{Config, Reloadable};
use cyphonic_agent::control::report::RingReport;
use cyphonic_agent::control::{
    Backend, BackendError, ClientError, ControlClient, ControlError, ControlServer, FailureCode, ResetTarget,
    Settings, StatusReport,
};
use cyphonic_agent::dns::ResolveError;
use cyphonic_transport::Clock;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::overlay::{NoRing, Overlay};

#[derive(Default)]
struct Engine {
    stopped: AtomicUsize,
    reports: AtomicUsize,
    /// Its status does not fit a socket.
    large: bool,
}

impl Backend for Engine {
    fn status(&self) -> BoxFuture<'_, StatusReport> {
        self.reports.fetch_add(1, Ordering::SeqCst);
        let report = StatusReport {
            fqdn: "a.z.internal".into(),
            zone: "z.internal".into(),
            virtual_address: Some(Ipv6Addr::LOCALHOST),
            ring: RingReport {
                why: " ".repeat(if self.large { 4 << 20 } else { 0 }),
                ..RingReport::default()
            },
            ..StatusReport::default()
        };
        Box::pin(async { report })
    }

    fn is_alive(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }

    fn zone(&self) -> &str {
        "z.internal"
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        Box::pin(async move {
            if name == "b.z.internal" {
                Ok(Ipv6Addr::LOCALHOST)
            } else {
                Err(ResolveError::NoRoute("no relay".into()))
            }
        })
    }

    fn reset(&self, target: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
        Box::pin(async {
            match target {
                ResetTarget::All => Ok(3),
                ResetTarget::Peer(name) => Err(BackendError::UnknownPeer(name)),
            }
        })
    }

    fn take_over(&self, settings: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            match &settings.keep_open[..] {
                [] => Ok(()),
                names => Err(BackendError::Settings(names.join(", "))),
            }
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.stopped.fetch_add(1, Ordering::SeqCst);
        })
    }
}

/// Those of a daemon that nobody has changed.
fn settings() -> Arc<Settings> {
    Arc::new(Settings::new(Config::default(), || Ok(Config::default())))
}

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    engine: Arc<Engine>,
    server: ControlServer,
}

async fn fixture() -> Fixture {
    fixture_of(Engine::default()).await
}

async fn fixture_of(engine: Engine) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/c.sock");
    let engine = Arc::new(engine);
    let server = ControlServer::start(&path, None, engine.clone(), settings()).await.unwrap();
    Fixture { _dir: dir, path, engine, server }
}

#[tokio::test]
async fn every_request_is_answered() {
    let f = fixture().await;
    assert_eq!(std::fs::metadata(&f.path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut client = ControlClient::connect(&f.path).await.unwrap();
    assert_eq!(client.version().await.unwrap().version, cyphonic_agent::VERSION);
    assert_eq!(client.status().await.unwrap().fqdn, "a.z.internal");
    assert_eq!(client.dns_status().await.unwrap().zone, "z.internal");
    let reports = f.engine.reports.load(Ordering::SeqCst);
    let resolved = client.resolve("B").await.unwrap();
    assert_eq!(f.engine.reports.load(Ordering::SeqCst), reports, "a name needs no report");
    assert_eq!((resolved.name.as_str(), resolved.address), ("b.z.internal", Ipv6Addr::LOCALHOST));
    assert_eq!(client.reset(ResetTarget::All).await.unwrap().tunnels, 3);
    client.shutdown().await.unwrap();
    assert_eq!(f.engine.stopped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_sign_of_life_costs_the_engine_no_report_and_comes_from_a_living_one_only() {
    let (overlay, dir) = (Overlay::found(), tempfile::tempdir().unwrap());
    let (device, ring) = (overlay.enrol("a", 10, dir.path()), Arc::new(NoRing::with_room(usize::MAX)));
    let (engine, _endpoint) = device.run_over(overlay.address, Clock::new(0), Arc::clone(&ring));
    for _ in 0..100 {
        assert!(engine.is_alive().await);
    }
    assert_eq!(ring.read.load(Ordering::Relaxed), 0);
    assert_eq!(engine.zone(), engine.status().await.zone);
    assert_eq!(ring.read.load(Ordering::Relaxed), 1, "a report reads counters");
    engine.stop().await;
    assert!(!engine.is_alive().await);
}

#[tokio::test]
async fn failures_have_a_code_and_a_reason() {
    let f = fixture().await;
    let mut client = ControlClient::connect(&f.path).await.unwrap();
    let code = |error| match error {
        ClientError::Refused(failure) => failure.code,
        other => panic!("{other}"),
    };
    assert_eq!(code(client.resolve("c").await.unwrap_err()), FailureCode::NoRoute);
    assert_eq!(code(client.resolve("not a name").await.unwrap_err()), FailureCode::NoSuchPeer);
    assert_eq!(code(client.reset(ResetTarget::Peer("c".into())).await.unwrap_err()), FailureCode::NoSuchPeer);
    client.status().await.expect("the connection goes on");
}

#[tokio::test]
async fn malformed_input_is_answered_and_the_daemon_lives() {
    let f = fixture().await;
    for (input, expected) in [
        (&b"hello\n"[..], "malformed"),
        (b"\n", "malformed"),
        (b"\xff\xfe\n", "malformed"),
        (b"{\"v\":1,\"op\":\"dance\"}\n", "unknown-operation"),
        (b"{\"v\":9,\"op\":\"status\"}\n", "version"),
        (&[b'x'; 70_000], "malformed"),
        (&[b'['; 60_000], "malformed"),
    ] {
        let mut stream = UnixStream::connect(&f.path).await.unwrap();
        // The daemon may hang up on an endless line before all of it is written.
        let _ = stream.write_all(input).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let reply: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(
            reply["error"]["code"],
            expected,
            "{}",
            String::from_utf8_lossy(&input[..input.len().min(40)])
        );
    }
    ControlClient::connect(&f.path).await.unwrap().status().await.unwrap();
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told_that_the_daemon_is_busy() {
    let f = fixture().await;
    let mut held = Vec::new();
    for _ in 0..32 {
        let mut client = ControlClient::connect(&f.path).await.unwrap();
        client.version().await.unwrap();
        held.push(client);
    }
    let error = ControlClient::connect(&f.path).await.unwrap().version().await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(failure) if failure.code == FailureCode::Busy));
}

/// As those that somebody has stopped (SIGSTOP).
#[tokio::test(start_paused = true)]
async fn clients_that_stop_reading_do_not_keep_their_places() {
    let f = fixture_of(Engine { large: true, ..Engine::default() }).await;
    let mut stopped = Vec::new();
    for _ in 0..32 {
        let mut stream = UnixStream::connect(&f.path).await.unwrap();
        stream.write_all(b"{\"v\":1,\"op\":\"status\"}\n").await.unwrap();
        stream.readable().await.unwrap();
        stopped.push(stream);
    }
    let ask = async || ControlClient::connect(&f.path).await.unwrap().version().await;
    assert!(matches!(ask().await, Err(ClientError::Refused(failure)) if failure.code == FailureCode::Busy));
    tokio::time::sleep(Duration::from_secs(11)).await;
    ask().await.expect("a place is free");
    let mut cut = Vec::new();
    stopped.remove(0).read_to_end(&mut cut).await.expect("the daemon has hung up");
    assert_ne!(cut.last(), Some(&b'\n'), "what was not read is not sent");
}

#[tokio::test]
async fn a_living_daemons_socket_is_not_taken_and_a_dead_ones_is() {
    let f = fixture().await;
    let again = ControlServer::start(&f.path, None, f.engine.clone(), settings()).await;
    assert!(matches!(again, Err(ControlError::InUse { .. })));
    drop(f.server);
    assert!(!f.path.exists(), "the file goes with the server");
    assert!(matches!(ControlClient::connect(&f.path).await, Err(ClientError::NotRunning { .. })));
    // What a killed daemon leaves.
    drop(std::os::unix::net::UnixListener::bind(&f.path).unwrap());
    let _server = ControlServer::start(&f.path, None, f.engine.clone(), settings()).await.unwrap();
    ControlClient::connect(&f.path).await.unwrap().version().await.unwrap();
}

#[tokio::test]
async fn a_file_in_the_way_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    std::fs::write(&path, "precious").unwrap();
    let started = ControlServer::start(&path, None, Arc::new(Engine::default()), settings()).await;
    assert!(matches!(started, Err(ControlError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

async fn cyphonic(f: &Fixture, arguments: &[&str], output: impl Into<Stdio>) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cyphonic"));
    command.arg("--socket").arg(&f.path).args(arguments).stdout(output).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().await.unwrap()
}

#[tokio::test]
async fn every_report_for_programs_has_the_version_of_its_form() {
    let f = fixture().await;
    for verb in [&["status"][..], &["netcheck"], &["dns", "status"]] {
        let arguments = [verb, &["--json"]].concat();
        let answer = cyphonic(&f, &arguments, Stdio::piped()).await;
        let report: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(report["schema"], 1, "{verb:?}: {report}");
        assert!(report.as_object().unwrap().len() > 1, "{verb:?}: {report}");
    }
}

#[tokio::test]
async fn a_monitor_gets_figures_of_a_daemon_that_answers_and_of_none() {
    let mut f = fixture().await;
    let figures = cyphonic(&f, &["metrics"], Stdio::piped()).await;
    let text = String::from_utf8(figures.stdout).unwrap();
    assert!(figures.status.success() && text.contains("\ncyphonic_peers{"), "{text}");
    f.path.set_extension("of-nobody");
    let figures = cyphonic(&f, &["metrics"], Stdio::piped()).await;
    let text = String::from_utf8(figures.stdout).unwrap();
    assert!(figures.status.success() && text.ends_with("\ncyphonic_ready 0\n"), "{text}");
}

#[tokio::test]
async fn a_reader_who_has_read_enough_is_no_failure() {
    let f = fixture().await;
    for verb in [&["status"][..], &["status", "--json"], &["netcheck"], &["dns", "status"], &["version"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let answer = cyphonic(&f, verb, writer).await;
        assert!(answer.status.success() && answer.stderr.is_empty(), "{verb:?}: {answer:?}");
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let answer = cyphonic(&f, &["status"], full).await;
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    assert!(String::from_utf8(answer.stderr).unwrap().contains("standard output"));
}

/// Users and groups that no host has.
const STRANGER: u32 = 1_999_999_001;
const GROUP: u32 = 1_999_999_002;

/// `cyphonic status --check live` as another user (setpriv(1)), by a copy of the program where everybody may
/// read.
async fn check_as(dir: &Path, group: u32, further: &[u32]) -> Output {
    let further: Vec<_> = further.iter().map(ToString::to_string).collect();
    let groups =
        if further.is_empty() { "--clear-groups".into() } else { format!("--groups={}", further.join(",")) };
    tokio::process::Command::new("setpriv")
        .args([format!("--reuid={STRANGER}"), format!("--regid={group}"), groups])
        .arg(dir.join("cyphonic"))
        .arg("--socket")
        .arg(dir.join("run/c.sock"))
        .args(["status", "--check", "live"])
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn root_and_the_sockets_group_are_served_and_strangers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (path, program) = (dir.path().join("run/c.sock"), dir.path().join("cyphonic"));
    std::fs::copy(env!("CARGO_BIN_EXE_cyphonic"), &program).unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let _server =
        ControlServer::start(&path, Some(GROUP), Arc::new(Engine::default()), settings()).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().gid(), GROUP);
    ControlClient::connect(&path).await.unwrap().version().await.unwrap();
    // The kernel goes by the socket's mode; where it does not, the daemon goes by who has connected.
    for mode in [0o660, 0o666] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        for (group, further) in [(GROUP, &[][..]), (STRANGER, &[GROUP][..]), (STRANGER, &[STRANGER, GROUP])] {
            let member = check_as(dir.path(), group, further).await;
            assert!(member.status.success(), "{mode:o} {group} {further:?}: {member:?}");
        }
        for further in [&[][..], &[GROUP + 1]] {
            let stranger = check_as(dir.path(), STRANGER, further).await;
            assert_eq!(stranger.status.code(), Some(3), "{mode:o} {further:?}: {stranger:?}");
            let reason = String::from_utf8(stranger.stderr).unwrap();
            assert!(reason.contains(&format!("use sudo, or join the group {GROUP}")), "{reason}");
        }
    }
}

#[tokio::test]
async fn a_group_that_somebody_else_gave_the_socket_stays() {
    let dir = tempfile::tempdir().unwrap();
    // What is made in it is of its group, as of that of a process with another than root's.
    chown(dir.path(), None, Some(GROUP)).unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o2755)).unwrap();
    let path = dir.path().join("c.sock");
    let _server =
        ControlServer::start(&path, Some(GROUP + 1), Arc::new(Engine::default()), settings()).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().gid(), GROUP);
}
