//! RFC 9001 Appendix A against the code that seals and opens tunnel packets.
//!
//! Those packets have other headers than ours, so the headers are assembled here; keys, nonces, AEAD and
//! masks are the production code's.

use cyphonic_common::quic;
use ring::hmac;

use super::aead::HeaderKey;
use super::generation::{Generation, header_key, key_bytes};
use super::hkdf::expand_label;
use super::{Secret, Suite};

/// RFC 9001 §5.2.
const INITIAL_SALT: &str = "38762cf7f55934b34d179ae6a4c80cadccbb7f0a";
const CLIENT_SECRET: &str = "c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea";
const SERVER_SECRET: &str = "3c199828fd139efd216c155ad844cc81fb82fa8d7446fa7d78be803acdda951b";
const CHACHA_SECRET: &str = "9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b";

/// The CRYPTO frame of A.2, without padding.
const CLIENT_HELLO: &str = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868\
    04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578\
    616d706c652e636f6dff01000100000a00080006001d00170018001000070005\
    04616c706e000500050100000000003300260024001d00209370b2c9caa47fba\
    baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400\
    0d0010000e0403050306030203080408050806002d00020101001c0002400100\
    3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000\
    75300901100f088394c8f03e51570806048000ffff";

const SERVER_HELLO: &str = "02000000000600405a020000560303eefce7f7b37ba1d1632e96677825ddf739\
    88cfc79825df566dc5430b9a045a1200130100002e00330024001d00209d3c94\
    0d89690b84d08a60993c144eca684d1081287c834d5311bcf32bb9da1a002b00\
    020304";

const SERVER_PACKET: &str = "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a\
    5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3\
    dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84\
    022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc4\
    2158407dd074ee";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    assert_eq!(digits.len() % 2, 0, "whole bytes");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn secret(text: &str) -> Secret {
    Secret::new(hex(text).try_into().expect("32 bytes"))
}

/// Seals a packet with any header: RFC 9001 §5.3, then §5.4.
fn seal(
    keys: &Generation,
    hp: &HeaderKey,
    header: &[u8],
    number: u64,
    pn_len: usize,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = payload.to_vec();
    let tag = keys.key.seal(keys.nonce(number), header, &mut body).expect("sealed");
    let mut packet = [header, &body, &tag].concat();
    let pn_offset = header.len() - pn_len;
    let mask = hp.mask(packet[pn_offset + 4..].first_chunk().expect("a sample"));
    let protected = if header[0] & quic::FORM_BIT != 0 { 0x0f } else { quic::PROTECTED_BITS };
    packet[0] ^= mask[0] & protected;
    for i in 0..pn_len {
        packet[pn_offset + i] ^= mask[1 + i];
    }
    packet
}

#[test]
fn a1_initial_keys() {
    let salt = hmac::Key::new(hmac::HMAC_SHA256, &hex(INITIAL_SALT));
    let initial = hmac::sign(&salt, &hex("8394c8f03e515708"));
    assert_eq!(initial.as_ref(), hex("7db5df06e7a69e432496adedb00851923595221596ae2ae9fb8115c1e9ed0a44"));

    let ends = [
        (
            "client in",
            CLIENT_SECRET,
            "1f369613dd76d5467730efcbe3b1a22d",
            "fa044b2f42a3fd3b46fb255c",
            "9f50449e04a0e810283a1e9933adedd2",
        ),
        (
            "server in",
            SERVER_SECRET,
            "cf3a5331653c364c88f0f379b6067e37",
            "0ac1493ca1905853b0bba03e",
            "c206b8d9b9f0f37644430b490eeaa314",
        ),
    ];
    for (label, expected, key, iv, hp) in ends {
        assert_eq!(&expand_label::<32>(initial.as_ref(), label)[..], hex(expected));
        let secret = secret(expected);
        assert_eq!(key_bytes(Suite::Aes128Gcm, &secret, "quic key")[..16], hex(key));
        assert_eq!(key_bytes(Suite::Aes128Gcm, &secret, "quic hp")[..16], hex(hp));
        // The nonce of packet number 0 is the IV.
        assert_eq!(Generation::new(Suite::Aes128Gcm, &secret).nonce(0)[..], hex(iv));
    }
}

#[test]
fn a2_client_initial() {
    let secret = secret(CLIENT_SECRET);
    let (keys, hp) = (Generation::new(Suite::Aes128Gcm, &secret), header_key(Suite::Aes128Gcm, &secret));
    let header = hex("c300000001088394c8f03e5157080000449e00000002");
    let mut payload = hex(CLIENT_HELLO);
    payload.resize(1162, 0);

    let packet = seal(&keys, &hp, &header, 2, 4, &payload);
    assert_eq!(packet.len(), 1200);
    assert_eq!(packet[..22], hex("c000000001088394c8f03e5157080000449e7b9aec34"));
    assert_eq!(packet[22..38], hex("d1b1c98dd7689fb8ec11d242b123dc9b"));
    assert_eq!(hp.mask(packet[22..].first_chunk().expect("a sample"))[..], hex("437b9aec36"));
    // The tag depends on every bit of header and payload.
    assert_eq!(packet[1184..], hex("e221af44860018ab0856972e194cd934"));

    let mut body = packet[22..].to_vec();
    assert_eq!(keys.key.open(keys.nonce(2), &header, &mut body).expect("opened"), &payload[..]);
}

#[test]
fn a3_server_initial() {
    let secret = secret(SERVER_SECRET);
    let (keys, hp) = (Generation::new(Suite::Aes128Gcm, &secret), header_key(Suite::Aes128Gcm, &secret));
    let header = hex("c1000000010008f067a5502a4262b50040750001");
    let packet = seal(&keys, &hp, &header, 1, 2, &hex(SERVER_HELLO));
    assert_eq!(packet, hex(SERVER_PACKET));
    assert_eq!(packet[22..38], hex("2cd0991cd25b0aac406a5816b6394100"));
    assert_eq!(hp.mask(packet[22..].first_chunk().expect("a sample"))[..], hex("2ec0d8356a"));
}

#[test]
fn a5_chacha20_short_header_and_key_update() {
    let suite = Suite::ChaCha20Poly1305;
    let secret = secret(CHACHA_SECRET);
    let (keys, hp) = (Generation::new(suite, &secret), header_key(suite, &secret));
    let expanded = |label| key_bytes(suite, &secret, label).to_vec();
    assert_eq!(expanded("quic key"), hex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"));
    assert_eq!(expanded("quic hp"), hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4"));
    assert_eq!(expanded("quic ku"), hex("1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"));
    assert_eq!(keys.nonce(0)[..], hex("e0459b3474bdd0e44a41c144"));
    assert_eq!(keys.nonce(654_360_564)[..], hex("e0459b3474bdd0e46d417eb0"));

    let packet = seal(&keys, &hp, &hex("4200bff4"), 654_360_564, 3, &[0x01]);
    assert_eq!(packet, hex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb"));
    assert_eq!(hp.mask(packet[5..].first_chunk().expect("a sample"))[..], hex("aefefe7d03"));

    // The next generation's secret is "quic ku" of this one's.
    let next = secret_after(CHACHA_SECRET);
    assert_eq!(keys.next().nonce(0), Generation::new(suite, &next).nonce(0));
}

fn secret_after(text: &str) -> Secret {
    Secret::new(*expand_label::<32>(&hex(text), "quic ku"))
}
