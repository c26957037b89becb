//! What the register's tests begin with: a register, a token, a certificate.

use std::net::Ipv6Addr;

use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::token::SecretHash;

use super::{Asker, IssuedCertificate, NewToken, Register, UnixSeconds};

pub(super) const NOW: UnixSeconds = 1_800_000_000;
pub(super) const SECRET: SecretHash = SecretHash([7; 32]);
pub(super) const KEY: KeyHash = KeyHash([1; 32]);
pub(super) const OTHER_KEY: KeyHash = KeyHash([2; 32]);

pub(super) fn secret(n: u8) -> SecretHash {
    SecretHash([n; 32])
}

pub(super) fn register() -> (tempfile::TempDir, Register) {
    let dir = tempfile::tempdir().unwrap();
    let register = Register::create(&dir.path().join("register.db")).unwrap();
    (dir, register)
}

pub(super) fn token(secret_hash: SecretHash, replaces: bool) -> NewToken {
    NewToken { secret_hash, name: "press-7.plant.example".into(), expires_at: NOW + 3600, replaces, uses: 1 }
}

pub(super) fn certificate(serial: u8, key: KeyHash) -> IssuedCertificate {
    IssuedCertificate {
        fqdn: "press-7.plant.example".into(),
        virtual_address: Ipv6Addr::from(0xfd00_0000_0000_0000_0000_0000_0000_0007),
        der: vec![0x30, serial],
        serial: vec![serial],
        spki_sha256: key,
        not_before: NOW,
        not_after: NOW + 90 * 86_400,
    }
}

pub(super) fn asker(spki_sha256: &KeyHash) -> Asker<'_> {
    Asker { spki_sha256, name: "", zone: "example" }
}
