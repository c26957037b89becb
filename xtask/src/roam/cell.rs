//! One move under traffic, and what it cost.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, thread};

use anyhow::{Context, Result, bail};
use cyphonic_lab::Lab;
use cyphonic_lab::command::{Cancel, check};
use cyphonic_lab::flow::Flow;
use cyphonic_lab::machine::Runs as _;
use cyphonic_lab::measure::{PingReport, PingRun};

use super::place::{CABLE, Place, Roamer, Style};
use crate::overlay::{Device, Route};

/// Between the pings that go on while a device moves.
const INTERVAL: Duration = Duration::from_millis(10);
/// How many.
const PINGS: u32 = 220;
const BEFORE: Duration = Duration::from_millis(600);
/// For how long a device has both networks, where the new one comes first.
const OVERLAP: Duration = Duration::from_millis(100);
/// How long a pair may need to be as a cell needs it, before anything is measured.
const PREPARED: Duration = Duration::from_secs(20);
/// After this long without it the tunnel is set up anew.
const TRY_ANEW: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(15);
/// A transfer on which nothing arrives for so long is lost, whatever TCP may still hope for.
pub(super) const STALLED: Duration = Duration::from_secs(5);
/// The same where times are not judged. TCP waits twice as long each time, so it may sleep long after the
/// tunnel is back.
pub(super) const STALLED_UNTIMED: Duration = Duration::from_secs(30);

/// Who moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Mover {
    /// The one that asked for the tunnel.
    Initiator,
    /// The other.
    Responder,
    /// Both at the same moment.
    Both,
}

impl Mover {
    /// Whether the first device (the initiator) or the second moves.
    fn is(self, index: usize) -> bool {
        match self {
            Self::Initiator => index == 0,
            Self::Responder => index == 1,
            Self::Both => true,
        }
    }
}

impl fmt::Display for Mover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
            Self::Both => "both",
        })
    }
}

/// How the packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Way {
    /// From one to the other.
    Direct,
    /// Through the TRS: nothing passes between the two.
    Relayed,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        })
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) way: Way,
    pub(super) mover: Mover,
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) style: Style,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { way, mover, from, to, style } = self;
        write!(f, "{way:<8} {mover:<10} {from:>4} → {to:<4} {style:<11}")
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// The longest time in which no ping was answered; after a pause, how long the first answer took beyond
    /// a round trip.
    pub(super) gap: Duration,
    /// A round trip before the move.
    pub(super) round_trip: Duration,
    pub(super) lost: u32,
    /// Why the transfer was lost, if it was.
    pub(super) flow_lost: Option<String>,
    /// How packets went at the end.
    pub(super) way_after: String,
}

impl Outcome {
    /// What a gap may be: three round trips and 50 ms.
    pub(super) fn bound(&self) -> Duration {
        self.round_trip * 3 + Duration::from_millis(50)
    }
}

/// The two devices and what they are told.
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    /// The initiator and the responder.
    pub(super) devices: [&'a Device; 2],
    pub(super) roamers: [Roamer<'a>; 2],
    pub(super) addresses: [Ipv6Addr; 2],
    pub(super) cancel: &'a Cancel,
    /// [`STALLED`] or [`STALLED_UNTIMED`].
    pub(super) patience: Duration,
    pub(super) way: Option<Way>,
}

impl Stage<'_> {
    /// Runs a cell.
    pub(super) fn run(&mut self, cell: &Cell) -> Result<Outcome> {
        self.prepare(cell).with_context(|| format!("before the move ({cell})"))?;
        let moving = self.roamers.iter().enumerate().filter(|(index, _)| cell.mover.is(*index));
        moving.map(|(_, roamer)| roamer).try_for_each(|roamer| roamer.approach(cell.to))?;
        thread::sleep(CABLE);
        let what = PingRun { interval: INTERVAL, ..PingRun::new(self.addresses[1], PINGS) };
        let [initiator, responder] = self.devices;
        let flow = self.flow(self.patience)?;
        let cancel = self.cancel;
        let report = thread::scope(|scope| -> Result<PingReport> {
            let pings = scope.spawn(|| initiator.ping(&what, cancel));
            thread::sleep(BEFORE);
            self.move_devices(cell)?;
            pings.join().unwrap_or_else(|_| bail!("ping's thread panicked"))
        })?;
        let stalled = !flow.goes_on();
        let flow_lost = flow.finish().err().or_else(|| stalled.then(|| "it stands still".to_owned()));
        Ok(Outcome {
            gap: report.longest_gap(INTERVAL),
            round_trip: round_trip(&report),
            lost: report.lost(),
            flow_lost,
            way_after: describe(&initiator.route_to(responder, self.cancel)?),
        })
    }

    /// A transfer from the initiator.
    fn flow(&self, patience: Duration) -> Result<Flow> {
        let [mut connect, mut serve] = [self.devices[0].tool()?, self.devices[1].tool()?];
        let flow = Flow::start(connect.arg("flow"), serve.arg("flow"), self.addresses[1].into(), patience);
        flow.context("cannot start a transfer")
    }

    /// Takes all networks from the initiator for so long; how long after it has one again packets pass.
    pub(super) fn away(&mut self, length: Duration) -> Result<Outcome> {
        let cell = Cell {
            way: Way::Direct,
            mover: Mover::Initiator,
            from: Place::Dual,
            to: Place::Dual,
            style: Style::BreakFirst,
        };
        self.pause(
            &cell,
            length,
            |stage| stage.roamers[0].leave_all(),
            |stage| stage.roamers[0].enter(Place::Dual, Style::MakeFirst),
        )
    }

    /// Stops the initiator's agent for so long, as sleep would.
    pub(super) fn asleep(&mut self, length: Duration) -> Result<Outcome> {
        let cell = Cell {
            way: Way::Direct,
            mover: Mover::Initiator,
            from: Place::Dual,
            to: Place::Dual,
            style: Style::BreakFirst,
        };
        let signal = |stage: &mut Self, signal: &str| -> Result<()> {
            let device = stage.devices[0];
            let service = device.service().context("the agent does not run")?;
            service.signal(device.machine(), signal, stage.cancel)
        };
        self.pause(&cell, length, |stage| signal(stage, "STOP"), |stage| signal(stage, "CONT"))
    }

    fn pause(
        &mut self,
        cell: &Cell,
        length: Duration,
        mut begin: impl FnMut(&mut Self) -> Result<()>,
        mut end: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<Outcome> {
        self.prepare(cell)?;
        let [initiator, responder] = self.devices;
        // TCP has waited longer each time: as long again as the pause, at most.
        let patience = length * 2 + self.patience;
        let flow = self.flow(patience)?;
        let clocks = compare_clocks(initiator, self.cancel)?;
        let requests = PINGS + u32::try_from((BEFORE + length).as_millis() / INTERVAL.as_millis())?;
        // The tunnel is given up meanwhile if the pause is long, and pings meet errors.
        let what =
            PingRun { interval: INTERVAL, through_errors: true, ..PingRun::new(self.addresses[1], requests) };
        let cancel = self.cancel;
        let (report, over) = thread::scope(|scope| -> Result<(PingReport, Duration)> {
            let pings = scope.spawn(|| initiator.ping(&what, cancel));
            thread::sleep(BEFORE);
            begin(self)?;
            thread::sleep(length);
            end(self)?;
            let over = now()?;
            Ok((pings.join().unwrap_or_else(|_| bail!("ping's thread panicked"))?, over))
        })?;
        let round_trip = round_trip(&report);
        // Without one, all that was waited for it.
        let answer = report
            .first_answer_after((over + clocks.there).saturating_sub(clocks.here))
            .unwrap_or(INTERVAL * PINGS);
        let goes_on = flow.goes_on();
        let flow_lost = match flow.finish() {
            Err(error) => Some(error),
            Ok(()) => (!goes_on).then(|| "it stands still".to_owned()),
        };
        Ok(Outcome {
            gap: answer.saturating_sub(round_trip),
            round_trip,
            lost: report.lost(),
            flow_lost,
            way_after: describe(&initiator.route_to(responder, self.cancel)?),
        })
    }

    fn move_devices(&mut self, cell: &Cell) -> Result<()> {
        let go = |roamer: &mut Roamer<'_>| -> Result<()> {
            roamer.enter(cell.to, cell.style)?;
            if cell.style == Style::MakeFirst {
                thread::sleep(OVERLAP);
                roamer.leave()?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let all = self.roamers.iter_mut().enumerate().filter(|(index, _)| cell.mover.is(*index));
            let threads: Vec<_> = all.map(|(_, roamer)| scope.spawn(move || go(roamer))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a move's thread panicked")))
        })
    }

    /// Gets both devices to where the cell begins, with a tunnel of its kind.
    fn prepare(&mut self, cell: &Cell) -> Result<()> {
        self.let_pass(cell.way)?;
        for (index, roamer) in self.roamers.iter_mut().enumerate() {
            let start = if cell.mover.is(index) { cell.from } else { Place::Dual };
            if roamer.at() != start {
                roamer.enter(start, Style::BreakFirst)?;
            }
        }
        let [initiator, responder] = self.devices;
        let started = Instant::now();
        let mut anew = Instant::now() + TRY_ANEW;
        loop {
            self.cancel.check()?;
            let few = PingRun { wait: Duration::from_secs(1), ..PingRun::new(self.addresses[1], 20) };
            let route = initiator.route_to(responder, self.cancel)?;
            let other = responder.route_to(initiator, self.cancel)?;
            if is(&route, cell.way) && is(&other, cell.way) && initiator.ping(&few, self.cancel)?.lost() == 0
            {
                return Ok(());
            }
            if started.elapsed() > PREPARED {
                bail!("the two have no {} tunnel, but {}", cell.way, describe(&route));
            }
            if Instant::now() > anew || route == Route::None {
                anew = Instant::now() + TRY_ANEW;
                // One without a tunnel has nothing to reset.
                let _ = initiator.reset_tunnel(responder, self.cancel);
                // What fails now is tried again.
                let _ = initiator.resolve(responder, self.cancel);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Lets packets pass between the two, or not, at the one router between their providers.
    fn let_pass(&mut self, way: Way) -> Result<()> {
        if self.way == Some(way) {
            return Ok(());
        }
        let none = "add table inet roam; delete table inet roam";
        let all = format!(
            "{none}; add table inet roam; \
             add chain inet roam between {{ type filter hook forward priority 0 ; }}; \
             add rule inet roam between iifname \"p-core\" oifname \"q-core\" drop; \
             add rule inet roam between iifname \"q-core\" oifname \"p-core\" drop"
        );
        let rules = if way == Way::Direct { none } else { &all };
        check(self.lab.command("core", "nft")?.arg(rules), LIMIT, self.cancel)?;
        self.way = Some(way);
        let [initiator, responder] = self.devices;
        // Otherwise the tunnel of the way before would have to be found dead first.
        let _ = initiator.reset_tunnel(responder, self.cancel);
        Ok(())
    }
}

fn is(route: &Route, way: Way) -> bool {
    match route {
        Route::Direct { .. } => way == Way::Direct,
        Route::Relay { .. } => way == Way::Relayed,
        Route::None => false,
    }
}

fn describe(route: &Route) -> String {
    match route {
        Route::Direct { .. } => "direct",
        Route::Relay { .. } => "relayed",
        Route::None => "no tunnel",
    }
    .to_owned()
}

/// What a device's clock said at one moment, and this machine's: other machines have their own.
struct Clocks {
    there: Duration,
    here: Duration,
}

fn compare_clocks(device: &Device, cancel: &Cancel) -> Result<Clocks> {
    let before = now()?;
    let said = check(device.machine().program("date".as_ref()).arg("+%s%6N"), LIMIT, cancel)?;
    let here = (before + now()?) / 2;
    let there = Duration::from_micros(said.trim().parse().with_context(|| format!("`date` says {said:?}"))?);
    Ok(Clocks { there, here })
}

fn now() -> Result<Duration> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("this machine's clock is before 1970")
}

/// The median of the first fifty, which left before the move.
fn round_trip(report: &PingReport) -> Duration {
    let before = report.sequence.iter().zip(&report.rtts_ms).filter(|(number, _)| **number <= 50);
    let mut rtts: Vec<f64> = before.map(|(_, rtt)| *rtt).collect();
    rtts.sort_by(f64::total_cmp);
    Duration::from_secs_f64(rtts.get(rtts.len() / 2).copied().unwrap_or_default() / 1e3)
}
