//! What the lab's routers do to packets beside forwarding them: NATs and firewalls.
//!
//! - [`rules`]: nftables rulesets, for everything that the kernel can do by itself: the NAT kinds of RFC
//!   3489, one-to-one translation and firewalls.
//! - [`table`]: a NAT with any mapping, filtering and life of mappings of RFC 4787, as a machine without
//!   sockets or clock; [`translate`] applies it to packets, also between the IP versions, by the views of
//!   [`packet`]. Not in it are ports of the same parity or in a row, ports that several hosts share, several
//!   external addresses, and hairpinning with the internal source.
//! - [`divert`]: how a router's datagrams reach that NAT and return; [`gate`]: the thread between the two,
//!   and [`dns64`]: the responder that tells hosts of the translator's prefix.
//!
//! A router with the key `mapping` has the second kind. It lives in userspace, since conntrack cannot map by
//! address, nor number ports in order, nor translate between IP versions.

pub(crate) mod divert;
pub(crate) mod dns64;
pub(crate) mod gate;
pub mod packet;
pub(crate) mod rules;
pub mod table;
pub mod translate;
