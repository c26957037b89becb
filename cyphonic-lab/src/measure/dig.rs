//! The time from a DNS query to its answer, by dig: only the exchange counts, not dig's own start.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::LabError;
use crate::command::{Cancel, run};
use crate::machine::Runs;

/// A query to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuery {
    /// The server.
    pub server: SocketAddr,
    /// The name.
    pub name: String,
    /// The type, as in `AAAA`.
    pub kind: &'static str,
    /// How long to wait for the answer.
    pub wait: Duration,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsAnswer {
    /// Response code, as in `NOERROR`.
    pub status: String,
    /// Addresses in the answer.
    pub addresses: Vec<IpAddr>,
    /// Extended DNS Error (RFC 8914), if there is one, as dig words it.
    pub extended_error: Option<String>,
    /// From query to answer.
    pub time: Duration,
}

/// Sends one query, once, from a node.
///
/// # Errors
/// dig cannot run or got no answer.
pub fn dig(from: &impl Runs, query: &DnsQuery, cancel: &Cancel) -> Result<DnsAnswer, LabError> {
    let mut command = from.program("dig".as_ref());
    let seconds = query.wait.as_secs().max(1);
    command.args(["-u", &format!("@{}", query.server.ip()), "-p", &query.server.port().to_string()]);
    command.args(["+tries=1", &format!("+time={seconds}"), "+nocookie"]);
    command.args(["-q", &query.name, "-t", query.kind]);
    let output = run(&mut command, Duration::from_secs(seconds + 5), cancel)?;
    parse(&output.stdout).ok_or_else(|| LabError::Output {
        program: "dig",
        problem: format!("no answer to {} {}", query.name, query.kind),
        output: format!("{}{}", output.stdout, output.stderr),
    })
}

fn parse(text: &str) -> Option<DnsAnswer> {
    let mut answer = DnsAnswer {
        status: text.split_once("status: ")?.1.split_once(',')?.0.to_owned(),
        addresses: Vec::new(),
        extended_error: None,
        time: Duration::ZERO,
    };
    let mut timed = false;
    for line in text.lines() {
        if let Some(error) = line.strip_prefix("; EDE: ") {
            answer.extended_error = Some(error.to_owned());
        } else if let Some(time) = line.strip_prefix(";; Query time: ") {
            answer.time = Duration::from_micros(time.strip_suffix(" usec")?.parse().ok()?);
            timed = true;
        } else if !line.starts_with(';') {
            answer
                .addresses
                .extend(line.split_whitespace().last().and_then(|word| word.parse::<IpAddr>().ok()));
        }
    }
    timed.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_time_in_microseconds() {
        let text = "
; <<>> DiG 9.18.33 <<>> -u @127.0.0.53 -q b.lab -t AAAA
;; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 4711
;; QUESTION SECTION:
;b.lab.cyphonic.internal.\tIN\tAAAA

;; ANSWER SECTION:
b.lab.cyphonic.internal. 30\tIN\tAAAA\tfd12::7

;; Query time: 8123 usec
;; SERVER: 127.0.0.53#53(127.0.0.53) (UDP)
";
        let answer = parse(text).unwrap();
        assert_eq!(answer.status, "NOERROR");
        assert_eq!(answer.addresses, ["fd12::7".parse::<IpAddr>().unwrap()]);
        assert_eq!(answer.time, Duration::from_micros(8123));
    }

    #[test]
    fn a_failure_keeps_its_reason_and_silence_is_none() {
        let text = ";; ->>HEADER<<- opcode: QUERY, status: SERVFAIL, id: 1
; EDE: 22 (No Reachable Authority): (peer is offline)
;; Query time: 99 usec
";
        let answer = parse(text).unwrap();
        assert_eq!(answer.extended_error.as_deref(), Some("22 (No Reachable Authority): (peer is offline)"));
        assert_eq!(parse(";; communications error to 127.0.0.53#53: timed out"), None);
    }
}
