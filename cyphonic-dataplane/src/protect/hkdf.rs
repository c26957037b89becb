//! HKDF-Expand-Label (RFC 8446 §7.1) with SHA-256, an empty context and at most one block of output.
//!
//! No key of RFC 9001 is longer than the hash, so HKDF-Expand (RFC 5869 §2.3) is a single HMAC and cannot
//! fail.

use ring::hmac;
use zeroize::Zeroizing;

/// Bytes of SHA-256's output, and of every secret here.
const HASH_LEN: usize = 32;

/// `HKDF-Expand-Label(secret, label, "", N)`.
pub(super) fn expand_label<const N: usize>(secret: &[u8], label: &str) -> Zeroizing<[u8; N]> {
    const { assert!(N <= HASH_LEN, "one block of HKDF-Expand") };
    const PREFIX: &[u8] = b"tls13 ";

    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(&[0, N as u8, (PREFIX.len() + label.len()) as u8]);
    context.update(PREFIX);
    context.update(label.as_bytes());
    // The context's length (empty), then the number of the block.
    context.update(&[0, 1]);

    let mut output = Zeroizing::new([0; N]);
    output.copy_from_slice(&context.sign().as_ref()[..N]);
    output
}
