//! Asking what the network does: ping, iperf3, dig, datagrams at a rate; and what that costs.
//!
//! Each function runs one measurement in a namespace and parses what the tool printed; the parsers are apart,
//! and tested on what the tools really print.

mod cost;
mod dig;
mod iperf;
mod ping;
mod rate;

pub use self::cost::{busy_time, resident_bytes};
pub use self::dig::{DnsAnswer, DnsQuery, dig};
pub use self::iperf::{IperfRun, IperfServer, Transfer, Transport};
pub use self::ping::{PingReport, PingRun, Summary, ping};
pub use self::rate::RateSearch;
