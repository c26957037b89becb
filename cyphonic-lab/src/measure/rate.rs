//! The highest rate of datagrams that gets through, found by trying rates.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::command::{Cancel, check};
use crate::datagrams::Count;
use crate::process::wait_until;
use crate::{Lab, LabError};

/// A rate holds if fewer than this share of its datagrams are lost.
const TOLERATED: f64 = 0.005;
/// Rates nearer than this are not told apart.
const RESOLUTION: f64 = 1.06;
/// A sender that reaches less than this share of its rate is at its own limit.
const REACHED: f64 = 0.93;
/// Where no rate has held so far, so many more are tried: a figure is worth the wait.
const EXTRA: u32 = 4;
/// The receiver is done when nothing has come for so long.
const IDLE: Duration = Duration::from_millis(250);
/// For the receiver to see a first datagram.
const LIMIT: Duration = Duration::from_secs(5);

/// What to find the highest rate of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateSearch<'a> {
    /// The program `cyphonic-datagrams`.
    pub program: &'a Path,
    /// The nodes that send and receive.
    pub nodes: (&'a str, &'a str),
    /// Where to, as the sender sees it.
    pub to: SocketAddr,
    /// Payload of a datagram.
    pub bytes: usize,
    /// How long each rate is tried.
    pub time: Duration,
    /// Where to begin, in datagrams per second.
    pub first: f64,
    /// How many rates are tried at most.
    pub trials: u32,
}

/// What came of one rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trial {
    /// Datagrams per second that were sent.
    sent: f64,
    /// Of these, the share that was lost.
    lost: f64,
}

impl RateSearch<'_> {
    /// Datagrams per second that arrive when nearly all do; none if no rate did.
    ///
    /// # Errors
    /// The sender or the receiver cannot run.
    pub fn run(&self, lab: &Lab, cancel: &Cancel) -> Result<Option<f64>, LabError> {
        search(self.first, self.trials, |rate| self.try_rate(lab, rate, cancel))
    }

    fn try_rate(&self, lab: &Lab, rate: f64, cancel: &Cancel) -> Result<Trial, LabError> {
        let (from, to) = self.nodes;
        let run = format!("{}", rand::random::<u64>());
        let mut receiver = lab.command(to, self.program)?;
        receiver.args(["receive", &self.to.to_string(), &run, &IDLE.as_millis().to_string()]);
        let mut receiver = lab.spawn(to, "datagrams", receiver.arg(LIMIT.as_millis().to_string()))?;
        if !wait_until(LIMIT, || receiver.exit_status().is_some() || receiver.log().contains("listening")) {
            return Err(receiver.not_ready("does not listen".to_owned()));
        }
        let mut sender = lab.command(from, self.program)?;
        sender.args(["send", &self.to.to_string(), &run, &self.bytes.to_string(), &rate.to_string()]);
        sender.arg(self.time.as_millis().to_string());
        let sent = count(&check(&mut sender, self.time + LIMIT, cancel)?)?;
        wait_until(LIMIT * 2, || receiver.exit_status().is_some());
        let received = count(&receiver.log())?;
        let lost = sent.packets.saturating_sub(received.packets) as f64 / sent.packets.max(1) as f64;
        Ok(Trial { sent: sent.packets as f64 / sent.seconds.max(0.001), lost })
    }
}

fn count(text: &str) -> Result<Count, LabError> {
    let counted = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    counted.ok_or_else(|| LabError::Output {
        program: "cyphonic-datagrams",
        problem: "it has not counted".to_owned(),
        output: text.to_owned(),
    })
}

fn search<E>(
    first: f64,
    trials: u32,
    mut try_rate: impl FnMut(f64) -> Result<Trial, E>,
) -> Result<Option<f64>, E> {
    let (mut held, mut failed) = (None::<f64>, None::<f64>);
    let mut rate = first;
    for trial in 0..trials + EXTRA {
        if trial >= trials && held.is_some() {
            break;
        }
        let Trial { sent, lost } = try_rate(rate)?;
        let arrived = sent * (1.0 - lost);
        let holds = lost < TOLERATED && sent > 0.0;
        if holds {
            held = Some(held.map_or(arrived, |held| held.max(arrived)));
        } else {
            failed = Some(failed.map_or(rate, |failed| failed.min(rate)));
        }
        if holds && sent < rate * REACHED {
            break;
        }
        rate = match (held, failed) {
            (Some(held), Some(failed)) if failed / held < RESOLUTION => break,
            // A rate that failed once may hold another time: then it is the next to beat.
            (Some(held), Some(failed)) => (held * failed).sqrt(),
            (Some(_), None) => rate * 1.7,
            // What arrived under too much is near what can arrive, or (if the overload itself costs) below
            // it.
            (None, _) => arrived.clamp(rate * 0.3, rate * 0.9),
        };
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(capacity: f64, sender: f64) -> impl FnMut(f64) -> Result<Trial, ()> {
        move |rate| {
            let sent = rate.min(sender);
            Ok(Trial { sent, lost: (1.0 - capacity / sent).max(0.0) })
        }
    }

    #[test]
    fn the_capacity_is_found_from_below_and_from_above() {
        for (first, capacity) in [(10_000.0, 47_000.0), (60_000.0, 5_000.0), (60_000.0, 130_000.0)] {
            let found = search(first, 10, network(capacity, 1e6)).unwrap().unwrap();
            assert!(found <= capacity * 1.01 && found > capacity * 0.9, "{found} of {capacity}");
        }
    }

    #[test]
    fn a_sender_at_its_limit_ends_the_search() {
        let mut tried = 0;
        let mut network = network(1e9, 100_000.0);
        let found = search(60_000.0, 10, |rate| {
            tried += 1;
            network(rate)
        });
        assert!((found.unwrap().unwrap() - 100_000.0).abs() < 1.0);
        assert!(tried <= 3, "{tried}");
    }

    #[test]
    fn where_nothing_arrives_nothing_is_found() {
        assert_eq!(search(1e5, 6, |rate| Ok::<_, ()>(Trial { sent: rate, lost: 1.0 })), Ok(None));
    }
}
