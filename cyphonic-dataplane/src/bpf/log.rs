//! What the programs say, as `tracing` events.

use aya_log::EbpfLogger;
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

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = record.args();
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
