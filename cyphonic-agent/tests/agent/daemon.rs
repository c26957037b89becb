use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cyphonic_agent::config::{Config, Overrides, Reloadable, ResolverChoice};
use cyphonic_agent::control::report::Severity;
use cyphonic_agent::control::{Backend, BackendError, ControlClient, ResetTarget, Settings, StatusReport};
use cyphonic_agent::daemon::{self, DaemonError, EngineInputs, RunningEngine};
use cyphonic_agent::dns::{ResolveError, Resolver};
use cyphonic_agent::resolver::resolv_conf::ResolvConf;
use cyphonic_agent::resolver::{self};
use cyphonic_agent::state::{DeviceIdentity, StateDir, StateError};
use futures_util::future::BoxFuture;
use nix::sched::CloneFlags;
use rcgen::CertificateParams;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::netlink::{in_namespace, ip};

/// Clones are the same.
#[derive(Clone, Default)]
struct Engine {
    taken_over: Arc<Mutex<Vec<Reloadable>>>,
    started_with: Arc<Mutex<Option<Config>>>,
}

impl Resolver for Engine {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        Box::pin(async { Ok(Ipv6Addr::LOCALHOST) })
    }

    fn name_of(&self, _: Ipv6Addr) -> Option<String> {
        None
    }
}

impl Backend for Engine {
    fn status(&self) -> BoxFuture<'_, StatusReport> {
        Box::pin(async { StatusReport { zone: "cyphonic.internal".into(), ..StatusReport::default() } })
    }

    fn is_alive(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }

    fn zone(&self) -> &str {
        "cyphonic.internal"
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        Resolver::resolve(self, name)
    }

    fn reset(&self, _: ResetTarget) -> BoxFuture<'_, Result<usize, BackendError>> {
        Box::pin(async { Ok(0) })
    }

    fn take_over(&self, settings: Reloadable) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            self.taken_over.lock().unwrap().push(settings);
            Ok(())
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

struct Host {
    dir: tempfile::TempDir,
    config: Config,
    /// Set when the engine was told to stop.
    stopped: Arc<AtomicBool>,
    fail: Option<oneshot::Receiver<String>>,
    engine: Engine,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            state_dir: dir.path().join("state"),
            socket: dir.path().join("run/c.sock"),
            ..Config::default()
        };
        config.dns.listen = "127.0.0.1:0".parse().unwrap();
        config.dns.resolver = ResolverChoice::None;
        Self { dir, config, stopped: Arc::default(), fail: None, engine: Engine::default() }
    }

    fn enrolled() -> Self {
        let host = Self::new();
        host.enrol();
        host
    }

    fn enrol(&self) {
        let state = StateDir::open(&self.config.state_dir).unwrap();
        let key = state.key_or_generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["a.cyphonic.internal".into()]).unwrap().self_signed(&key).unwrap();
        let leaf = leaf.der().clone();
        state.save_identity(&DeviceIdentity::new(&key, vec![leaf.clone()], leaf).unwrap()).unwrap();
    }

    /// Read again from `agent.yaml` in the host's folder.
    fn settings(&self) -> Settings {
        let file = self.dir.path().join("agent.yaml");
        Settings::new(self.config.clone(), move || Config::load(&file, true, &Overrides::default()))
    }

    async fn run(&mut self) -> Result<(), DaemonError> {
        let (stopped, fail, engine) = (self.stopped.clone(), self.fail.take(), self.engine.clone());
        daemon::run(self.settings(), async move |inputs: EngineInputs| {
            assert_eq!(inputs.identity.chain().len(), 1);
            *engine.started_with.lock().unwrap() = Some(inputs.config);
            Ok::<_, String>(RunningEngine {
                offering: Arc::new(|_| Box::pin(async {})),
                resolver: Arc::new(engine.clone()),
                backend: Arc::new(engine),
                zone: "cyphonic.internal".into(),
                prefix: "fd12:3456:789a::/48".parse().unwrap(),
                interface: 1,
                failed: Box::pin(async move {
                    match fail {
                        Some(fail) => fail.await.unwrap(),
                        None => std::future::pending().await,
                    }
                }),
                stop: Box::pin(async move { stopped.store(true, Ordering::SeqCst) }),
            })
        })
        .await
    }

    fn socket(&self) -> PathBuf {
        self.config.socket.clone()
    }
}

async fn connect(socket: PathBuf) -> ControlClient {
    for _ in 0..500 {
        if let Ok(client) = ControlClient::connect(&socket).await {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the daemon did not come up");
}

#[tokio::test]
async fn down_stops_everything_in_order() {
    let mut host = Host::enrolled();
    let (socket, stopped) = (host.socket(), host.stopped.clone());
    let visitor = tokio::spawn(async move {
        let mut client = connect(socket).await;
        let report = client.status().await.unwrap();
        assert_eq!((report.dns.resolver.as_str(), report.health.len()), ("none", 0));
        assert!(report.dns.listen.is_some());
        client.shutdown().await.unwrap();
    });
    timeout(Duration::from_secs(20), host.run()).await.expect("it stops").unwrap();
    visitor.await.unwrap();
    assert!(stopped.load(Ordering::SeqCst));
    assert!(!host.socket().exists());
}

#[tokio::test]
async fn settings_are_read_again_when_somebody_asks() {
    let mut host = Host::enrolled();
    let (file, engine) = (host.dir.path().join("agent.yaml"), host.engine.clone());
    let write = move |text: &str| std::fs::write(&file, text).unwrap();
    // As the daemon was started, but for what it does not tell.
    let same = serde_yaml::to_string(&host.config).unwrap();
    let socket = host.socket();
    let visitor = tokio::spawn(async move {
        let mut client = connect(socket).await;
        let taken = || engine.taken_over.lock().unwrap().clone();
        let refused = client.reload().await.unwrap_err().to_string();
        assert!(refused.contains("agent.yaml") && taken().is_empty(), "{refused}: there is no such file");
        write("keep_open: [a]\nkeep_opem: []\n");
        let refused = client.reload().await.unwrap_err().to_string();
        assert!(refused.contains("keep_opem") && refused.contains("stay in force"), "{refused}");
        assert!(taken().is_empty());
        write(&same);
        assert_eq!(client.reload().await.unwrap().needs_restart, Vec::<String>::new());
        write(
            &same
                .replace("keep_open: []", "keep_open: [a]")
                .replace("access: null", "access: []")
                .replace("port: 0", "port: 9"),
        );
        assert_eq!(client.reload().await.unwrap().needs_restart, ["port"]);
        let [before, after] = &taken()[..] else { panic!("{:?}", taken()) };
        assert_eq!((before.keep_open.len(), &before.access), (0, &None));
        assert_eq!((&after.keep_open[..], after.access.as_deref()), (&["a".to_owned()][..], Some(&[][..])));
        client.shutdown().await.unwrap();
    });
    timeout(Duration::from_secs(20), host.run()).await.expect("it stops").unwrap();
    visitor.await.unwrap();
}

#[tokio::test]
async fn what_was_written_while_the_device_waited_to_be_enrolled_is_in_force() {
    for (written, in_force) in [
        ("access: []\nkeep_open: [a]\nport: 9\n", (Some(0), 1)),
        ("keep_open: []\n", (Some(1), 0)),
        ("access: [{from: a, to: ssh}]\n", (Some(1), 0)),
    ] {
        let mut host = Host::enrolled();
        host.config.access = serde_yaml::from_str("[{from: all, to: ping}]").unwrap();
        std::fs::write(host.dir.path().join("agent.yaml"), written).unwrap();
        let (socket, engine) = (host.socket(), host.engine.clone());
        let visitor = tokio::spawn(async move { connect(socket).await.shutdown().await.unwrap() });
        timeout(Duration::from_secs(20), host.run()).await.expect("it stops").unwrap();
        visitor.await.unwrap();
        let config = engine.started_with.lock().unwrap().clone().unwrap();
        let found = (config.access.as_ref().map(Vec::len), config.keep_open.len());
        assert_eq!((found, config.port), (in_force, 0), "{written}");
    }
}

#[tokio::test]
async fn a_failing_engine_stops_the_daemon_with_its_reason() {
    let mut host = Host::enrolled();
    let (sender, receiver) = oneshot::channel();
    host.fail = Some(receiver);
    sender.send("the interface was removed".to_owned()).unwrap();
    let error = timeout(Duration::from_secs(20), host.run()).await.expect("it stops").unwrap_err();
    assert_eq!(error.to_string(), "the interface was removed");
    assert!(host.stopped.load(Ordering::SeqCst) && !host.socket().exists());
}

#[tokio::test]
async fn when_a_part_cannot_start_the_engine_is_stopped_again() {
    let mut host = Host::enrolled();
    // A file where the socket's folder should be.
    std::fs::write(host.dir.path().join("run"), "").unwrap();
    let error = host.run().await.unwrap_err();
    assert!(matches!(error, DaemonError::Control(_)), "{error}");
    assert!(host.stopped.load(Ordering::SeqCst));
}

/// As beside dnsmasq or Pi-hole, which listen on all addresses.
#[test]
fn another_dns_server_on_the_port_keeps_names_away_only_while_it_is_there() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link set lo up");
        let other = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        let mut host = Host::enrolled();
        host.config.dns.listen = Config::default().dns.listen;
        let listen = host.config.dns.listen;
        let socket = host.socket();
        let visitor = tokio::spawn(async move {
            let mut client = connect(socket).await;
            let report = client.status().await.unwrap();
            let check = report.health_check("dns-not-served").expect("status says so");
            let line = "server=/cyphonic.internal/127.0.0.55#5300";
            assert!(check.severity == Severity::Error && check.message.contains(line), "{check:?}");
            assert_eq!(report.dns.listen, None);
            let resolved = client.resolve("b.cyphonic.internal").await.unwrap();
            assert_eq!(resolved.address, Ipv6Addr::LOCALHOST, "the engine is there");
            drop(other);
            loop {
                let report = client.status().await.unwrap();
                if report.dns.listen == Some(listen) {
                    assert_eq!(report.health, []);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            std::net::UdpSocket::bind(listen).expect_err("it listens");
            client.shutdown().await.unwrap();
        });
        timeout(Duration::from_secs(60), host.run()).await.expect("DNS is served, and it stops").unwrap();
        visitor.await.unwrap();
    });
}

/// As on a memory card that the kernel has given up, or an image that is read-only on purpose.
#[test]
fn a_state_directory_that_is_read_only_is_no_obstacle() {
    in_namespace(CloneFlags::CLONE_NEWNS, || async {
        let mut host = Host::new();
        let folder = host.config.state_dir.clone();
        let mount = |arguments: &[&str]| {
            let status = Command::new("mount").args(arguments).status().expect("mount is installed");
            assert!(status.success(), "mount {arguments:?}");
        };
        std::fs::create_dir(&folder).unwrap();
        mount(&["--make-rprivate", "/"]);
        mount(&["-t", "tmpfs", "tmpfs", folder.to_str().unwrap()]);
        host.enrol();
        drop(StateDir::open(&folder).unwrap().lock().unwrap());
        mount(&["-o", "remount,ro", folder.to_str().unwrap()]);
        let socket = host.socket();
        let visitor = tokio::spawn(async move {
            let mut client = connect(socket).await;
            let state = StateDir::open(&folder).unwrap();
            assert!(matches!(state.lock(), Err(StateError::InUse { .. })), "it is locked all the same");
            client.shutdown().await.unwrap();
        });
        timeout(Duration::from_secs(60), host.run()).await.expect("it stops").unwrap();
        visitor.await.unwrap();
        // The temporary directory cannot be removed while something is mounted in it.
        assert!(Command::new("umount").arg(&host.config.state_dir).status().unwrap().success());
    });
}

#[tokio::test]
async fn without_identity_and_token_it_says_what_to_do_and_still_cleans_up() {
    let mut host = Host::new();
    let state = StateDir::open(&host.config.state_dir).unwrap();
    let file = host.dir.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    let found = resolver::Host { resolv_conf: file.clone(), ..resolver::Host::default() };
    let edit = ResolvConf::prepare(&found, &state.resolver_dir(), [127, 0, 0, 55].into()).unwrap();
    // A predecessor that was killed.
    std::mem::forget(edit.apply().unwrap());
    let error = host.run().await.unwrap_err();
    assert!(error.to_string().contains("cyphonic up"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
}
