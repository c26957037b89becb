//! Whether a device can connect, as far as the register tells.

use std::collections::HashMap;

use super::{DeviceRecord, Register, RegisterError, UnixSeconds, from_sql};

/// What a device is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceState {
    /// It can connect.
    Enrolled,
    /// Its certificate has ended: it cannot connect until it is enrolled anew.
    Lapsed,
    /// It was revoked.
    Revoked,
}

impl DeviceState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Enrolled, Self::Lapsed, Self::Revoked];

    /// Of a device whose certificate ends then; without any on record, it has ended long ago.
    pub fn of(device: &DeviceRecord, certificate_not_after: Option<UnixSeconds>, now: UnixSeconds) -> Self {
        match () {
            () if device.revoked_at.is_some() => Self::Revoked,
            () if certificate_not_after.is_some_and(|end| end > now) => Self::Enrolled,
            () => Self::Lapsed,
        }
    }

    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Lapsed => "lapsed",
            Self::Revoked => "revoked",
        }
    }
}

impl Register {
    /// Until when each device has a certificate for a key of its own, by name, as far as one is on record.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn certificate_ends(&self) -> Result<HashMap<String, UnixSeconds>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare(
            "SELECT devices.fqdn, max(not_after) FROM devices JOIN certificates ON certificates.fqdn = devices.fqdn
                 AND certificates.spki_sha256 IN (devices.spki_sha256, devices.next_spki_sha256)
             GROUP BY devices.fqdn",
        )?;
        let ends = statement.query_map([], |row| Ok((row.get(0)?, from_sql(row.get(1)?))))?;
        Ok(ends.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::register::IssuedCertificate;

    const NOW: UnixSeconds = 1_800_000_000;
    const DAY: UnixSeconds = 86_400;

    fn issued(n: u8, serial: u8, key: u8, not_after: UnixSeconds) -> IssuedCertificate {
        IssuedCertificate {
            fqdn: format!("press-{n}.plant.example"),
            virtual_address: Ipv6Addr::from([n; 16]),
            der: vec![0x30, serial],
            serial: vec![serial],
            spki_sha256: [key; 32],
            not_before: NOW,
            not_after,
        }
    }

    #[test]
    fn a_device_lapses_when_the_last_certificate_for_its_keys_ends() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::create(&dir.path().join("register.db")).unwrap();
        let devices = [1, 2, 3].map(|n| issued(n, n, n, NOW + DAY));
        register.take_up(&devices, NOW).unwrap();
        let states = |now| {
            let ends = register.certificate_ends().unwrap();
            let devices = register.devices().unwrap();
            devices.iter().map(|d| DeviceState::of(d, ends.get(&d.fqdn).copied(), now)).collect::<Vec<_>>()
        };
        assert_eq!(states(NOW), [DeviceState::Enrolled; 3]);
        // One has a key that it has not used yet.
        let renew = || Ok(issued(1, 4, 9, NOW + 3 * DAY));
        register.renew("press-1.plant.example", &[1; 32], &[9; 32], NOW + DAY / 2, renew).unwrap();
        register.revoke_device("press-3.plant.example", NOW).unwrap();
        assert_eq!(states(NOW + DAY), [DeviceState::Enrolled, DeviceState::Lapsed, DeviceState::Revoked]);
        assert_eq!(states(NOW + 3 * DAY)[0], DeviceState::Lapsed);
        register.lock().execute_batch("DELETE FROM certificates").unwrap();
        assert_eq!(states(NOW)[0], DeviceState::Lapsed, "it is forgotten");
    }
}
