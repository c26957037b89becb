//! Asking the system's own tools what the network does: ping, iperf3, dig.
//!
//! Each function runs one measurement in a namespace and parses what the tool printed; the parsers are apart, and
//! tested on what the tools really print.

mod dig;
mod iperf;
mod ping;

pub use self::dig::{DnsAnswer, DnsQuery, dig};
pub use self::iperf::{IperfRun, IperfServer, Transfer, Transport};
pub use self::ping::{PingReport, PingRun, Summary, ping};
