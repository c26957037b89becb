//! Datagrams in a stream: two bytes of length, big-endian, and the datagram. An empty one keeps the
//! connection alive.

use cyphonic_common::limits::MAX_UDP4_PAYLOAD;

/// Bytes of the length.
const LENGTH: usize = 2;

/// Bytes read at once, and so the most that is kept of a stream: any frame fits.
const BUFFER: usize = 1 << 16;
const _: () = assert!(LENGTH + MAX_UDP4_PAYLOAD <= BUFFER);

/// The frame that carries nothing.
pub(super) const EMPTY: [u8; LENGTH] = [0; LENGTH];

/// The other end sent a length that no datagram has: it speaks something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes, and {MAX_UDP4_PAYLOAD} are the most")]
pub(super) struct Oversized(usize);

/// Appends the frames of a batch of datagrams that are all `stride` bytes long, but perhaps the last. What no
/// frame can carry is left out.
pub(super) fn encode(datagrams: &[u8], stride: usize, out: &mut Vec<u8>) {
    for datagram in datagrams.chunks(stride.max(1)) {
        let Ok(length) = u16::try_from(datagram.len()) else { continue };
        if datagram.len() <= MAX_UDP4_PAYLOAD {
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(datagram);
        }
    }
}

/// Finds the frames in what arrives of a stream.
#[derive(Debug)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// Where what is not taken yet begins and ends.
    start: usize,
    end: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    /// Room for more of the stream. It is never empty once [`next`](Self::next) has found no whole frame.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes of the room hold something now.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.buffer.len());
    }

    /// The next whole datagram; none until more of the stream arrives.
    ///
    /// # Errors
    /// The stream cannot be trusted any further.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Oversized> {
        let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_UDP4_PAYLOAD {
            return Err(Oversized(length));
        }
        let Some(datagram) = rest.get(..length) else { return Ok(None) };
        self.start += LENGTH + length;
        Ok(Some(datagram))
    }
}

/// Datagrams that may leave together: all of one size, but the last, which may be shorter.
#[derive(Debug, Default)]
pub(super) struct Run {
    bytes: Vec<u8>,
    stride: usize,
    count: usize,
    closed: bool,
}

impl Run {
    /// Appends a datagram; false, and nothing done, where it does not fit this run.
    pub(super) fn push(&mut self, datagram: &[u8], most: usize) -> bool {
        if self.count == 0 {
            self.stride = datagram.len();
        }
        let fits = !self.closed
            && datagram.len() <= self.stride
            && self.count < most.max(1)
            && self.bytes.len() + datagram.len() <= MAX_UDP4_PAYLOAD;
        if fits {
            self.bytes.extend_from_slice(datagram);
            self.count += 1;
            self.closed = datagram.len() < self.stride;
        }
        fits
    }

    /// The datagrams, and the size of each.
    pub(super) fn get(&self) -> Option<(&[u8], usize)> {
        (self.count > 0).then_some((self.bytes.as_slice(), self.stride))
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        (self.stride, self.count, self.closed) = (0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds a stream in pieces and collects the datagrams.
    fn decode(stream: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, Oversized> {
        let (mut decoder, mut found, mut rest) = (Decoder::new(), Vec::new(), stream);
        loop {
            while let Some(datagram) = decoder.next()? {
                found.push(datagram.to_vec());
            }
            let room = decoder.room();
            assert!(!room.is_empty(), "a frame always fits");
            let n = room.len().min(piece).min(rest.len());
            if n == 0 {
                return Ok(found);
            }
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            decoder.filled(n);
        }
    }

    proptest! {
        #[test]
        fn datagrams_survive_the_stream_however_it_is_cut(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..40), piece in 1usize..5000,
        ) {
            let mut stream = Vec::new();
            for datagram in &datagrams {
                if datagram.is_empty() {
                    stream.extend_from_slice(&EMPTY);
                }
                encode(datagram, datagram.len(), &mut stream);
            }
            prop_assert_eq!(decode(&stream, piece), Ok(datagrams));
        }

        #[test]
        fn any_stream_is_taken_or_refused(stream in prop::collection::vec(any::<u8>(), 0..70_000), piece in 1usize..70_000) {
            if let Ok(found) = decode(&stream, piece) {
                prop_assert!(found.iter().map(|datagram| LENGTH + datagram.len()).sum::<usize>() <= stream.len());
            }
        }

        #[test]
        fn a_batch_is_cut_where_its_datagrams_were(sizes in 1usize..1500, count in 1usize..40, last in 1usize..1500) {
            let last = last.min(sizes);
            let batch: Vec<u8> = (0..sizes * (count - 1) + last).map(|at| at as u8).collect();
            let mut stream = Vec::new();
            encode(&batch, sizes, &mut stream);
            let cut: Vec<_> = batch.chunks(sizes).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(decode(&stream, 1 << 16), Ok(cut));
        }

        #[test]
        fn runs_keep_every_datagram_and_their_order(sizes in prop::collection::vec(1usize..60, 1..200), most in 1usize..70) {
            let datagrams: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size]).collect();
            let (mut run, mut sent) = (Run::default(), Vec::new());
            let send = |run: &mut Run, sent: &mut Vec<Vec<u8>>| {
                let (bytes, stride) = run.get().unwrap();
                let cut: Vec<_> = bytes.chunks(stride).map(<[u8]>::to_vec).collect();
                assert!(cut.len() <= most && bytes.len() <= MAX_UDP4_PAYLOAD);
                sent.extend(cut);
                run.clear();
            };
            for datagram in &datagrams {
                if !run.push(datagram, most) {
                    send(&mut run, &mut sent);
                    prop_assert!(run.push(datagram, most));
                }
            }
            send(&mut run, &mut sent);
            prop_assert_eq!(sent, datagrams);
        }
    }

    #[test]
    fn the_largest_datagram_passes_and_a_larger_one_ends_the_stream() {
        let mut stream = Vec::new();
        encode(&vec![7; MAX_UDP4_PAYLOAD], MAX_UDP4_PAYLOAD, &mut stream);
        assert_eq!(decode(&stream, 1 << 20).unwrap().len(), 1);
        assert_eq!(decode(&[0xff, 0xff, 1], 3), Err(Oversized(65_535)));
        let mut none = Vec::new();
        encode(&vec![7; MAX_UDP4_PAYLOAD + 1], MAX_UDP4_PAYLOAD + 1, &mut none);
        assert!(none.is_empty());
    }
}
