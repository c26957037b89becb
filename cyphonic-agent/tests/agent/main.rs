//! The agent's parts as the host sees them: DNS by real clients, the control socket by real connections, the
//! kernel's tables in a network namespace. Needs root, `dig` (bind9-dnsutils), `ip` (iproute2) and
//! `dbus-daemon`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "fails the test")]

mod access;
mod admission;
mod clock;
mod control;
mod daemon;
mod dns;
mod documentation;
mod enrolment;
mod netlink;
mod overlay;
mod programs;
mod relaying;
mod renewal;
mod resolved;
