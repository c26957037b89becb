//! Whether a device can connect, as far as the register tells.

use std::collections::BTreeMap;

use super::{DeviceRecord, Register, RegisterError, UnixSeconds, devices, from_sql, to_sql};

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

    /// Of a device: without a certificate that is known, its last has ended long ago.
    pub fn of(device: &DeviceRecord, now: UnixSeconds) -> Self {
        if device.revoked_at.is_some() {
            Self::Revoked
        } else if device.certificate_not_after.is_some_and(|end| end > now) {
            Self::Enrolled
        } else {
            Self::Lapsed
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
    /// How many devices there are of each state: [`DeviceState::of`] all of them, without reading them.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn count_devices(&self, now: UnixSeconds) -> Result<BTreeMap<DeviceState, u64>, RegisterError> {
        let connection = self.lock();
        let mut statement = connection.prepare(&format!(
            "SELECT revoked_at IS NOT NULL, revoked_at IS NULL AND coalesce(certificate_not_after > ?1, FALSE), count(*)
             FROM (SELECT {} FROM devices) GROUP BY 1, 2",
            devices::COLUMNS
        ))?;
        let counts = statement.query_map([to_sql(now)], |row| {
            let state = match (row.get(0)?, row.get(1)?) {
                (true, _) => DeviceState::Revoked,
                (false, true) => DeviceState::Enrolled,
                (false, false) => DeviceState::Lapsed,
            };
            Ok((state, from_sql(row.get(2)?)))
        })?;
        let mut states = BTreeMap::from(DeviceState::ALL.map(|state| (state, 0)));
        for count in counts {
            let (state, count) = count?;
            states.insert(state, count);
        }
        Ok(states)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use cyphonic_proto::identity::KeyHash;
    use cyphonic_proto::token::SecretHash;

    use super::*;
    use crate::register::fixture::asker;
    use crate::register::{IssuedCertificate, KeyChange, NewToken};

    const NOW: UnixSeconds = 1_800_000_000;
    const DAY: UnixSeconds = 86_400;

    fn key(n: u8) -> KeyHash {
        KeyHash([n; 32])
    }

    fn issued(n: u8, serial: u8, key: u8, not_after: UnixSeconds) -> IssuedCertificate {
        IssuedCertificate {
            fqdn: format!("press-{n}.plant.example"),
            virtual_address: Ipv6Addr::from([n; 16]),
            der: vec![0x30, serial],
            serial: vec![serial],
            spki_sha256: self::key(key),
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
            let devices = register.devices().unwrap();
            let states: Vec<_> = devices.iter().map(|device| DeviceState::of(device, now)).collect();
            let count = |state| states.iter().filter(|other| **other == state).count() as u64;
            let counts = BTreeMap::from(DeviceState::ALL.map(|state| (state, count(state))));
            assert_eq!(register.count_devices(now).unwrap(), counts);
            states
        };
        assert_eq!(states(NOW), [DeviceState::Enrolled; 3]);
        // One has a key that it has not used yet.
        let renew = || Ok(issued(1, 4, 9, NOW + 3 * DAY));
        register
            .renew("press-1.plant.example", KeyChange { old: key(1), new: key(9) }, NOW + DAY / 2, renew)
            .unwrap();
        register.revoke_device("press-3.plant.example", NOW).unwrap();
        assert_eq!(states(NOW + DAY), [DeviceState::Enrolled, DeviceState::Lapsed, DeviceState::Revoked]);
        assert_eq!(states(NOW + 3 * DAY)[0], DeviceState::Lapsed);
        register.lock().execute_batch("DELETE FROM certificates").unwrap();
        assert_eq!(states(NOW)[0], DeviceState::Lapsed, "it is forgotten");
    }

    #[test]
    fn a_certificate_that_a_restored_register_has_not_counts_until_the_device_enrols_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.db");
        let register = Register::create(&path).unwrap();
        let name = "press-1.plant.example";
        register.take_up(&[issued(1, 1, 1, NOW + DAY)], NOW).unwrap();
        let device = || register.device(name).unwrap().unwrap();
        let other = Register::open(&path).unwrap();
        let untouched = other.data_version().unwrap();
        register.note_certificate(&device(), &key(1), NOW + DAY).unwrap();
        assert_eq!(other.data_version().unwrap(), untouched, "it knows that one");
        register.note_certificate(&device(), &key(9), NOW + 3 * DAY).unwrap();
        assert_eq!(DeviceState::of(&device(), NOW + DAY), DeviceState::Lapsed, "the key is not the device's");
        let revision = device().revision;
        register.note_certificate(&device(), &key(1), NOW + 3 * DAY).unwrap();
        register.note_certificate(&device(), &key(1), NOW + 2 * DAY).unwrap();
        assert_eq!((device().certificate_not_after, device().revision), (Some(NOW + 3 * DAY), revision));
        assert_eq!(DeviceState::of(&device(), NOW + 2 * DAY), DeviceState::Enrolled);
        // It was for the key that the device had.
        let next = || Ok(issued(1, 2, 2, NOW + 2 * DAY));
        register.renew(name, KeyChange { old: key(1), new: key(2) }, NOW + DAY / 2, next).unwrap();
        register.note_login(&device(), &key(2), "1", NOW + DAY / 2).unwrap();
        assert_eq!(device().certificate_not_after, Some(NOW + 2 * DAY));
        register.note_certificate(&device(), &key(2), NOW + 5 * DAY).unwrap();
        let new = NewToken {
            secret_hash: SecretHash([7; 32]),
            name: name.into(),
            expires_at: NOW + DAY,
            replaces: true,
            uses: 1,
        };
        register.create_token(&new, NOW).unwrap();
        register
            .enrol(&SecretHash([7; 32]), asker(&key(3)), NOW, |_| Ok(issued(1, 3, 3, NOW + 4 * DAY)))
            .unwrap();
        assert_eq!(device().certificate_not_after, Some(NOW + 4 * DAY));
    }
}
