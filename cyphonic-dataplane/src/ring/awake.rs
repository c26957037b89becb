//! Keeping processors awake between packets, for those who need answers soon and have power to spare.
//!
//! A processor without work halts, and to be woken costs it more than everything else that happens to a
//! packet: some 40 µs in a virtual machine, more from a hardware's deep sleep, and again for each thread on
//! the way. The kernel keeps all processors from states that take long to leave for as long as somebody asks
//! for it (Documentation/power/pm_qos_interface.rst). A ring asks while packets come, and for a while after
//! the last one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Where it is asked for. A request is a file that is open, and ends with it.
const REQUESTS: &str = "/dev/cpu_dma_latency";
/// The driver that puts processors into idle states, of those that requests allow
/// (Documentation/admin-guide/pm/cpuidle.rst).
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
/// What stands there where there is none. The kernel then halts processors and asks nobody.
const NO_DRIVER: &str = "none";
/// The longest that leaving a state may take, in µs: none is entered at all.
const AWAKE: i32 = 0;
/// No wish (`PM_QOS_DEFAULT_VALUE`).
const ANY: i32 = -1;

/// A ring's wish that processors stay awake for a while after its packets. See the module.
#[derive(Debug)]
pub struct AwakeRequest {
    request: File,
    window: Duration,
    /// While processors are kept awake: until when, if no packet comes.
    until: Option<Instant>,
}

impl AwakeRequest {
    /// Whether requests change anything on this machine. Where the kernel does not say (a container's /sys),
    /// nothing is known against it.
    ///
    /// # Errors
    /// The kernel has no driver for idle states, as in some virtual machines.
    pub fn would_be_heeded() -> io::Result<()> {
        heeded_with(fs::read_to_string(DRIVER).ok().as_deref())
    }

    /// Opens the kernel's interface. Nothing is asked for until packets come.
    ///
    /// # Errors
    /// The kernel manages no idle states (`CONFIG_CPU_IDLE`), or the process may not open the file, which is
    /// root's.
    pub fn after_packets(window: Duration) -> io::Result<Self> {
        let request = File::options().write(true).open(REQUESTS);
        let request = request
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open {REQUESTS}: {error}")))?;
        Self::with(request, window)
    }

    fn with(request: File, window: Duration) -> io::Result<Self> {
        let mut awake = Self { request, window, until: None };
        awake.ask(ANY)?;
        Ok(awake)
    }

    /// Before a wait, when nothing is left to do. Returns after how long to call again, though nothing may
    /// have come.
    pub(super) fn rest(&mut self, had_packets: bool) -> Option<Duration> {
        if had_packets || self.until.is_some() { self.rest_at(had_packets, Instant::now()) } else { None }
    }

    fn rest_at(&mut self, had_packets: bool, now: Instant) -> Option<Duration> {
        let asleep = self.until.is_none();
        if had_packets {
            self.until = Some(now + self.window);
            if asleep {
                self.try_ask(AWAKE);
            }
        }
        let left = self.until?.saturating_duration_since(now);
        if left.is_zero() {
            self.until = None;
            self.try_ask(ANY);
            return None;
        }
        Some(left)
    }

    fn try_ask(&mut self, latency: i32) {
        if let Err(error) = self.ask(latency) {
            tracing::debug!(%error, "processors are not kept awake");
        }
    }

    fn ask(&mut self, latency: i32) -> io::Result<()> {
        self.request.write_all(&latency.to_ne_bytes())
    }
}

fn heeded_with(driver: Option<&str>) -> io::Result<()> {
    if driver.is_none_or(|driver| driver.trim_end() != NO_DRIVER) {
        return Ok(());
    }
    let why = format!("this kernel halts processors whatever is asked ({DRIVER} is `{NO_DRIVER}`)");
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(50);
    const TICK: Duration = Duration::from_millis(20);

    #[test]
    fn processors_are_awake_from_a_packet_to_a_while_after_the_last_one() {
        let (mut said, request) = io::pipe().unwrap();
        let request = File::from(std::os::fd::OwnedFd::from(request));
        let mut awake = AwakeRequest::with(request, WINDOW).unwrap();
        let start = Instant::now();
        let at = |ticks| start + TICK * ticks;
        assert_eq!(awake.rest_at(false, at(0)), None);
        assert_eq!(awake.rest_at(true, at(1)), Some(WINDOW));
        assert_eq!(awake.rest_at(false, at(2)), Some(WINDOW - TICK));
        assert_eq!(awake.rest_at(true, at(3)), Some(WINDOW));
        assert_eq!(awake.rest_at(false, at(5)), Some(WINDOW - 2 * TICK));
        assert_eq!(awake.rest_at(false, at(6)), None);
        assert_eq!(awake.rest_at(false, at(7)), None);
        assert_eq!(awake.rest_at(true, at(8)), Some(WINDOW));
        drop(awake);
        let mut bytes = Vec::new();
        said.read_to_end(&mut bytes).unwrap();
        let asked: Vec<i32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_ne_bytes(*bytes)).collect();
        assert_eq!(asked, [ANY, AWAKE, ANY, AWAKE], "asked for once each time");
    }

    #[test]
    fn a_kernel_that_would_not_heed_it_is_not_asked() {
        assert_eq!(heeded_with(Some("none\n")).unwrap_err().kind(), io::ErrorKind::Unsupported);
        for driver in [Some("haltpoll\n"), Some("intel_idle\n"), None] {
            heeded_with(driver).unwrap();
        }
    }

    #[test]
    fn the_kernel_follows() {
        // What all requests together come to: reading it is a request of its own, without a wish.
        let all = || {
            let mut file = File::open(REQUESTS).unwrap();
            let mut value = [0; 4];
            file.read_exact(&mut value).unwrap();
            i32::from_ne_bytes(value)
        };
        let mut awake = AwakeRequest::after_packets(WINDOW).unwrap();
        assert_ne!(all(), AWAKE, "something else on this machine keeps processors awake");
        let now = Instant::now();
        awake.rest_at(true, now);
        assert_eq!(all(), AWAKE);
        awake.rest_at(false, now + WINDOW);
        assert_ne!(all(), AWAKE);
        awake.rest_at(true, now + 2 * WINDOW);
        drop(awake);
        assert_ne!(all(), AWAKE, "the wish ends with whoever had it");
    }
}
