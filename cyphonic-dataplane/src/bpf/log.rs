//! What the programs say, as `tracing` events.

use aya_log::EbpfLogger;
use cyphonic_common::DropReason;
use log::{Level, Log, Metadata, Record};

use super::error::BpfError;
use super::object::Object;

/// Reads the programs' ring buffer. While it lives, the buffer's map lives.
pub(super) struct KernelLog {
    logger: EbpfLogger<ToTracing>,
}

impl KernelLog {
    pub(super) fn open(object: &mut Object) -> Result<Self, BpfError> {
        Ok(Self { logger: EbpfLogger::init_with_logger(object.ebpf(), ToTracing)? })
    }

    /// Emits what has arrived since the last call.
    pub(super) fn flush(&mut self) {
        self.logger.flush();
    }
}

impl std::fmt::Debug for KernelLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelLog").finish_non_exhaustive()
    }
}

/// What the programs say of a reason before its number: they have no words.
const REASON: &str = " for reason ";

/// A message with the name of a reason in the place of its number.
fn with_words(message: String) -> String {
    let named = || {
        let (before, after) = message.split_once(REASON)?;
        let end = after.find(|c: char| !c.is_ascii_digit())?;
        let (number, rest) = after.split_at(end);
        let reason = DropReason::ALL.get(number.parse::<usize>().ok()?)?;
        Some(format!("{before}{REASON}{reason}{rest}"))
    };
    named().unwrap_or(message)
}

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = with_words(record.args().to_string());
        match record.level() {
            Level::Error => tracing::error!(target: "cyphonic_ebpf", "{message}"),
            Level::Warn => tracing::warn!(target: "cyphonic_ebpf", "{message}"),
            Level::Info => tracing::info!(target: "cyphonic_ebpf", "{message}"),
            Level::Debug => tracing::debug!(target: "cyphonic_ebpf", "{message}"),
            Level::Trace => tracing::trace!(target: "cyphonic_ebpf", "{message}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_by_its_name() {
        let told = |number: u32| with_words(format!("dropped for reason {number}: from ::1 port 1"));
        let denied = DropReason::Denied;
        assert_eq!(told(denied.index()), format!("dropped for reason {denied}: from ::1 port 1"));
        for other in ["dropped for reason 9999: x", "dropped for reason x", "loaded", "dropped for reason 1"]
        {
            assert_eq!(with_words(other.to_owned()), other);
        }
    }
}
