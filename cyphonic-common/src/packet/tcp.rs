//! Where in a TCP header what stands (RFC 9293 §3.1).

/// Bytes of a header without options.
pub const MIN_HEADER: usize = 20;
/// Sequence number.
pub const SEQUENCE: usize = 4;
/// Acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = 8;
/// Length of the header in words, in the high half of the byte.
pub const DATA_OFFSET: usize = 12;
/// Flags.
pub const FLAGS: usize = 13;
/// Window.
pub const WINDOW: usize = 14;
/// Checksum.
pub const CHECKSUM: usize = 16;
/// Urgent pointer.
pub const URGENT: usize = 18;

/// Flag: nothing more will come.
pub const FIN: u8 = 0x01;
/// Flag: a connection is opened.
pub const SYN: u8 = 0x02;
/// Flag: the connection is not to be.
pub const RST: u8 = 0x04;
/// Flag: to be delivered at once.
pub const PSH: u8 = 0x08;
/// Flag: there is an acknowledgement number.
pub const ACK: u8 = 0x10;
/// Flag: there is an urgent pointer.
pub const URG: u8 = 0x20;
/// Flag: the sender has slowed down (RFC 3168 §6.1.2).
pub const CWR: u8 = 0x80;
