//! systemd-resolved over D-Bus: a service with its name, object and signatures (org.freedesktop.resolve1(5))
//! on a private bus. Needs `dbus-daemon`.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use cyphonic_agent::config::ResolverChoice;
use cyphonic_agent::dns::{DnsServer, ResolveError, Resolver, Zone};
use cyphonic_agent::resolver::follow::SharedResolver;
use cyphonic_agent::resolver::resolved::{Bus, Resolved, ResolvedError};
use cyphonic_agent::resolver::{Host, HostResolver, ResolverError};
use cyphonic_agent::state::StateDir;
use futures_util::future::BoxFuture;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use zbus::zvariant::ObjectPath;
use zbus::{Connection, connection, fdo, interface};

const LINK: u32 = 7;
/// A number is no label of a path: systemd escapes its first digit.
const LINK_OBJECT: &str = "/org/freedesktop/resolve1/link/_37";
const ZONE: &str = "cyphonic.internal";
const REVERSE: &str = "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa";

/// A bus of the test's own, which ends with it.
struct PrivateBus {
    daemon: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl PrivateBus {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, address) = Self::run(dir.path());
        Self { daemon, address, dir }
    }

    /// As systemd does after a crash or an upgrade: nobody's connection stands any more.
    fn restart(&mut self) {
        self.stop();
        std::fs::remove_file(self.dir.path().join("bus")).unwrap();
        (self.daemon, self.address) = Self::run(self.dir.path());
    }

    fn stop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }

    fn run(dir: &Path) -> (Child, String) {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--print-address", "--nofork", "--nopidfile", "--nosyslog"])
            .arg(format!("--address=unix:path={}", dir.join("bus").display()))
            .env("XDG_DATA_HOME", dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon (Debian package dbus-daemon) is installed");
        let mut address = String::new();
        BufReader::new(daemon.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        // Without the bus's number, which is another one after a restart.
        let address = address.trim().split(',').next().unwrap().to_owned();
        (daemon, address)
    }

    /// Has the bus start a program for resolved's name, which does not take it; what it makes tells that it
    /// ran.
    fn start_on_demand(&self) -> PathBuf {
        let (services, ran) = (self.dir.path().join("dbus-1/services"), self.dir.path().join("ran"));
        std::fs::create_dir_all(&services).unwrap();
        let service =
            format!("[D-BUS Service]\nName=org.freedesktop.resolve1\nExec=/bin/touch {}\n", ran.display());
        std::fs::write(services.join("org.freedesktop.resolve1.service"), service).unwrap();
        ran
    }

    fn bus(&self) -> Bus {
        Bus::At(self.address.clone())
    }

    /// Lives as long as the connection.
    async fn serve(&self, behaviour: Behaviour) -> (Connection, Calls) {
        self.serve_among(behaviour, Others::default()).await
    }

    async fn serve_among(&self, behaviour: Behaviour, others: Others) -> (Connection, Calls) {
        let (calls, link) = (Calls::default(), Link::default());
        let manager = Manager { calls: calls.clone(), link: link.clone(), others, behaviour };
        let connection = connection::Builder::address(self.address.as_str())
            .unwrap()
            .serve_at("/org/freedesktop/resolve1", manager)
            .unwrap()
            .serve_at(LINK_OBJECT, link)
            .unwrap()
            .name("org.freedesktop.resolve1")
            .unwrap()
            .build()
            .await
            .unwrap();
        (connection, calls)
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Call {
    DefaultRoute(i32, bool),
    Dns(i32, Vec<(i32, Vec<u8>)>),
    DnsEx(i32, Vec<(i32, Vec<u8>, u16, String)>),
    Domains(i32, Vec<(String, bool)>),
    Mode(&'static str, i32, String),
    Revert(i32),
}

#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    fn all(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    Accepts,
    /// Accepts servers and then no domains.
    RefusesDomains,
    /// Knows nothing of LLMNR and its like.
    IsOld,
    NeverAnswers,
}

/// `org.freedesktop.resolve1.Link`, as far as domains go.
#[derive(Clone, Default)]
struct Link(Arc<Mutex<Vec<(String, bool)>>>);

/// Domains of other links.
type Others = Arc<Mutex<Vec<(i32, String, bool)>>>;

#[interface(name = "org.freedesktop.resolve1.Link")]
impl Link {
    #[zbus(property)]
    fn domains(&self) -> Vec<(String, bool)> {
        self.0.lock().unwrap().clone()
    }
}

/// `org.freedesktop.resolve1.Manager`, as far as a link's settings go. zbus refuses calls with other
/// signatures.
struct Manager {
    calls: Calls,
    link: Link,
    others: Others,
    behaviour: Behaviour,
}

impl Manager {
    fn note(&self, call: Call) {
        self.calls.0.lock().unwrap().push(call);
    }

    fn mode(&self, method: &'static str, link: i32, mode: String) -> fdo::Result<()> {
        if self.behaviour == Behaviour::IsOld {
            return Err(fdo::Error::UnknownMethod(method.into()));
        }
        self.note(Call::Mode(method, link, mode));
        Ok(())
    }
}

#[interface(name = "org.freedesktop.resolve1.Manager")]
impl Manager {
    #[zbus(property)]
    fn domains(&self) -> Vec<(i32, String, bool)> {
        let ours = self.link.domains().into_iter().map(|(domain, routing)| (LINK as i32, domain, routing));
        self.others.lock().unwrap().iter().cloned().chain(ours).collect()
    }

    async fn set_link_default_route(&self, link: i32, enable: bool) {
        self.note(Call::DefaultRoute(link, enable));
        if self.behaviour == Behaviour::NeverAnswers {
            std::future::pending::<()>().await;
        }
    }

    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, servers: Vec<(i32, Vec<u8>)>) {
        self.note(Call::Dns(link, servers));
    }

    #[zbus(name = "SetLinkDNSEx")]
    fn set_link_dns_ex(&self, link: i32, servers: Vec<(i32, Vec<u8>, u16, String)>) {
        self.note(Call::DnsEx(link, servers));
    }

    fn set_link_domains(&self, link: i32, domains: Vec<(String, bool)>) -> fdo::Result<()> {
        if self.behaviour == Behaviour::RefusesDomains {
            return Err(fdo::Error::InvalidArgs("Invalid search domain".into()));
        }
        self.link.0.lock().unwrap().clone_from(&domains);
        self.note(Call::Domains(link, domains));
        Ok(())
    }

    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, link: i32, mode: String) -> fdo::Result<()> {
        self.mode("SetLinkDNSSEC", link, mode)
    }

    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, link: i32, mode: String) -> fdo::Result<()> {
        self.mode("SetLinkDNSOverTLS", link, mode)
    }

    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, link: i32, mode: String) -> fdo::Result<()> {
        self.mode("SetLinkLLMNR", link, mode)
    }

    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, link: i32, mode: String) -> fdo::Result<()> {
        self.mode("SetLinkMulticastDNS", link, mode)
    }

    fn get_link(&self, link: i32) -> fdo::Result<ObjectPath<'static>> {
        match u32::try_from(link) {
            Ok(LINK) => Ok(ObjectPath::from_static_str_unchecked(LINK_OBJECT)),
            _ => Err(fdo::Error::Failed(format!("Link {link} not known"))),
        }
    }

    fn revert_link(&self, link: i32) {
        self.link.0.lock().unwrap().clear();
        self.note(Call::Revert(link));
    }
}

fn domains() -> Vec<(String, bool)> {
    vec![(ZONE.into(), true), (REVERSE.into(), true)]
}

/// What resolved hears for the two domains: never a search domain unless that is wanted.
fn routing_only() -> Call {
    Call::Domains(7, domains())
}

async fn apply(bus: &PrivateBus, server: &str) -> Result<Resolved, ResolvedError> {
    let server: SocketAddr = server.parse().unwrap();
    let (bus, domains) = (bus.bus(), domains());
    let applied = Resolved::apply(&bus, LINK, server, &domains);
    timeout(Duration::from_secs(60), applied).await.expect("it gives up by itself")
}

#[tokio::test]
async fn the_link_gets_server_and_routing_domains_and_loses_them_again() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::Accepts).await;
    let resolved = apply(&bus, "127.0.0.55:53").await.unwrap();
    let off = |method| Call::Mode(method, 7, "no".into());
    let set = [
        Call::DefaultRoute(7, false),
        Call::Dns(7, vec![(2, vec![127, 0, 0, 55])]),
        routing_only(),
        off("SetLinkDNSSEC"),
        off("SetLinkDNSOverTLS"),
        off("SetLinkLLMNR"),
        off("SetLinkMulticastDNS"),
    ];
    assert_eq!(calls.all(), set);
    resolved.revert().await.unwrap();
    assert_eq!(calls.all()[set.len()..], [Call::Revert(7)]);
}

#[tokio::test]
async fn another_port_than_53_is_told_too() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::Accepts).await;
    apply(&bus, "[::1]:5353").await.unwrap();
    let localhost = Ipv6Addr::LOCALHOST.octets().to_vec();
    assert_eq!(calls.all()[1], Call::DnsEx(7, vec![(10, localhost, 5353, String::new())]));
}

#[tokio::test]
async fn an_old_version_that_lacks_the_finer_points_will_do() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::IsOld).await;
    apply(&bus, "127.0.0.55:53").await.unwrap();
    assert_eq!(calls.all().last(), Some(&routing_only()));
}

#[tokio::test]
async fn what_was_set_before_a_refusal_is_taken_back() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::RefusesDomains).await;
    let error = apply(&bus, "127.0.0.55:53").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("refused SetLinkDomains") && text.contains("Invalid search domain"), "{text}");
    assert_eq!(calls.all().last(), Some(&Call::Revert(7)));
}

#[tokio::test]
async fn a_missing_service_a_missing_bus_and_a_silent_one_are_told_apart() {
    let bus = PrivateBus::start();
    let absent = apply(&bus, "127.0.0.55:53").await.unwrap_err();
    assert!(matches!(absent, ResolvedError::Absent), "{absent}");
    assert!(absent.to_string().contains("does not run"), "{absent}");

    let (service, _) = bus.serve(Behaviour::NeverAnswers).await;
    let silent = apply(&bus, "127.0.0.55:53").await.unwrap_err();
    assert!(matches!(silent, ResolvedError::Silent), "{silent}");
    drop(service);

    let nowhere = Bus::At("unix:path=/nonexistent/bus".into());
    let server = "127.0.0.55:53".parse().unwrap();
    let gone = Resolved::apply(&nowhere, LINK, server, &domains()).await.unwrap_err();
    assert!(matches!(gone, ResolvedError::Bus(_)), "{gone}");
    assert!(gone.to_string().contains("resolver: resolv-conf"), "{gone}");
}

/// Knows no name.
struct Nobody;

impl Resolver for Nobody {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Ipv6Addr, ResolveError>> {
        Box::pin(async { Err(ResolveError::NoSuchPeer) })
    }

    fn name_of(&self, _: Ipv6Addr) -> Option<String> {
        None
    }
}

/// A host whose resolv.conf names resolved's stub, as on a stock Ubuntu.
struct UbuntuHost {
    dir: tempfile::TempDir,
    host: Host,
    state: StateDir,
}

/// Somebody listens where resolved's stub does: we, or resolved itself where it runs on this machine. For all
/// tests of this process, so that none takes it from another.
static STUB: LazyLock<Option<TcpListener>> = LazyLock::new(|| match TcpListener::bind("127.0.0.53:53") {
    Ok(stub) => Some(stub),
    Err(error) if error.kind() == ErrorKind::AddrInUse => None,
    Err(error) => panic!("the stub's address cannot be had (this test needs root): {error}"),
});

const STUB_FILE: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";

impl UbuntuHost {
    fn new(bus: Bus) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, STUB_FILE).unwrap();
        LazyLock::force(&STUB);
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let run = dir.path().join("run");
        let nsswitch = dir.path().join("nsswitch.conf");
        Self {
            host: Host { resolv_conf, nsswitch, hostname: dir.path().join("hostname"), run, bus },
            state,
            dir,
        }
    }

    async fn apply(&self, choice: ResolverChoice, server: &DnsServer) -> Result<HostResolver, ResolverError> {
        HostResolver::apply(choice, &self.host, server, LINK, &self.state).await
    }

    /// resolved tells whom it asks.
    fn tell_servers(&self) {
        let folder = self.host.run.join("systemd/resolve");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
    }

    fn file(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("resolv.conf")).unwrap()
    }
}

async fn dns(address: &str) -> DnsServer {
    let zone = Zone::new(ZONE, "fd12:3456:789a::/48".parse().unwrap()).unwrap();
    DnsServer::start(address.parse().unwrap(), zone, Arc::new(Nobody)).await.unwrap()
}

#[tokio::test]
async fn auto_uses_resolved_where_the_host_does_and_touches_no_file() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::Accepts).await;
    let host = UbuntuHost::new(bus.bus());
    let server = dns("127.0.0.1:0").await;
    let applied = host.apply(ResolverChoice::Auto, &server).await.unwrap();
    assert_eq!((applied.kind(), host.file().as_str()), ("systemd-resolved", STUB_FILE));
    assert_eq!(calls.all()[2], routing_only(), "the domains of the server's zone");
    applied.restore().await;
    assert_eq!(calls.all().last(), Some(&Call::Revert(7)));
}

#[tokio::test]
async fn domains_are_searched_where_short_names_are_wanted() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::Accepts).await;
    let host = UbuntuHost::new(bus.bus());
    let zone = Zone::new(ZONE, "fd12:3456:789a::/48".parse().unwrap()).unwrap();
    let zone = zone.searched_by(&format!("press-7.hall.{ZONE}"));
    let server = DnsServer::start("127.0.0.1:0".parse().unwrap(), zone, Arc::new(Nobody)).await.unwrap();
    let applied = host.apply(ResolverChoice::Auto, &server).await.unwrap();
    let told = vec![(format!("hall.{ZONE}"), false), (ZONE.into(), false), (REVERSE.into(), true)];
    assert_eq!(calls.all()[2], Call::Domains(7, told.clone()));
    let HostResolver::Resolved { link, .. } = &applied else { panic!("{applied:?}") };
    assert!(!link.restore().await.unwrap().again);
    let routing: Vec<_> = told.iter().map(|(domain, _)| (domain.clone(), true)).collect();
    Resolved::apply(&bus.bus(), LINK, server.address(), &routing).await.unwrap();
    assert!(link.restore().await.unwrap().again, "they are routed to us, and not searched");
    assert!(calls.all().iter().filter(|call| **call == Call::Domains(7, told.clone())).count() == 2);
    applied.restore().await;
}

#[tokio::test]
async fn what_resolved_forgets_it_is_told_again_and_that_it_is_gone_is_no_secret() {
    let bus = PrivateBus::start();
    let (service, calls) = bus.serve(Behaviour::Accepts).await;
    let host = UbuntuHost::new(bus.bus());
    let server = Arc::new(dns("127.0.0.1:0").await);
    let applied = host.apply(ResolverChoice::Auto, &server).await.unwrap();
    let HostResolver::Resolved { link, .. } = &applied else { panic!("{applied:?}") };
    let (link, resolver) = (link.clone(), SharedResolver::default());
    resolver.set(applied);
    let told = calls.all().len();
    assert!(resolver.restore_link(&link).await);
    assert_eq!(calls.all().len(), told, "it knows the zone");

    // As by `resolvectl revert`. Whoever follows looks at once.
    link.revert().await.unwrap();
    let following = tokio::spawn(resolver.clone().follow(server.clone()));
    let again = async {
        while calls.all()[told + 1..].iter().all(|call| *call != routing_only()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), again).await.expect("it is told again");
    following.abort();
    assert_eq!(resolver.standing().await.trouble, None);

    service.release_name("org.freedesktop.resolve1").await.unwrap();
    assert!(!resolver.restore_link(&link).await);
    let gone = resolver.standing().await;
    let trouble = gone.trouble.expect("status says so");
    assert!(trouble.contains("does not run") && trouble.contains("restart cyphonicd"), "{trouble}");
    assert_eq!((gone.kind, gone.why), ("systemd-resolved", trouble));

    service.request_name("org.freedesktop.resolve1").await.unwrap();
    assert!(resolver.restore_link(&link).await);
    assert_eq!(resolver.standing().await.trouble, None);
}

#[tokio::test]
async fn after_a_restart_of_the_bus_resolved_is_asked_on() {
    let mut bus = PrivateBus::start();
    let (service, _) = bus.serve(Behaviour::Accepts).await;
    let host = UbuntuHost::new(bus.bus());
    let applied = host.apply(ResolverChoice::Auto, &dns("127.0.0.1:0").await).await.unwrap();
    let HostResolver::Resolved { link, .. } = &applied else { panic!("{applied:?}") };
    let (link, resolver) = (link.clone(), SharedResolver::default());
    resolver.set(applied);
    drop(service);
    bus.stop();
    assert!(!resolver.restore_link(&link).await);
    let trouble = resolver.standing().await.trouble.expect("status says so");
    assert!(trouble.contains("system bus"), "{trouble}");
    bus.restart();
    let (_service, calls) = bus.serve(Behaviour::Accepts).await;
    assert!(resolver.restore_link(&link).await);
    assert_eq!(resolver.standing().await.trouble, None);
    assert!(calls.all().contains(&routing_only()), "a new one knows nothing");
}

#[tokio::test]
async fn that_another_link_takes_names_of_the_zone_is_a_warning() {
    let bus = PrivateBus::start();
    let others = Others::default();
    let (_service, _) = bus.serve_among(Behaviour::Accepts, others.clone()).await;
    let host = UbuntuHost::new(bus.bus());
    let applied = host.apply(ResolverChoice::Auto, &dns("127.0.0.1:0").await).await.unwrap();
    let HostResolver::Resolved { link, .. } = &applied else { panic!("{applied:?}") };
    let (link, resolver) = (link.clone(), SharedResolver::default());
    resolver.set(applied);
    for (on, domain, by) in [
        (1, format!("gate.{ZONE}"), Some(" lo,")),
        (1, ZONE.into(), Some(" lo,")),
        (0, format!("GATE.{ZONE}"), Some("`resolved.conf`")),
        (1, "internal".into(), None),
        (1, format!("not{ZONE}"), None),
        (1, ".".into(), None),
    ] {
        *others.lock().unwrap() = vec![(1, "lan".into(), false), (on, domain.clone(), false)];
        assert!(resolver.restore_link(&link).await);
        let standing = resolver.standing().await;
        let gap = standing.gap.unwrap_or_default();
        assert!(standing.trouble.is_none() && gap.is_empty() == by.is_none(), "{domain}: {gap}");
        assert!(gap.contains(by.unwrap_or_default()) && (by.is_none() || gap.contains(&domain)), "{gap}");
    }
}

#[tokio::test]
async fn that_programs_do_not_ask_resolved_any_more_is_no_secret() {
    let bus = PrivateBus::start();
    let (_service, _) = bus.serve(Behaviour::Accepts).await;
    let host = UbuntuHost::new(bus.bus());
    let server = dns("127.0.0.1:0").await;
    let elsewhere = "nameserver 192.0.2.1\n";
    for (choice, trouble) in [(ResolverChoice::Auto, true), (ResolverChoice::SystemdResolved, false)] {
        let applied = host.apply(choice, &server).await.unwrap();
        let HostResolver::Resolved { link, .. } = &applied else { panic!("{applied:?}") };
        let (link, resolver) = (link.clone(), SharedResolver::default());
        resolver.set(applied);
        assert!(resolver.restore_link(&link).await);
        // As by a VPN's program. Who has said that resolved is to be used knows how it is asked.
        std::fs::write(&host.host.resolv_conf, elsewhere).unwrap();
        assert_eq!(resolver.restore_link(&link).await, !trouble);
        let said = resolver.standing().await.trouble.unwrap_or_default();
        assert_eq!(said.contains("resolv.conf") && said.contains("restart cyphonicd"), trouble, "{said}");
        std::fs::write(&host.host.resolv_conf, STUB_FILE).unwrap();
        assert!(resolver.restore_link(&link).await);
        assert_eq!(resolver.standing().await.trouble, None);
    }
}

#[tokio::test]
async fn that_only_some_programs_do_not_ask_resolved_any_more_is_a_warning() {
    let bus = PrivateBus::start();
    let (_service, _) = bus.serve(Behaviour::Accepts).await;
    let host = UbuntuHost::new(bus.bus());
    let server = dns("127.0.0.1:0").await;
    let applied = host.apply(ResolverChoice::Auto, &server).await.unwrap();
    let HostResolver::Resolved { link, .. } = &applied else { panic!("{applied:?}") };
    let (link, resolver) = (link.clone(), SharedResolver::default());
    resolver.set(applied);
    std::fs::write(&host.host.resolv_conf, "nameserver 192.0.2.1\n").unwrap();
    std::fs::write(&host.host.nsswitch, "hosts: files resolve [!UNAVAIL=return] dns\n").unwrap();
    assert!(resolver.restore_link(&link).await);
    let standing = resolver.standing().await;
    let gap = standing.gap.unwrap_or_default();
    assert!(standing.trouble.is_none() && gap.contains("that read it themselves"), "{gap}");
    std::fs::write(&host.host.nsswitch, "hosts: files dns\n").unwrap();
    assert!(!resolver.restore_link(&link).await);
    let standing = resolver.standing().await;
    assert!(standing.trouble.is_some() && standing.gap.is_none());
}

#[tokio::test]
async fn a_resolved_that_did_not_answer_gets_the_zone_and_its_file_when_it_does() {
    let bus = PrivateBus::start();
    let host = UbuntuHost::new(bus.bus());
    host.tell_servers();
    let server = dns("127.0.0.76:53").await;
    let resolver = SharedResolver::default();
    resolver.set(host.apply(ResolverChoice::Auto, &server).await.unwrap());
    assert!(host.file().contains("nameserver 127.0.0.76"), "{}", host.file());
    assert!(!resolver.return_to_resolved(&host.host, &server, LINK).await, "it is still away");
    assert_eq!(resolver.standing().await.kind, "resolv-conf");
    let (_service, calls) = bus.serve(Behaviour::Accepts).await;
    assert!(resolver.return_to_resolved(&host.host, &server, LINK).await);
    assert_eq!((resolver.standing().await.kind, host.file().as_str()), ("systemd-resolved", STUB_FILE));
    assert_eq!(calls.all()[2], routing_only());
    assert!(!resolver.return_to_resolved(&host.host, &server, LINK).await, "once is enough");
    resolver.restore().await;
    assert_eq!((calls.all().last(), host.file().as_str()), (Some(&Call::Revert(7)), STUB_FILE));
}

#[tokio::test]
async fn a_resolved_that_was_stopped_is_not_started_for_the_question() {
    let bus = PrivateBus::start();
    let host = UbuntuHost::new(bus.bus());
    host.tell_servers();
    let server = dns("127.0.0.78:53").await;
    let resolver = SharedResolver::default();
    resolver.set(host.apply(ResolverChoice::Auto, &server).await.unwrap());
    let ran = bus.start_on_demand();
    assert!(!resolver.return_to_resolved(&host.host, &server, LINK).await);
    assert!(!ran.exists());
    assert!(apply(&bus, "127.0.0.55:53").await.is_err() && ran.exists(), "a call would start it");
    resolver.restore().await;
}

#[tokio::test]
async fn a_file_that_programs_do_not_ask_resolved_by_any_more_is_not_given_back_to_it() {
    let server = dns("127.0.0.79:53").await;
    let others = "nameserver 192.0.2.9\n";
    for behind_link in [false, true] {
        let bus = PrivateBus::start();
        let host = UbuntuHost::new(bus.bus());
        host.tell_servers();
        let (file, target) = (&host.host.resolv_conf, host.dir.path().join("stub.conf"));
        std::fs::rename(file, &target).unwrap();
        symlink(&target, file).unwrap();
        let resolver = SharedResolver::default();
        resolver.set(host.apply(ResolverChoice::Auto, &server).await.unwrap());
        let (_service, calls) = bus.serve(Behaviour::Accepts).await;
        // Nobody has looked since.
        std::fs::write(if behind_link { &target } else { file }, others).unwrap();
        assert!(!resolver.return_to_resolved(&host.host, &server, LINK).await, "{behind_link}");
        assert_eq!(resolver.standing().await.kind, "resolv-conf", "{behind_link}");
        assert_eq!((calls.all().last(), host.file().as_str()), (Some(&Call::Revert(7)), others));
    }
}

#[tokio::test]
async fn auto_goes_on_with_resolv_conf_where_resolved_refuses_and_says_why() {
    let bus = PrivateBus::start();
    let (_service, calls) = bus.serve(Behaviour::RefusesDomains).await;
    let host = UbuntuHost::new(bus.bus());
    let server = dns("127.0.0.73:53").await;
    host.tell_servers();
    let applied = host.apply(ResolverChoice::Auto, &server).await.unwrap();
    assert_eq!(applied.kind(), "resolv-conf");
    assert!(applied.why().contains("refused SetLinkDomains"), "{}", applied.why());
    assert!(host.file().contains("nameserver 127.0.0.73"), "{}", host.file());
    let resolver = SharedResolver::default();
    resolver.set(applied);
    let asked = calls.all().len();
    assert!(!resolver.return_to_resolved(&host.host, &server, LINK).await);
    assert_eq!(calls.all().len(), asked, "who has said no is not asked again");
    resolver.restore().await;
    assert_eq!(host.file(), STUB_FILE);
}

#[tokio::test]
async fn a_forced_resolved_that_is_absent_is_an_error_and_so_is_having_neither() {
    let bus = PrivateBus::start();
    let host = UbuntuHost::new(bus.bus());
    let server = dns("127.0.0.1:0").await;
    let forced = host.apply(ResolverChoice::SystemdResolved, &server).await.unwrap_err();
    assert!(matches!(forced, ResolverError::Resolved(ResolvedError::Absent)), "{forced}");
    // resolv.conf cannot name this server's port.
    let neither = host.apply(ResolverChoice::Auto, &server).await.unwrap_err().to_string();
    assert!(neither.contains("does not run") && neither.contains("port"), "{neither}");
    assert_eq!(host.file(), STUB_FILE);
}

/// As on a Pi: the agent starts before DHCP.
#[tokio::test]
async fn who_writes_resolv_conf_later_is_followed_and_asked() {
    let host = UbuntuHost::new(Bus::At("unix:path=/nonexistent".into()));
    host.tell_servers();
    let server = Arc::new(dns("127.0.0.74:53").await);
    let resolver = SharedResolver::default();
    resolver.set(host.apply(ResolverChoice::ResolvConf, &server).await.unwrap());
    let following = tokio::spawn(resolver.clone().follow(server.clone()));
    let written = "# by DHCP\nnameserver 127.0.0.75\n";
    let new = UdpSocket::bind("127.0.0.75:53").await.unwrap();
    std::fs::write(host.dir.path().join("resolv.conf"), written).unwrap();
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A));
    let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asked = async {
        let mut buffer = [0; 512];
        loop {
            program.send_to(&query.to_vec().unwrap(), server.address()).await.unwrap();
            if timeout(Duration::from_millis(500), new.recv_from(&mut buffer)).await.is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), asked).await.expect("the new server is asked");
    assert!(host.file().contains("nameserver 127.0.0.74") && resolver.standing().await.trouble.is_none());
    resolver.restore().await;
    assert_eq!(host.file(), written);
    following.abort();
}
