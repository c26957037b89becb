//! An NMS on another machine, as its operator sees it, and as devices do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cyphonic_cloud::server::unix_now;
use cyphonic_proto::message::{DirectionRequest, Message};
use cyphonic_proto::{Role, close};
use cyphonic_transport::Connection;

use super::program::{Running, SOON, fails, metrics, succeeds};
use crate::client::{Client, Member, enrol, register};
use crate::common::{Overlay, free_port};

/// A standby of an overlay, in a directory of its own.
struct Standby {
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Standby {
    fn made(overlay: &Overlay, is_listed: bool) -> Self {
        let (directory, address) = (tempfile::tempdir().unwrap(), free_port());
        if is_listed {
            let text = std::fs::read_to_string(&overlay.config_path).unwrap();
            let listed = format!("{text}\nstandbys: [{{name: nms2, addresses: [\"{address}\"]}}]\n");
            std::fs::write(&overlay.config_path, listed).unwrap();
        }
        let standby = Self { directory, address };
        let [from, out, listen] = [
            overlay.directory.path().to_str().unwrap(),
            standby.directory.path().to_str().unwrap(),
            &address.to_string(),
        ];
        let said = succeeds(&[
            "standby-credentials",
            "--dir",
            from,
            "--name",
            "nms2",
            "--out",
            out,
            "--listen",
            listen,
        ]);
        assert_eq!(said.contains("does not list it"), !is_listed, "{said}");
        standby
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("cloud.yaml")
    }

    async fn start(&self) -> Running {
        Running::start(&self.config(), self.address).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.config().with_extension("log")).unwrap()
    }

    async fn connect(&self, client: &Client, overlay: &Overlay, member: &Member) -> Connection {
        client.connect_at(overlay, member, Role::Nms, "nms2", self.address).await.unwrap()
    }
}

/// What `standby-status` says where a service with this configuration runs.
fn status(config: &Path) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    let output = command
        .args(["standby-status", "--json"])
        .env("CYPHONIC_CLOUD_RUNTIME", config.parent().unwrap())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The number of a set-up between two devices that have registered.
async fn set_up(from: &Connection, to: &str) -> u64 {
    let request = DirectionRequest { fqdn: format!("{to}.cyphonic.internal"), ..DirectionRequest::default() };
    match from.open_exchange(&Message::DirectionRequest(request)).await.unwrap() {
        Message::RouteDirection(direction) => u64::from_be_bytes(direction.setup_id[..8].try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

async fn is_closed_as(connection: &Connection, code: u32, why: &str) {
    let closed = tokio::time::timeout(SOON, connection.closed()).await.expect("it stands");
    let text = closed.to_string();
    assert!(text.contains(why), "{text}");
    assert!(format!("{closed:?}").contains(&format!("error_code: {code}")), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_serves_the_devices_of_the_register_while_the_cloud_is_away() {
    let overlay = Overlay::found(unix_now());
    let standby = Standby::made(&overlay, true);
    let (config, copy) = (overlay.config_path.clone(), standby.config());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\naccess: [{{from: a, at: b, to: tcp/502}}]\n")).unwrap();
    let cloud = Running::start(&config, overlay.address).await;
    let client = Client::open();
    let mut members = Vec::new();
    for name in ["a", "b", "stolen"] {
        members.push(enrol(&overlay, &overlay.token(name, unix_now())).await);
    }
    let [a, b, stolen] = &members[..] else { unreachable!() };

    let serving = standby.start().await;
    until("its copy is whole", || standby.log().contains("the copy of the register is whole")).await;
    until("commands know", || status(&copy)["standby"]["hears"] == true).await;
    until("the cloud's, too", || status(&config)["standbys"][0]["follows_since"].is_string()).await;
    assert!(
        metrics(config.to_str().unwrap())
            .contains("standby_follows{standby=\"nms2.svc.cyphonic.internal\"} 1")
    );
    let refused = standby.connect(&client, &overlay, a).await;
    is_closed_as(&refused, close::UNAVAILABLE, "stands by").await;
    // What is changed at the cloud is copied.
    succeeds(&["device", "revoke", "--config", config.to_str().unwrap(), "stolen"]);
    let listed = |config: &Path| {
        succeeds(&["device", "list", "--all", "--json", "--config", config.to_str().unwrap()])
    };
    let is_revoked = || {
        let all: serde_json::Value = serde_json::from_str(&listed(&copy)).unwrap();
        let device = |n: usize| (all["devices"][n]["name"].clone(), all["devices"][n]["state"].clone());
        assert_eq!(device(0), ("a.cyphonic.internal".into(), "enrolled".into()));
        device(2) == ("stolen.cyphonic.internal".into(), "revoked".into())
    };
    until("the revocation is copied", is_revoked).await;
    let token = fails(&["token", "create", "--config", copy.to_str().unwrap(), "--name", "c"]);
    assert!(token.contains("which copies register and rules"), "{token}");
    let access = fails(&["access", "--config", copy.to_str().unwrap(), "a", "b"]);
    assert!(access.contains("which copies register and rules"), "{access}");
    let mut revoke = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"));
    revoke
        .args(["device", "revoke", "a", "--config"])
        .arg(&copy)
        .env("CYPHONIC_CLOUD_RUNTIME", copy.parent().unwrap());
    let revoked = revoke.output().unwrap();
    assert!(
        !revoked.status.success() && String::from_utf8_lossy(&revoked.stderr).contains("hears of the cloud")
    );
    let at_cloud = [
        client.connect(&overlay, a, Role::Nms).await.unwrap(),
        client.connect(&overlay, b, Role::Nms).await.unwrap(),
    ];
    for connection in &at_cloud {
        let response = register(connection).await.unwrap();
        assert_eq!((response.standbys.len(), &*response.standbys[0].name), (1, "nms2.svc.cyphonic.internal"));
    }
    let first = set_up(&at_cloud[0], "b").await;

    cloud.signal("KILL");
    until("it stands in", || status(&copy)["standby"]["stands_in_since"].is_string()).await;
    assert!(metrics(copy.to_str().unwrap()).contains("standby_stands_in 1"));
    let at_standby =
        [standby.connect(&client, &overlay, a).await, standby.connect(&client, &overlay, b).await];
    for (n, connection) in at_standby.iter().enumerate() {
        let response = register(connection).await.unwrap();
        assert_eq!((response.relays.len(), response.standbys.len()), (1, 1), "as the cloud told");
        assert_eq!(response.access.unwrap().rules.len(), n, "the rule holds at b");
    }
    let second = set_up(&at_standby[0], "b").await;
    assert!(second > first);
    let refused = standby.connect(&client, &overlay, stolen).await;
    is_closed_as(&refused, close::NOT_ALLOWED, "revoked").await;

    // Its own end loses nothing either, though the cloud is still away.
    drop(serving);
    let _serving = standby.start().await;
    until("it stands in again", || standby.log().contains("standing in for it")).await;
    let again = [standby.connect(&client, &overlay, a).await, standby.connect(&client, &overlay, b).await];
    for connection in &again {
        register(connection).await.unwrap();
    }
    let third = set_up(&again[0], "b").await;
    assert!(third > second);

    drop(cloud);
    let _cloud = Running::start(&config, overlay.address).await;
    is_closed_as(&again[0], close::UNAVAILABLE, "stands by").await;
    let back = [
        client.connect(&overlay, a, Role::Nms).await.unwrap(),
        client.connect(&overlay, b, Role::Nms).await.unwrap(),
    ];
    for connection in &back {
        register(connection).await.unwrap();
    }
    assert!(set_up(&back[0], "b").await > third, "both ends keep the newer of two tunnels");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_standbys_get_the_register_and_stand_in() {
    let overlay = Overlay::found(unix_now());
    let (config, unlisted) = (&overlay.config_path, std::fs::read_to_string(&overlay.config_path).unwrap());
    let standby = Standby::made(&overlay, true);
    let listed = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, listed.replace("name: nms2", "name: nms3")).unwrap();
    let cloud = Running::start(config, overlay.address).await;
    let (client, member) = (Client::open(), enrol(&overlay, &overlay.token("a", unix_now())).await);
    let mut serving = standby.start().await;
    until("it is refused", || standby.log().contains("not one of `standbys`")).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!standby.log().contains("standing in"), "it has nothing to stand in with");
    let copied = succeeds(&["device", "list", "--all", "--config", standby.config().to_str().unwrap()]);
    assert!(!copied.contains("a.cyphonic.internal"), "{copied}");

    // One that was listed, and is not any more, has a copy and does not serve by it.
    std::fs::write(config, listed).unwrap();
    drop(cloud);
    let cloud = Running::start(config, overlay.address).await;
    let has_copy = || status(&standby.config())["standby"]["has_copy"] == true;
    until("its copy is whole", has_copy).await;
    // What it cannot keep is no silence of the cloud.
    let register = rusqlite::Connection::open(standby.directory.path().join("register.db")).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON devices BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    register.execute_batch(full).unwrap();
    enrol(&overlay, &overlay.token("b", unix_now())).await;
    until("it says why", || standby.log().contains("disk full")).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!standby.log().contains("standing in"), "the cloud is there");
    register.execute_batch("DROP TRIGGER full").unwrap();
    until("it goes on", || status(&standby.config())["standby"]["error"].is_null()).await;
    std::fs::write(config, unlisted).unwrap();
    drop(cloud);
    let cloud = Running::start(config, overlay.address).await;
    until("it is refused", || !has_copy()).await;
    drop(cloud);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(8)).await;
        let refused = standby.connect(&client, &overlay, &member).await;
        is_closed_as(&refused, close::UNAVAILABLE, "stands by").await;
        drop(serving);
        serving = standby.start().await;
    }
}
