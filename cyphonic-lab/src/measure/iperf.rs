//! Throughput, loss and jitter, by iperf3.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::command::{Cancel, run};
use crate::machine::Runs;
use crate::process::{Daemon, wait_until};
use crate::{Lab, LabError};

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As fast as TCP goes, over so many connections.
    Tcp {
        /// Parallel connections.
        streams: u32,
    },
    /// Datagrams at a rate.
    Udp {
        /// Bits per second of payload; 0 for no limit.
        bits_per_second: u64,
        /// Payload of one datagram.
        bytes: u32,
    },
}

/// A transfer to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IperfRun {
    /// Where the server is: name or address.
    pub target: String,
    /// What to send.
    pub transport: Transport,
    /// For how long.
    pub time: Duration,
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// Bits per second that reached the receiver.
    pub bits_per_second: f64,
    /// Jitter at the receiver, for UDP.
    pub jitter_ms: Option<f64>,
    /// Datagrams lost, for UDP.
    pub lost_percent: Option<f64>,
    /// TCP segments sent again.
    pub retransmits: Option<u64>,
}

/// An iperf3 server on a node of the lab; it ends when dropped.
#[derive(Debug)]
pub struct IperfServer {
    daemon: Daemon,
}

impl IperfServer {
    /// Starts a server and returns once it listens.
    ///
    /// # Errors
    /// iperf3 cannot run there.
    pub fn start(lab: &Lab, node: &str) -> Result<Self, LabError> {
        let mut daemon =
            lab.spawn(node, "iperf3-server", lab.command(node, "iperf3")?.args(["-s", "--forceflush"]))?;
        let ready = wait_until(Duration::from_secs(5), || {
            daemon.exit_status().is_some() || daemon.log().contains("Server listening")
        });
        if ready && daemon.exit_status().is_none() {
            return Ok(Self { daemon });
        }
        Err(LabError::Output {
            program: "iperf3",
            problem: "the server does not listen".into(),
            output: daemon.log(),
        })
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

impl IperfRun {
    /// Runs it from a node.
    ///
    /// # Errors
    /// iperf3 cannot run, cannot reach its server, or prints what nobody understands.
    pub fn run(&self, from: &impl Runs, cancel: &Cancel) -> Result<Transfer, LabError> {
        let mut command = from.program("iperf3".as_ref());
        command.args(["--json", "--connect-timeout", "5000", "-c", &self.target]);
        command.args(["-t", &self.time.as_secs().max(1).to_string()]);
        match self.transport {
            Transport::Tcp { streams } => command.args(["-P", &streams.to_string()]),
            Transport::Udp { bits_per_second, bytes } => {
                command.args(["-u", "-b", &bits_per_second.to_string(), "-l", &bytes.to_string()])
            }
        };
        if let Ok(address) = self.target.parse::<IpAddr>() {
            command.arg(if address.is_ipv4() { "-4" } else { "-6" });
        }
        let output = run(&mut command, self.time + Duration::from_secs(20), cancel)?;
        parse(&output.stdout).map_err(|problem| LabError::Output {
            program: "iperf3",
            problem,
            output: format!("{}{}", tail(&output.stdout), output.stderr),
        })
    }
}

fn parse(text: &str) -> Result<Transfer, String> {
    let report: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        return Err(error.to_owned());
    }
    let end = report.get("end").ok_or("it has no `end`")?;
    let number = |section: &str, key: &str| end.get(section)?.get(key)?.as_f64();
    let udp = end.pointer("/sum/jitter_ms").is_some();
    if udp {
        return udp_transfer(&number);
    }
    let bits_per_second = number("sum_received", "bits_per_second").ok_or("it has no received rate")?;
    let retransmits = end.pointer("/sum_sent/retransmits").and_then(Value::as_u64);
    Ok(Transfer { bits_per_second, jitter_ms: None, lost_percent: None, retransmits })
}

/// `sum` counts what was sent; the receiver's share of it follows from its losses, unless (newer versions) it
/// is told.
fn udp_transfer(number: &impl Fn(&str, &str) -> Option<f64>) -> Result<Transfer, String> {
    let lost = number("sum", "lost_percent").ok_or("it has no losses")?;
    let sent = number("sum", "bits_per_second").ok_or("it has no rate")?;
    let received = number("sum_received", "bits_per_second").filter(|rate| *rate > 0.0);
    Ok(Transfer {
        bits_per_second: received.unwrap_or(sent * (1.0 - lost / 100.0)),
        jitter_ms: number("sum", "jitter_ms"),
        lost_percent: Some(lost),
        retransmits: None,
    })
}

fn tail(text: &str) -> String {
    let start = text.char_indices().rev().nth(1999).map_or(0, |(index, _)| index);
    text.get(start..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_and_udp_reports_are_read() {
        let tcp = r#"{"end":{"sum_sent":{"bits_per_second":9.9e8,"retransmits":3},"sum_received":{"bits_per_second":9.5e8}}}"#;
        let tcp = parse(tcp).unwrap();
        assert!((tcp.bits_per_second - 9.5e8).abs() < 1.0);
        assert_eq!((tcp.retransmits, tcp.jitter_ms), (Some(3), None));

        let udp = r#"{"end":{"sum":{"bits_per_second":3.0e7,"jitter_ms":0.02,"lost_percent":10.0}}}"#;
        let udp = parse(udp).unwrap();
        assert!((udp.bits_per_second - 2.7e7).abs() < 1.0);
        assert_eq!((udp.jitter_ms, udp.lost_percent), (Some(0.02), Some(10.0)));
    }

    #[test]
    fn what_iperf3_says_of_a_failure_is_passed_on() {
        assert_eq!(parse(r#"{"error":"unable to connect"}"#), Err("unable to connect".to_owned()));
        assert!(parse("").unwrap_err().contains("no JSON"));
    }
}
