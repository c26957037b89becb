//! The responder by which hosts find a translator's prefix: `ipv4only.arpa` (RFC 7050), and no other name.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread::{self, JoinHandle};

use ipnet::Ipv6Net;

use super::translate::embed;

/// `ipv4only.arpa` on the wire.
const NAME: &[u8] = b"\x08ipv4only\x04arpa\x00";
/// Its well-known addresses (RFC 7050 §2.2).
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
const A: u16 = 1;
const AAAA: u16 = 28;
const HEADER: usize = 12;
const NXDOMAIN: u8 = 3;
const PORT: u16 = 53;

/// Answers in the calling thread's namespace, at all of its addresses, for as long as this process lives.
pub(super) fn serve(prefix: Ipv6Net) -> Result<JoinHandle<()>, String> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))
        .map_err(|error| format!("cannot serve DNS at port {PORT}: {error}"))?;
    Ok(thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(query.get(..length).unwrap_or_default(), prefix) {
                // A client that is gone does not wait for it.
                let _ = socket.send_to(&answer, from);
            }
        }
    }))
}

/// The answer to a query, unless it is none.
fn answer(query: &[u8], prefix: Ipv6Net) -> Option<Vec<u8>> {
    let header = query.first_chunk::<HEADER>()?;
    let is_query = header[2] & 0x80 == 0;
    let questions = u16::from_be_bytes([header[4], header[5]]);
    if !is_query || questions != 1 {
        return None;
    }
    let rest = query.get(HEADER..)?;
    let name_len = rest.iter().position(|byte| *byte == 0)? + 1;
    let name = rest.get(..name_len)?;
    let question = rest.get(..name_len + 4)?;
    let kind = question.get(name_len..)?.first_chunk().map(|kind| u16::from_be_bytes(*kind))?;
    let known = name.eq_ignore_ascii_case(NAME);
    let records: Vec<Vec<u8>> = match kind {
        A if known => WELL_KNOWN.iter().map(|address| address.octets().to_vec()).collect(),
        AAAA if known => WELL_KNOWN.iter().map(|address| embed(prefix, *address).octets().to_vec()).collect(),
        _ => Vec::new(),
    };
    let mut answer = Vec::with_capacity(128);
    answer.extend_from_slice(&header[..2]);
    // A response with recursion, to whom asked for it.
    answer.extend_from_slice(&[0x80 | header[2] & 0x01, 0x80 | if known { 0 } else { NXDOMAIN }]);
    answer.extend_from_slice(&[0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    for record in &records {
        // The name of the question, class IN, 60 seconds.
        answer.extend_from_slice(&[0xc0, HEADER as u8]);
        answer.extend_from_slice(&kind.to_be_bytes());
        answer.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, record.len() as u8]);
        answer.extend_from_slice(record);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8], kind: u16) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend_from_slice(name);
        query.extend_from_slice(&kind.to_be_bytes());
        query.extend_from_slice(&[0, 1]);
        query
    }

    #[test]
    fn the_prefix_is_told_and_nothing_else() {
        let prefix = "64:ff9b::/96".parse().unwrap();
        let told = answer(&query(NAME, AAAA), prefix).unwrap();
        assert_eq!((told[3] & 0x0f, told[7]), (0, 2));
        let embedded = "64:ff9b::192.0.0.171".parse::<Ipv6Addr>().unwrap().octets();
        assert!(told.ends_with(&embedded));
        assert_eq!(answer(&query(b"\x07example\x00", AAAA), prefix).unwrap()[3] & 0x0f, NXDOMAIN);
        assert_eq!(answer(&told, prefix), None);
        for length in 0..query(NAME, AAAA).len() {
            assert_eq!(answer(&query(NAME, AAAA)[..length], prefix), None);
        }
    }
}
