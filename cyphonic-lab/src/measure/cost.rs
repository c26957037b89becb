//! What work costs the machine: processor time and memory.

use std::fs;
use std::time::Duration;

/// The kernel's unit in `/proc/stat`, the same on every architecture (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
/// Columns of `/proc/stat` in which processors work: user, nice, system, irq, softirq.
const BUSY: [usize; 5] = [0, 1, 2, 5, 6];

/// Time that all processors together have been busy since the machine started; none if the kernel does not
/// say.
pub fn busy_time() -> Option<Duration> {
    parse_busy(&fs::read_to_string("/proc/stat").ok()?)
}

/// Bytes of memory that a process holds (its resident set); none if it has ended.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    parse_resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_busy(stat: &str) -> Option<Duration> {
    let columns: Vec<u32> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))?
        .split_whitespace()
        .flat_map(str::parse)
        .collect();
    let ticks: Option<u32> = BUSY.iter().map(|column| columns.get(*column).copied()).sum();
    Some(TICK * ticks?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_neither_idle_nor_waiting_for_disks_nor_stolen() {
        let stat = "cpu  100 10 20 5000 300 4 6 70 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_busy(stat), Some(TICK * 140));
        assert!(busy_time().unwrap() > Duration::ZERO);
    }

    #[test]
    fn the_resident_set_is_in_bytes() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
    }
}
