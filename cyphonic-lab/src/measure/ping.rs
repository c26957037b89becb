//! Round trips, by iputils ping.

use std::net::IpAddr;
use std::time::Duration;

use crate::LabError;
use crate::command::{Cancel, run};
use crate::machine::Runs;

/// What to ping.
#[derive(Debug, Clone, PartialEq)]
pub struct PingRun {
    /// Name or address.
    pub target: String,
    /// How many requests.
    pub count: u32,
    /// Time between them; below 2 ms ping needs root.
    pub interval: Duration,
    /// How long to wait for the last answers.
    pub wait: Duration,
    /// Whether to go on after an ICMP error, as of a host that cannot be reached for a while. ping then
    /// waits for the last answers no longer than two round trips.
    pub through_errors: bool,
}

impl PingRun {
    /// `count` requests, 10 ms apart.
    pub fn new(target: impl ToString, count: u32) -> Self {
        Self {
            target: target.to_string(),
            count,
            interval: Duration::from_millis(10),
            wait: Duration::from_secs(2),
            through_errors: false,
        }
    }

    fn limit(&self) -> Duration {
        // Without a deadline ping waits for last answers as long as two of the longest round trips, which may
        // each be as long as the run.
        let longest = if self.through_errors { 3 } else { 1 };
        // A name is resolved first, which may set a tunnel up.
        self.interval * self.count * longest + self.wait + Duration::from_secs(15)
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub struct PingReport {
    /// The address that was pinged.
    pub address: Option<IpAddr>,
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub received: u32,
    /// ICMP errors that came back, as of a host that is not there.
    pub errors: u32,
    /// Sequence numbers (from 1) of the answers, in order of arrival.
    pub sequence: Vec<u32>,
    /// Round trips in milliseconds, in order of arrival; ping rounds each to three digits.
    pub rtts_ms: Vec<f64>,
    /// When their requests were sent, since 1970, in order of arrival. While nothing answers, ping sends
    /// more rarely than it was asked to.
    pub sent_at: Vec<Duration>,
    /// ping's own summary, if anything came back.
    pub summary: Option<Summary>,
}

/// The line `rtt min/avg/max/mdev`, in milliseconds, to the microsecond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The shortest.
    pub min_ms: f64,
    /// Their mean.
    pub avg_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Their standard deviation.
    pub mdev_ms: f64,
}

impl Summary {
    /// What ping would say of some round trips, milliseconds; nothing without any.
    pub fn of(rtts_ms: &[f64]) -> Option<Self> {
        let (first, count) = (*rtts_ms.first()?, rtts_ms.len() as f64);
        let avg_ms = rtts_ms.iter().sum::<f64>() / count;
        let variance = rtts_ms.iter().map(|rtt| (rtt - avg_ms).powi(2)).sum::<f64>() / count;
        Some(Self {
            min_ms: rtts_ms.iter().copied().fold(first, f64::min),
            avg_ms,
            max_ms: rtts_ms.iter().copied().fold(first, f64::max),
            mdev_ms: variance.sqrt(),
        })
    }
}

impl PingReport {
    /// The report of the first `count` requests: ping sends more than it was asked to while answers are
    /// missing, and fewer where an ICMP error came, which ends it. What it did not send then is lost,
    /// too.
    fn of_first(mut self, count: u32) -> Self {
        let times = self.rtts_ms.into_iter().zip(self.sent_at);
        let answers = self.sequence.into_iter().zip(times).filter(|(number, _)| *number <= count);
        let times: Vec<_>;
        (self.sequence, times) = answers.unzip();
        (self.rtts_ms, self.sent_at) = times.into_iter().unzip();
        self.sent = if self.errors > 0 { count } else { self.sent.min(count) };
        self.received = u32::try_from(self.sequence.len()).unwrap_or(u32::MAX);
        self
    }

    /// Requests without answer.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }

    /// The requests without answer, by number from 1.
    pub fn missing(&self) -> Vec<u32> {
        (1..=self.sent).filter(|number| !self.sequence.contains(number)).collect()
    }

    /// The longest time in which no request was answered; `interval` is that between requests. When those
    /// were sent that have no answer before or after them nobody knows: each counts as an interval, the
    /// least that it can have been.
    pub fn longest_gap(&self, interval: Duration) -> Duration {
        let mut answered: Vec<_> = self.sequence.iter().zip(&self.sent_at).collect();
        answered.sort_unstable();
        let gap = |pair: &[(&u32, &Duration)]| match pair {
            [(before, left), (after, came)] if *after - *before > 1 => {
                Some(came.saturating_sub(**left).saturating_sub(interval))
            }
            _ => None,
        };
        let between = answered.windows(2).filter_map(gap).max().unwrap_or_default();
        let last = answered.last().map_or(0, |(number, _)| **number);
        let at_end = self.sent.saturating_sub(last);
        between.max(interval * at_end.max(self.lost_at_start()))
    }

    /// How long after `since`, a time since 1970 on the clock of who pings, the first answer came.
    pub fn first_answer_after(&self, since: Duration) -> Option<Duration> {
        self.arrivals().filter(|came| *came >= since).min().map(|came| came - since)
    }

    /// The longest time between two answers, whatever was lost meanwhile or only late.
    pub fn longest_silence(&self) -> Duration {
        let mut came: Vec<Duration> = self.arrivals().collect();
        came.sort_unstable();
        came.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }

    /// The same where a later ping was answered at `next`, since 1970: if this run's last requests were lost,
    /// it was silent until then.
    pub fn longest_silence_until(&self, next: Duration) -> Duration {
        let lost_at_end = self.sequence.iter().max().is_none_or(|last| *last < self.sent);
        let last = self.arrivals().max().filter(|_| lost_at_end);
        self.longest_silence().max(last.map_or(Duration::ZERO, |last| next.saturating_sub(last)))
    }

    /// When answers came, since 1970.
    fn arrivals(&self) -> impl Iterator<Item = Duration> {
        self.sent_at.iter().zip(&self.rtts_ms).map(|(sent, rtt)| *sent + from_ms(*rtt))
    }

    /// How many requests from the first on went unanswered.
    pub fn lost_at_start(&self) -> u32 {
        self.sequence.iter().min().map_or(self.sent, |first| first.saturating_sub(1))
    }
}

/// Pings from a node. Losses are in the report, not an error.
///
/// # Errors
/// ping cannot run, cannot resolve the name, or prints what nobody understands.
pub fn ping(from: &impl Runs, what: &PingRun, cancel: &Cancel) -> Result<PingReport, LabError> {
    let mut command = from.program("ping".as_ref());
    command.args([
        "-n",
        "-D",
        "-c",
        &what.count.to_string(),
        "-i",
        &format!("{:.4}", what.interval.as_secs_f64()),
    ]);
    // Not `-W`: once anything was answered, ping waits for the rest for two round trips only, and calls an
    // answer lost that a busy machine delayed. With a deadline it goes on until it has as many answers as
    // it wants. An error ends it, too.
    let deadline = (what.interval * what.count + what.wait).as_secs() + 1;
    if !what.through_errors {
        command.args(["-w", &deadline.to_string()]);
    }
    command.arg(&what.target);
    let output = run(&mut command, what.limit(), cancel)?;
    let text = format!("{}{}", output.stdout, output.stderr);
    parse(&output.stdout).map(|report| report.of_first(what.count)).ok_or(LabError::Output {
        program: "ping",
        problem: format!("no statistics for {}", what.target),
        output: text,
    })
}

fn parse(text: &str) -> Option<PingReport> {
    let mut report = PingReport {
        address: None,
        sent: 0,
        received: 0,
        errors: 0,
        sequence: Vec::new(),
        rtts_ms: Vec::new(),
        sent_at: Vec::new(),
        summary: None,
    };
    let mut complete = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("PING ") {
            report.address = address(rest);
        } else if let (Some(sequence), Some(time)) = (field(line, "icmp_seq="), field(line, "time=")) {
            report.sequence.push(sequence.parse().ok()?);
            let rtt: f64 = time.parse().ok()?;
            report.rtts_ms.push(rtt);
            report.sent_at.push(came_at(line)?.saturating_sub(from_ms(rtt)));
        } else if let Some((sent, rest)) = line.split_once(" packets transmitted, ") {
            report.sent = sent.parse().ok()?;
            report.received = rest.split_once(" received")?.0.parse().ok()?;
            let errors = rest.split_once(" errors").and_then(|(before, _)| before.split_once('+'));
            report.errors = errors.and_then(|(_, errors)| errors.parse().ok()).unwrap_or_default();
            complete = true;
        } else if let Some(rest) = line.strip_prefix("rtt min/avg/max/mdev = ") {
            report.summary = summary(rest);
        }
    }
    complete.then_some(report)
}

fn from_ms(rtt: f64) -> Duration {
    Duration::try_from_secs_f64(rtt / 1000.0).unwrap_or_default()
}

/// `[1764297283.123456] 64 bytes from …`: when the answer came, since 1970.
fn came_at(line: &str) -> Option<Duration> {
    let (seconds, micros) = line.strip_prefix('[')?.split_once(']')?.0.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

/// `0.312/0.706/1.100/0.394 ms`, to which a comma and more may follow.
fn summary(text: &str) -> Option<Summary> {
    let numbers =
        text.split(' ').next()?.split('/').map(str::parse::<f64>).collect::<Result<Vec<_>, _>>().ok()?;
    let [min_ms, avg_ms, max_ms, mdev_ms] = numbers[..] else { return None };
    Some(Summary { min_ms, avg_ms, max_ms, mdev_ms })
}

/// `b.lab (192.0.2.1) 56(84) bytes` for IPv4, `b.lab(b.lab (fd00::1)) 56 data bytes` or `fd00::1(fd00::1) 56`
/// for IPv6.
fn address(header: &str) -> Option<IpAddr> {
    let mut candidates = header.split(['(', ')', ' ']).filter(|word| !word.is_empty());
    candidates.find_map(|word| word.parse().ok())
}

fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV6: &str = "PING c.home(c.home.cyphonic.internal (fd12:3456::7)) 56 data bytes
[1764297283.000312] 64 bytes from fd12:3456::7: icmp_seq=2 ttl=64 time=0.312 ms
[1764297283.011100] 64 bytes from fd12:3456::7: icmp_seq=3 ttl=64 time=1.10 ms

--- c.home ping statistics ---
3 packets transmitted, 2 received, 33.3333% packet loss, time 20ms
rtt min/avg/max/mdev = 0.312/0.706/1.100/0.394 ms
";

    #[test]
    fn answers_losses_and_deviation_are_read() {
        let report = parse(IPV6).unwrap();
        assert_eq!(report.address, Some("fd12:3456::7".parse().unwrap()));
        assert_eq!((report.sent, report.received, report.lost(), report.lost_at_start()), (3, 2, 1, 1));
        assert_eq!(report.rtts_ms, [0.312, 1.10]);
        let sent =
            [0, 10_000].map(|micros| Duration::from_secs(1_764_297_283) + Duration::from_micros(micros));
        assert_eq!(report.sent_at, sent);
        let summary = Summary { min_ms: 0.312, avg_ms: 0.706, max_ms: 1.1, mdev_ms: 0.394 };
        assert_eq!(report.summary, Some(summary));
        let own = Summary::of(&report.rtts_ms).unwrap();
        assert_eq!((own.min_ms, own.max_ms), (0.312, 1.1));
        assert!((own.avg_ms - 0.706).abs() < 1e-9 && (own.mdev_ms - 0.394).abs() < 1e-9, "{own:?}");
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_gap_is_as_long_as_it_lasted_however_few_pings_were_sent_meanwhile() {
        let ms = Duration::from_millis;
        let report = |answers: &[(u32, u64)], sent| PingReport {
            sent,
            sequence: answers.iter().map(|(number, _)| *number).collect(),
            sent_at: answers.iter().map(|(_, at)| ms(*at)).collect(),
            ..parse(IPV6).unwrap()
        };
        let gap = |answers: &[(u32, u64)], sent| report(answers, sent).longest_gap(ms(10));
        assert_eq!(gap(&[(1, 0), (2, 10), (3, 24)], 3), ms(0), "late is not lost");
        assert_eq!(gap(&[(1, 0), (5, 76), (4, 60), (7, 96)], 7), ms(50), "three were lost, 16 ms apart");
        assert_eq!(gap(&[(3, 10), (4, 20)], 4), ms(20), "two before");
        assert_eq!(gap(&[(1, 10), (2, 20)], 5), ms(30), "three after");
        assert_eq!(gap(&[], 3), ms(30));
    }

    #[test]
    fn the_first_answer_after_a_moment_may_be_to_an_earlier_request() {
        let ms = Duration::from_millis;
        let mut report = parse(IPV6).unwrap();
        (report.sent_at, report.rtts_ms) = (vec![ms(100), ms(110), ms(900)], vec![20.0, 495.0, 20.0]);
        assert_eq!(report.first_answer_after(ms(600)), Some(ms(5)));
        assert_eq!(report.first_answer_after(ms(606)), Some(ms(314)));
        assert_eq!(report.first_answer_after(ms(921)), None);
        assert_eq!(report.longest_silence(), ms(485), "from 120 to 605 ms");
        assert_eq!(report.longest_silence_until(ms(9_920)), ms(485), "nothing was asked any more");
        report.sent = 4;
        assert_eq!(report.longest_silence_until(ms(9_920)), ms(9_000), "the fourth was lost");
        assert_eq!(report.longest_silence_until(ms(1_000)), ms(485));
    }

    #[test]
    fn what_ping_sends_beyond_what_it_was_asked_is_not_counted() {
        let report = parse(IPV6).unwrap().of_first(2);
        assert_eq!((report.sent, report.received, report.lost()), (2, 1, 1));
        assert_eq!(report.missing(), [1]);
        assert_eq!((report.sequence, report.rtts_ms), (vec![2], vec![0.312]));
    }

    #[test]
    fn what_ping_does_not_send_after_an_error_is_lost() {
        let text = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.
From 10.0.0.1 icmp_seq=1 Destination Host Unreachable

--- 10.0.0.2 ping statistics ---
7 packets transmitted, 0 received, +1 errors, 100% packet loss, time 3063ms
pipe 4
";
        let report = parse(text).unwrap().of_first(300);
        assert_eq!((report.sent, report.lost(), report.errors), (300, 300, 1));
    }

    #[test]
    fn silence_is_a_report_and_a_failure_is_none() {
        let text = "PING 192.0.2.9 (192.0.2.9) 56(84) bytes of data.

--- 192.0.2.9 ping statistics ---
5 packets transmitted, 0 received, 100% packet loss, time 40ms
";
        let report = parse(text).unwrap();
        assert_eq!((report.lost(), report.lost_at_start(), report.summary), (5, 5, None));
        assert_eq!(report.address, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(parse("ping: nowhere: Name or service not known"), None);
    }
}
