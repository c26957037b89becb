//! Why a packet was dropped.
//!
//! Every drop has a name and a counter. The eBPF programs count with the reason's number as the index into a
//! per-CPU map, userspace counts with the same numbers, and `status` and the metrics print the same names:
//! whoever looks for a lost packet looks in one list.

/// An enumeration of reasons that are counted: each has a number, by which it is counted, and a name.
macro_rules! reasons {
    ($(#[doc = $about:literal])+ $reasons:ident; $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $reasons {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $reasons {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in counters, metrics and `status`.
            #[inline]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The counter's index.
            #[inline(always)]
            pub const fn index(self) -> u32 {
                self as u32
            }
        }

        impl core::fmt::Display for $reasons {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(crate) use reasons;

reasons! {
    /// Why a packet was dropped. New reasons are added at the end: the numbers are stable.
    DropReason;

    // What leaves an application through the virtual interface.

    /// The classifier is attached but has no configuration yet.
    NotConfigured = "not_configured",
    /// The packet ends before its headers do, or before the length they promise.
    Truncated = "truncated",
    /// The IP version is neither 4 nor 6.
    BadVersion = "bad_version",
    /// An IPv4 packet: the overlay carries IPv6 only.
    NotIpv6 = "not_ipv6",
    /// The packet is longer than its header says.
    LengthMismatch = "length_mismatch",
    /// Link-local or multicast traffic that every IPv6 interface emits (router solicitations, MLD, mDNS). Harmless.
    LocalNoise = "local_noise",
    /// The inner source is not the node's own virtual address.
    ForeignSource = "foreign_source",
    /// The inner destination is not in the overlay's prefix.
    OutsideOverlay = "outside_overlay",
    /// The inner destination is the node itself.
    ToSelf = "to_self",

    // What userspace drops on its way out.

    /// No tunnel to the destination stands, and none could be set up in time.
    NoTunnel = "no_tunnel",
    /// The policy does not allow this peer.
    Denied = "denied",
    /// A bounded queue is full.
    QueueFull = "queue_full",
    /// The inner packet is larger than the path carries. A Packet Too Big was answered.
    TooBig = "too_big",
    /// The tunnel's keys reached a limit of RFC 9001 §6.6.
    KeysExhausted = "keys_exhausted",
    /// The kernel refused to send the outer packet.
    SendFailed = "send_failed",

    // What arrives on the outer UDP port.

    /// The datagram is not a QUIC version 1 packet.
    NotQuic = "not_quic",
    /// No tunnel has this connection ID.
    UnknownConnectionId = "unknown_connection_id",
    /// The authentication tag does not verify.
    Forged = "forged",
    /// The packet number was seen before, or is older than the replay window.
    Replayed = "replayed",
    /// The frames of an authenticated packet are malformed.
    MalformedFrame = "malformed_frame",
    /// The inner packet is not well-formed IPv6.
    MalformedInner = "malformed_inner",
    /// The inner source is not the peer's virtual address.
    SpoofedSource = "spoofed_source",
    /// The inner destination is not the node's own virtual address.
    WrongDestination = "wrong_destination",
    /// The virtual interface did not take the packet.
    InterfaceFailed = "interface_failed",

    // What a relay drops.

    /// The packet's source address is not the one its relay leg is bound to.
    UnboundSource = "unbound_source",

    // Congestion marks across the tunnel.

    /// A router marked congestion on the outer packet of a flow that cannot hear of it (RFC 6040 §4.2).
    CongestionUnheard = "congestion_unheard",

    // What a relay's kernel half drops besides.

    /// The relay leg carries more than its rate limit allows.
    RateLimited = "rate_limited",
    /// The packet may not be forwarded once more: it has probably gone in circles.
    HopLimit = "hop_limit",

    // What arrives at the underlay's AF_XDP sockets.

    /// The frame is no UDP datagram, though the program in front of the socket took it for one.
    MalformedOuter = "malformed_outer",

    // Inner packets that come in pieces, over a path that is too narrow for them.

    /// A packet's pieces did not all come in time, or too many packets were incomplete at once.
    Incomplete = "incomplete",
    /// A piece that contradicts the others of its packet.
    BadPart = "bad_part",

    // What comes to the host past the tunnels.

    /// A packet from an address of the overlay, or to the node's own, came in by another interface than the
    /// overlay's: who sent it is nobody's to say.
    PastTunnels = "past_tunnels",
}

impl DropReason {
    /// Whether the drop is part of a healthy node's life, so that nobody need look for its cause.
    #[inline]
    pub const fn is_noise(self) -> bool {
        matches!(self, Self::LocalNoise)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_dense_and_names_are_unique_and_printable() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, index);
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            );
        }
        let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
