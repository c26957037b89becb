//! The program, run as a command or as a service, and what it says of itself.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use cyphonic_proto::message::Message;
use cyphonic_proto::token::EnrolmentToken;
use cyphonic_transport::{Clock, DialError, enrol as enrolment};

use crate::common::Device;

pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

pub(crate) fn succeeds(arguments: &[&str]) -> String {
    let output = program(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn fails(arguments: &[&str]) -> String {
    let output = program(arguments);
    assert!(matches!(output.status.code(), Some(1 | 78)), "{arguments:?} did not fail: {}", output.status);
    let errors = String::from_utf8(output.stderr).unwrap();
    // The log of `run` comes first.
    assert!(errors.lines().last().unwrap_or_default().starts_with("cyphonic-cloud: "), "{errors}");
    errors
}

/// `run`, killed at the latest when the test ends.
pub(crate) struct Running(pub Child);

impl Running {
    /// Starts and waits until the port answers.
    pub(crate) async fn start(config: &Path, address: SocketAddr) -> Self {
        // In a session of its own, as services are: without the terminal that the tests may have.
        let mut command = Command::new("setsid");
        command.arg(env!("CARGO_BIN_EXE_cyphonic-cloud")).args(["run", "--config", config.to_str().unwrap()]);
        command.env_remove("RUST_LOG").env("RUNTIME_DIRECTORY", config.parent().unwrap());
        command.stderr(std::fs::File::create(config.with_extension("log")).unwrap());
        Self::start_by(command, address).await
    }

    pub(crate) async fn start_by(mut command: Command, address: SocketAddr) -> Self {
        let mut running = Self(command.spawn().unwrap());
        let deadline = Instant::now() + SOON;
        // A pinned root that nothing matches: as soon as the service is up, its certificate is seen and
        // refused, or it says that nobody enrols there.
        loop {
            match enrolment::connect(&[address], [0; 32], &Clock::new(0)).await {
                Err(DialError::Refused(_)) => return running,
                Err(DialError::Handshake { error, .. }) if error.to_string().contains("aborted by peer") => {
                    return running;
                }
                Err(error) => assert!(Instant::now() < deadline, "not up: {error}"),
                Ok(_) => panic!("a root that nothing matches was matched"),
            }
            let ended = running.0.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}");
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
}

/// What `device list` says of the first device's presence, by the file of a cloud started here.
pub(crate) fn presence(config: &str) -> serde_json::Value {
    let listed = told_by_files(&["device", "list", "--json"], config);
    serde_json::from_str::<serde_json::Value>(&listed).unwrap()["devices"][0].clone()
}

/// What `metrics` says of a cloud started here.
pub(crate) fn metrics(config: &str) -> String {
    told_by_files(&["metrics"], config)
}

/// What a command says that reads the files of a cloud started here.
pub(crate) fn told_by_files(command: &[&str], config: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cyphonic-cloud"))
        .args(command)
        .args(["--config", config])
        .env("CYPHONIC_CLOUD_RUNTIME", Path::new(config).parent().unwrap())
        // As systemd's, of a unit that runs the command.
        .env("RUNTIME_DIRECTORY", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) async fn until_online_is(online: bool, config: &str) -> serde_json::Value {
    let deadline = Instant::now() + SOON;
    loop {
        let device = presence(config);
        if device["online"] == online {
            return device;
        }
        assert!(Instant::now() < deadline, "{device:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(crate) async fn try_enrol(
    address: SocketAddr,
    token: &EnrolmentToken,
    device: &Device,
) -> Result<Message, String> {
    let connection = enrolment::connect(&[address], *token.root_sha256(), &Clock::new(0))
        .await
        .map_err(|error| error.to_string())?;
    connection.open_exchange(&device.enrol_request(token)).await.map_err(|error| error.to_string())
}
