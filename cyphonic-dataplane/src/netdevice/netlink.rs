//! Questions by netlink, their answers, and news (`linux/netlink.h`): what little of that protocol is needed
//! here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with};

/// Bytes of a message's own header.
const HEADER: usize = 16;
/// The type of an answer that says no.
const ERROR: u16 = 2;
/// The type of what ends a list.
const DONE: u16 = 3;
const REQUEST: u16 = 1;
/// `NLM_F_DUMP`: all that there is.
const LIST: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what is listed has changed meanwhile, so that something may be missing.
const TORN: u16 = 0x10;
/// More than the kernel puts into one answer, or into one piece of a list.
const LONGEST_ANSWER: usize = 1 << 15;
/// The bits of an attribute's number that tell of its content (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const FLAGS: u16 = 0xc000;

/// A socket for questions to one of the kernel's subsystems.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// `None` is rtnetlink.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?))
    }

    /// Asks one question: a message of type `kind`, with the subsystem's own header and its attributes.
    /// Returns the same part of the answer.
    pub(super) fn ask(&self, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        self.send(kind, REQUEST, body)?;
        let mut answer = vec![0; LONGEST_ANSWER];
        let (received, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        answer.truncate(received);
        Message::read(&answer).map(|message| message.content.to_vec())
    }

    /// As [`ask`](Self::ask), for all that there is: one answer each. [`io::ErrorKind::Interrupted`]: it
    /// changed meanwhile.
    pub(super) fn list(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, REQUEST | LIST, body)?;
        let (mut piece, mut answers) = (vec![0; LONGEST_ANSWER], Vec::new());
        loop {
            let (received, _) = rustix::net::recv(&self.0, &mut piece[..], RecvFlags::empty())?;
            if take_piece(piece.get(..received).unwrap_or_default(), &mut answers)? {
                return Ok(answers);
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(HEADER + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut question = Vec::with_capacity(HEADER + body.len());
        question.extend_from_slice(&len.to_ne_bytes());
        question.extend_from_slice(&kind.to_ne_bytes());
        question.extend_from_slice(&flags.to_ne_bytes());
        // Sequence number and port: one question at a time on a socket of our own needs neither.
        question.extend_from_slice(&[0; 8]);
        question.extend_from_slice(body);
        rustix::net::send(&self.0, &question, SendFlags::empty())?;
        Ok(())
    }
}

/// Appends an attribute, padded as the next one needs it.
pub(crate) fn push_attribute(body: &mut Vec<u8>, name: u16, value: &[u8]) -> io::Result<()> {
    let len = u16::try_from(4 + value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    body.extend_from_slice(&len.to_ne_bytes());
    body.extend_from_slice(&name.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
    Ok(())
}

/// Takes the answers out of a piece of a list. Returns whether it is the last one.
fn take_piece(piece: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    if piece.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    for message in messages(piece) {
        let message = message?;
        if message.flags & TORN != 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if message.kind == DONE {
            return Ok(true);
        }
        answers.push(message.content.to_vec());
    }
    Ok(false)
}

/// The messages that came together. One that is cut short or says no is the last.
pub(crate) fn messages(mut received: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if received.is_empty() {
            return None;
        }
        let message = Message::read(received);
        received = message.as_ref().map_or(&[], |message| message.rest);
        Some(message)
    })
}

/// What the kernel says: an answer, or news.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    /// What is behind its header.
    pub(crate) content: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first of some, if it does not say no.
    fn read(answer: &'a [u8]) -> io::Result<Self> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let [l0, l1, l2, l3, t0, t1, f0, f1, ..] = *answer.first_chunk::<HEADER>().ok_or_else(malformed)?;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let content = answer.get(HEADER..len).ok_or_else(malformed)?;
        let [kind, flags] = [[t0, t1], [f0, f1]].map(u16::from_ne_bytes);
        if kind == ERROR || kind == DONE {
            let code = i32::from_ne_bytes(*content.first_chunk().ok_or_else(malformed)?);
            if kind == ERROR || code < 0 {
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
        }
        let rest = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
        Ok(Self { kind, flags, content, rest })
    }
}

/// The value of an attribute, if it is there.
pub(crate) fn attribute(mut attributes: &[u8], name: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, n0, n1] = *attributes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([n0, n1]) & !FLAGS == name {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, 1, &[9]).unwrap();
        push_attribute(&mut attributes, 3 | 0x8000, &[7, 8]).unwrap();
        assert_eq!(attributes, [5, 0, 1, 0, 9, 0, 0, 0, 6, 0, 3, 0x80, 7, 8, 0, 0]);
        assert_eq!(attribute(&attributes, 1), Some(&[9][..]));
        assert_eq!(attribute(&attributes, 3), Some(&[7, 8][..]));
        assert_eq!(attribute(&attributes, 2), None);
    }

    #[test]
    fn a_refusal_is_the_kernels_error() {
        let refusal = [&[20, 0, 0, 0, 2, 0][..], &[0; 10], &(-libc::ENODEV).to_ne_bytes()].concat();
        assert_eq!(Message::read(&refusal).err().unwrap().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_list_ends_with_its_end_or_an_error() {
        let message = |kind: u16, body: &[u8]| {
            let message = [&(16 + body.len() as u32).to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body];
            message.concat()
        };
        let padded = [message(16, &[1, 2]), vec![0; 2]].concat();
        let mut answers = Vec::new();
        assert!(!take_piece(&[padded.clone(), message(16, &[3])].concat(), &mut answers).unwrap());
        assert_eq!(answers, [vec![1, 2], vec![3]]);
        assert!(take_piece(&[padded.clone(), message(DONE, &[0; 4])].concat(), &mut answers).unwrap());
        assert_eq!(answers.len(), 3);
        let failed = message(DONE, &(-libc::ENOMEM).to_ne_bytes());
        assert_eq!(take_piece(&failed, &mut answers).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        let mut torn = message(DONE, &[0; 4]);
        torn[6] = TORN as u8;
        assert_eq!(take_piece(&torn, &mut answers).unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert!(take_piece(&[], &mut answers).is_err() && take_piece(&padded[..17], &mut answers).is_err());
    }

    proptest! {
        #[test]
        fn any_answer_ends_without_a_panic(answer: Vec<u8>, name: u16) {
            if let Ok(message) = Message::read(&answer) {
                let _ = attribute(message.content, name);
            }
            let _ = take_piece(&answer, &mut Vec::new());
            assert!(messages(&answer).count() <= answer.len());
            let _ = attribute(&answer, name);
        }
    }
}
