//! The programs as systemd and people start them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cyphonic_agent::control::ControlClient;
use cyphonic_agent::netlink::Netlink;
use cyphonic_agent::resolver::resolv_conf::ResolvConf;
use cyphonic_agent::resolver::{self};
use cyphonic_agent::state::StateDir;
use cyphonic_proto::token::EnrolmentToken;
use nix::sched::CloneFlags;

use crate::netlink::{in_namespace, ip};
use crate::overlay::Overlay;

const HOSTS_OWN: &str = "nameserver 192.0.2.1\n";

/// `cyphonicd`, with its files in a folder of its own and nothing of this process's environment.
fn cyphonicd(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonicd"));
    command.env_clear().env("CYPHONIC_STATE_DIR", dir.join("state"));
    command.env("CYPHONIC_CONFIG", dir.join("agent.yaml")).env("CYPHONIC_INTERFACE", "cyph-none");
    command
}

fn configured(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("agent.yaml"), text).unwrap();
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A resolv.conf that a daemon has edited that is dead now.
fn edited_by_the_dead(dir: &Path) -> PathBuf {
    let file = dir.join("etc/resolv.conf");
    fs::create_dir(dir.join("etc")).unwrap();
    fs::write(&file, HOSTS_OWN).unwrap();
    let state = StateDir::open(&dir.join("state")).unwrap();
    let host = resolver::Host { resolv_conf: file.clone(), ..resolver::Host::default() };
    let edit = ResolvConf::prepare(&host, &state.resolver_dir(), [127, 0, 0, 55].into()).unwrap();
    std::mem::forget(edit.apply().unwrap());
    assert_ne!(fs::read_to_string(&file).unwrap(), HOSTS_OWN);
    file
}

fn assert_cleaned(output: &Output, file: &Path) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), HOSTS_OWN, "{output:?}");
}

#[test]
fn a_mistake_in_the_settings_ends_the_daemon_for_good_and_its_host_is_cleaned_up() {
    let dir = configured("interfase: x\n");
    let file = edited_by_the_dead(dir.path());
    let run = cyphonicd(dir.path()).output().unwrap();
    assert_eq!(run.status.code(), Some(78), "{run:?}");
    assert!(text(&run.stderr).contains("interfase"), "{run:?}");
    let cleanup = cyphonicd(dir.path()).arg("cleanup").output().unwrap();
    assert!(text(&cleanup.stderr).contains("interfase"), "{cleanup:?}");
    assert_cleaned(&cleanup, &file);
    fs::write(dir.path().join("agent.yaml"), b"log: caf\xe9\n").unwrap();
    assert_eq!(cyphonicd(dir.path()).output().unwrap().status.code(), Some(78), "not UTF-8");
    let missing = cyphonicd(dir.path()).env("CYPHONIC_CONFIG", "/nonexistent/agent.yaml").output().unwrap();
    assert_eq!(missing.status.code(), Some(1), "what it is on may be mounted yet: {missing:?}");
}

#[test]
fn a_value_of_the_environment_that_cannot_be_read_is_no_obstacle_to_cleaning_up() {
    let dir = configured("");
    let file = edited_by_the_dead(dir.path());
    let run = cyphonicd(dir.path()).env("CYPHONIC_PORT", "many").output().unwrap();
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    let cleanup = cyphonicd(dir.path()).arg("cleanup").env("CYPHONIC_PORT", "many").output().unwrap();
    assert!(text(&cleanup.stderr).contains("CYPHONIC_PORT") || text(&cleanup.stderr).contains("--port"));
    assert_cleaned(&cleanup, &file);
    // What a person mistypes is told, and nothing done.
    let mistyped = cyphonicd(dir.path()).args(["cleanup", "--intreface", "x"]).output().unwrap();
    assert_eq!(mistyped.status.code(), Some(2), "{mistyped:?}");
}

#[test]
fn cleaning_up_that_fails_says_so_and_can_be_tried_again() {
    let dir = configured("");
    let file = edited_by_the_dead(dir.path());
    // A link to itself in the way: nobody can look.
    let (etc, away) = (dir.path().join("etc"), dir.path().join("away"));
    fs::rename(&etc, &away).unwrap();
    symlink(&etc, &etc).unwrap();
    let failed = cyphonicd(dir.path()).arg("cleanup").output().unwrap();
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let said = text(&failed.stderr);
    assert!(said.contains("resolver") && said.contains(file.to_str().unwrap()), "{said}");
    fs::remove_file(&etc).unwrap();
    fs::rename(&away, &etc).unwrap();
    assert_cleaned(&cyphonicd(dir.path()).arg("cleanup").output().unwrap(), &file);
    // What becomes of no error is told as well.
    fs::write(dir.path().join("state/resolver/resolv.conf.json"), "{").unwrap();
    let damaged = cyphonicd(dir.path()).arg("cleanup").output().unwrap();
    assert!(text(&damaged.stderr).contains("set aside"), "{damaged:?}");
}

#[test]
fn an_empty_environment_variable_counts_as_not_set() {
    let dir = configured("log: debug\nport: 7\ncloud: cloud.example\n");
    let mut check = cyphonicd(dir.path());
    for name in ["CYPHONIC_PORT", "CYPHONIC_CLOUD", "CYPHONIC_LOG", "CYPHONIC_RING", "CYPHONIC_TOKEN_FILE"] {
        check.env(name, "");
    }
    let check = check.args(["config", "check"]).output().unwrap();
    let shown = text(&check.stdout);
    for line in ["log: debug", "port: 7", "- cloud.example:443", "token_file: null"] {
        assert!(shown.contains(line), "{check:?}");
    }
    let set = cyphonicd(dir.path()).env("CYPHONIC_PORT", "8").args(["config", "check"]).output().unwrap();
    assert!(text(&set.stdout).contains("port: 8"), "{set:?}");
    // Also below a verb.
    let up = Command::new(env!("CARGO_BIN_EXE_cyphonic"))
        .env_clear()
        .env("CYPHONIC_CLOUD", "")
        .args(["up", "--state-dir"])
        .arg(dir.path().join("state"))
        .arg("--config")
        .arg(dir.path().join("agent.yaml"))
        .output()
        .unwrap();
    assert!(text(&up.stderr).contains("not enrolled"), "{up:?}");
}

#[test]
fn help_names_the_environment_variables() {
    for (program, name) in [
        (env!("CARGO_BIN_EXE_cyphonicd"), "CYPHONIC_RING"),
        (env!("CARGO_BIN_EXE_cyphonicd"), "CYPHONIC_KEEP_AWAKE"),
        (env!("CARGO_BIN_EXE_cyphonic"), "CYPHONIC_SOCKET"),
    ] {
        // One that is set shows its value there, too.
        let help =
            Command::new(program).env_clear().env("CYPHONIC_RING", "xdp").arg("--help").output().unwrap();
        assert!(text(&help.stdout).contains(&format!("[env: {name}=")), "{help:?}");
    }
}

#[test]
fn who_waits_is_told_what_for() {
    let dir = configured("");
    let mut wait = Command::new(env!("CARGO_BIN_EXE_cyphonic"));
    wait.env_clear().arg("--socket").arg(dir.path().join("nobody.sock")).args(["wait", "--timeout", "3.5"]);
    let output = wait.output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    // Once, however often it asks.
    assert_eq!(said.matches("cyphonic: waiting: ").count(), 1, "{said}");
    assert!(said.contains("nobody.sock"), "{said}");
}

/// What the daemon tells systemd, one line a time, until one begins so.
fn told(systemd: &UnixDatagram, begin: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = match systemd.recv(&mut buffer) {
            // By a signal: a child of another test has ended.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            received => received.expect("it is told in time"),
        };
        if let Some(line) = text(&buffer[..length]).lines().find(|line| line.starts_with(begin)) {
            return line.to_owned();
        }
    }
}

/// As after a purge and an installation: no daemon starts, and none listens where resolv.conf says.
#[test]
fn enrolling_puts_back_what_a_daemon_left_before_it_resolves_the_clouds_name() {
    let dir = configured("cloud: [nowhere.invalid]\n");
    let file = edited_by_the_dead(dir.path());
    let token = EnrolmentToken::new([1; 32], [2; 32]);
    let mut up = Command::new(env!("CARGO_BIN_EXE_cyphonic"));
    up.env_clear().arg("up").args(["--token", token.format().as_str()]);
    up.arg("--config").arg(dir.path().join("agent.yaml")).arg("--state-dir").arg(dir.path().join("state"));
    let tried = up.output().unwrap();
    assert!(text(&tried.stderr).contains("can be resolved"), "{tried:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), HOSTS_OWN);
}

#[test]
fn a_device_that_cannot_enrol_yet_keeps_nobody_waiting_and_says_why() {
    let dir = configured("cloud: 192.0.2.1\n");
    let (socket, token) = (dir.path().join("run/c.sock"), dir.path().join("token"));
    let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut daemon = cyphonicd(dir.path())
        .env("CYPHONIC_SOCKET", &socket)
        .env("CYPHONIC_TOKEN_FILE", &token)
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .spawn()
        .unwrap();
    let cyphonic = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonic"));
        command.arg("--socket").arg(&socket).args(arguments).output().unwrap()
    };
    assert_eq!(told(&systemd, "READY="), "READY=1");
    told(&systemd, "WATCHDOG=");
    told(&systemd, "WATCHDOG=");
    let check = |what| cyphonic(&["status", "--check", what]).status.code();
    assert_eq!((check("live"), check("ready")), (Some(0), Some(1)));
    let status = cyphonic(&["status"]);
    let shown = text(&status.stdout);
    assert!(shown.starts_with("# Health check: ERROR: not enrolled: there is no token file"), "{status:?}");
    let wait = cyphonic(&["wait", "--timeout", "0.1"]);
    assert!(text(&wait.stderr).contains("there is no token file"), "{wait:?}");
    assert!(cyphonic(&["down"]).status.success());
    assert!(daemon.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn a_crash_of_the_daemon_leaves_no_core_dump_with_keys_in_it() {
    let dir = configured("cloud: 192.0.2.1\n");
    let dumping = |program: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\"", program]).current_dir(dir.path());
        shell
    };
    let crash = dumping("sh").args(["-c", "kill -s ABRT $$"]).status().unwrap();
    assert!(crash.core_dumped(), "this machine makes core dumps: {crash:?}");
    let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut daemon = dumping(env!("CARGO_BIN_EXE_cyphonicd"))
        .env("CYPHONIC_CONFIG", dir.path().join("agent.yaml"))
        .env("CYPHONIC_STATE_DIR", dir.path().join("state"))
        .env("CYPHONIC_SOCKET", dir.path().join("run/c.sock"))
        .env("CYPHONIC_TOKEN_FILE", dir.path().join("token"))
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .spawn()
        .unwrap();
    told(&systemd, "READY=");
    let id = daemon.id().to_string();
    assert!(Command::new("kill").args(["-s", "ABRT", &id]).status().unwrap().success());
    let crash = daemon.wait().unwrap();
    assert_eq!((crash.signal(), crash.core_dumped()), (Some(6), false));
}

#[test]
fn a_name_that_cannot_be_resolved_is_told_the_log_once() {
    let dir = configured("cloud: nowhere.invalid\n");
    let token = EnrolmentToken::new([1; 32], [2; 32]);
    fs::write(dir.path().join("token"), token.format().as_str()).unwrap();
    let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let daemon = cyphonicd(dir.path())
        .env("CYPHONIC_SOCKET", dir.path().join("run/c.sock"))
        .env("CYPHONIC_TOKEN_FILE", dir.path().join("token"))
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        told(&systemd, "STATUS=not enrolled yet");
    }
    assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
    let log = text(&daemon.wait_with_output().unwrap().stderr);
    for message in ["cannot resolve the cloud's name", "not enrolled yet"] {
        assert_eq!(log.matches(message).count(), 1, "{log}");
    }
}

#[test]
fn a_bug_report_is_one_text_also_without_a_daemon() {
    let dir = configured("");
    let report = Command::new(env!("CARGO_BIN_EXE_cyphonic"))
        .arg("--socket")
        .arg(dir.path().join("nobody.sock"))
        .arg("bugreport")
        .output()
        .unwrap();
    let said = text(&report.stdout);
    assert!(report.status.success(), "{report:?}");
    for title in [
        "cyphonic version",
        "cyphonic status --json",
        "/etc/cyphonic/agent.yaml",
        "cat /etc/default/cyphonicd",
        "uname -a",
        "ip -details address",
    ] {
        assert!(said.contains(&format!("\n===== {title}\n")), "{said}");
    }
    assert!(said.contains("the daemon is not running") && said.contains("Linux"), "{said}");
}

/// A daemon of an enrolled device in this network namespace, whose interface has its address.
async fn started(dir: &Path, interface: &str, ring: &str) -> tokio::process::Child {
    let settings = format!(
        "cloud: 192.0.2.1\ninterface: {interface}\nring: {ring}\ndns: {{resolver: none}}\nsocket: {}\n",
        dir.join("run/c.sock").display()
    );
    fs::write(dir.join("agent.yaml"), settings).unwrap();
    let mut command = tokio::process::Command::from(cyphonicd(dir));
    let mut daemon = command.env_remove("CYPHONIC_INTERFACE").kill_on_drop(true).spawn().unwrap();
    let socket = dir.join("run/c.sock");
    for _ in 0..600 {
        if let Ok(mut client) = ControlClient::connect(&socket).await
            && client.status().await.is_ok_and(|report| report.interface.up)
        {
            return daemon;
        }
        assert_eq!(daemon.try_wait().unwrap(), None, "it has ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not answer");
}

/// All but loopback, in alphabetical order.
fn interfaces() -> Vec<String> {
    let names = ip("-brief link show");
    let names = names.lines().filter_map(|line| line.split(['@', ' ']).next());
    let mut names: Vec<_> = names.filter(|name| *name != "lo").map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn what_a_killed_daemon_leaves_goes_whatever_the_settings_call_it_now() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link set lo up");
        let (overlay, dir) = (Overlay::found(), tempfile::tempdir().unwrap());
        overlay.enrol("a", 10, &dir.path().join("state"));
        // Another agent's, which was killed as well.
        Netlink::connect().unwrap().create_pair("z-other", "8:1", 1500).await.unwrap();
        for (interface, ring, then) in [
            ("ov0", "xdp", &["ov0", "ov0x"][..]),
            ("cyph0", "offload", &["cyph0"]),
            ("ov0", "offload", &["ov0"]),
        ] {
            started(dir.path(), "cyph0", "xdp").await.kill().await.unwrap();
            assert_eq!(
                interfaces(),
                ["cyph0", "cyph0x", "z-other", "z-otherx"],
                "a pair outlives its daemon"
            );
            let mut daemon = started(dir.path(), interface, ring).await;
            assert_eq!(interfaces(), [then, &["z-other", "z-otherx"]].concat(), "{interface}, {ring}");
            daemon.kill().await.unwrap();
        }
        started(dir.path(), "cyph0", "xdp").await.kill().await.unwrap();
        // By settings with an interface that was never there.
        let cleaned = cyphonicd(dir.path()).arg("cleanup").output().unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        assert_eq!(interfaces(), ["z-other", "z-otherx"]);
    });
}

#[test]
fn an_agent_does_not_take_the_interface_of_another_that_runs() {
    in_namespace(CloneFlags::CLONE_NEWNET, || async {
        ip("link set lo up");
        let (overlay, dir, other) =
            (Overlay::found(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        overlay.enrol("a", 10, &dir.path().join("state"));
        overlay.enrol("b", 10, &other.path().join("state"));
        let mut daemon = started(dir.path(), "cyph0", "xdp").await;
        let before = ip("-brief link show");
        fs::copy(dir.path().join("agent.yaml"), other.path().join("agent.yaml")).unwrap();
        let run = async |arguments: &[&str]| {
            let mut command = cyphonicd(other.path());
            command.env("CYPHONIC_INTERFACE", "cyph0").env("CYPHONIC_SOCKET", other.path().join("c.sock"));
            let mut command = tokio::process::Command::from(command);
            let ended = command.args(arguments).kill_on_drop(true).output();
            tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends").unwrap()
        };
        let refused = run(&[]).await;
        assert!(!refused.status.success() && text(&refused.stderr).contains("another name"), "{refused:?}");
        assert!(run(&["cleanup"]).await.status.success());
        assert_eq!(ip("-brief link show"), before);
        daemon.kill().await.unwrap();
    });
}
