//! Who was let in by a look at the register, and whether the changes that are told meanwhile leave them in.
//! Pure.
//!
//! The look comes first, then a device waits in its service's queue, and the register's changes come by
//! another way: one may overtake it. So it is compared with those that were told lately, when its turn comes.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use cyphonic_proto::{Identity, close};

use crate::register::DeviceRecord;

/// For so long a look at the register counts, and changes are kept to compare it with.
const COUNTS: Duration = Duration::from_secs(30);

/// A device that was let in.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    pub(super) identity: Identity,
    /// The device's in the register; the first where no register is at hand, nor changes of it.
    pub(super) revision: i64,
    /// Before the look at the register began.
    pub(super) since: Instant,
}

impl Admission {
    /// Whether a change leaves the device in: those that the look at the register has already seen do.
    pub(super) fn outlives(&self, change: &DeviceRecord) -> Result<(), &'static str> {
        if change.fqdn == self.identity.fqdn && change.revision > self.revision {
            return allowed(change, &self.identity);
        }
        Ok(())
    }
}

/// Why a device does not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeptOut {
    /// It may not be here: a verdict, after which its operator is asked to act.
    NotAllowed(&'static str),
    /// The service failed or is busy, which says nothing about the device.
    Unavailable(&'static str),
}

impl KeptOut {
    /// With which its connection is closed.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::NotAllowed(_) => close::NOT_ALLOWED,
            Self::Unavailable(_) => close::UNAVAILABLE,
        }
    }

    /// In words.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NotAllowed(reason) | Self::Unavailable(reason) => reason,
        }
    }
}

/// Whether the register still stands behind a certificate.
pub(super) fn allowed(device: &DeviceRecord, identity: &Identity) -> Result<(), &'static str> {
    if device.revoked_at.is_some() {
        return Err("the device was revoked");
    }
    if !device.has_key(&identity.spki_sha256) {
        return Err("another device has taken the name over");
    }
    Ok(())
}

/// What was told lately of each device: its newest change.
#[derive(Debug, Default)]
pub(super) struct Changes {
    newest: HashMap<String, (Instant, DeviceRecord)>,
    /// In the order in which they were told.
    told: VecDeque<(Instant, String)>,
}

impl Changes {
    /// Notes one, and forgets those that no look at the register can need any more.
    pub(super) fn note(&mut self, now: Instant, change: &DeviceRecord) {
        let fqdn = change.fqdn.clone();
        self.told.push_back((now, fqdn.clone()));
        self.newest.insert(fqdn, (now, change.clone()));
        while let Some((at, fqdn)) = self.told.pop_front_if(|(at, _)| now.duration_since(*at) > COUNTS) {
            // Unless it has changed again since.
            if self.newest.get(&fqdn).is_some_and(|(newest, _)| *newest == at) {
                self.newest.remove(&fqdn);
            }
        }
    }

    /// Whether a device may come in now that was let in a while ago.
    pub(super) fn leave_in(&self, now: Instant, admission: &Admission) -> Result<(), KeptOut> {
        if now.duration_since(admission.since) > COUNTS {
            return Err(KeptOut::Unavailable("it waited too long: the service is busy"));
        }
        match self.newest.get(&admission.identity.fqdn) {
            Some((_, change)) => admission.outlives(change).map_err(KeptOut::NotAllowed),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_proto::identity::{KeyHash, NetworkId, Role};

    use super::*;

    const OLD: KeyHash = KeyHash([1; 32]);
    const NEW: KeyHash = KeyHash([2; 32]);

    fn admission(key: KeyHash, revision: i64, since: Instant) -> Admission {
        let identity = Identity {
            network_id: NetworkId([7; 16]),
            role: Role::Device,
            fqdn: "a.lab".into(),
            virtual_address: None,
            spki_sha256: key,
            serial: Vec::new(),
            not_before: 0,
            not_after: 0,
        };
        Admission { identity, revision, since }
    }

    fn change(fqdn: &str, key: KeyHash, revision: i64, revoked: bool) -> DeviceRecord {
        DeviceRecord {
            fqdn: fqdn.into(),
            virtual_address: std::net::Ipv6Addr::LOCALHOST,
            spki_sha256: key,
            next_spki_sha256: None,
            enrolled_at: 0,
            revoked_at: revoked.then_some(1),
            revoked_by: None,
            last_login_at: None,
            last_seen_at: None,
            software_version: None,
            certificate_not_after: None,
            token: None,
            revision,
        }
    }

    #[test]
    fn a_change_that_overtakes_a_device_keeps_it_out() {
        let now = Instant::now();
        let mut changes = Changes::default();
        changes.note(now, &change("b.lab", NEW, 4, true));
        assert_eq!(changes.leave_in(now, &admission(OLD, 3, now)), Ok(()), "another's");
        changes.note(now, &change("a.lab", OLD, 5, true));
        let verdict = changes.leave_in(now, &admission(OLD, 3, now)).map_err(KeptOut::code);
        assert_eq!(verdict, Err(close::NOT_ALLOWED), "revoked meanwhile");
        assert_eq!(
            changes.leave_in(now, &admission(NEW, 6, now)),
            Ok(()),
            "enrolled anew, which is not told yet"
        );
        changes.note(now, &change("a.lab", NEW, 6, false));
        assert!(changes.leave_in(now, &admission(OLD, 3, now)).is_err(), "replaced meanwhile");
        assert_eq!(changes.leave_in(now, &admission(NEW, 3, now)), Ok(()), "a change that it outlives");
    }

    #[test]
    fn waiting_too_long_is_no_verdict() {
        let now = Instant::now();
        let late = now + COUNTS + Duration::from_millis(1);
        let kept_out = Changes::default().leave_in(late, &admission(OLD, 3, now)).unwrap_err();
        assert_eq!(kept_out.code(), close::UNAVAILABLE);
    }

    #[test]
    fn a_change_is_kept_for_as_long_as_a_look_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut changes = Changes::default();
        changes.note(at(1), &change("a.lab", OLD, 5, true));
        changes.note(at(2), &change("b.lab", OLD, 6, false));
        changes.note(at(20), &change("b.lab", OLD, 7, true));
        let before = admission(OLD, 3, start);
        for seconds in 1..=40 {
            assert!(changes.leave_in(at(seconds), &before).is_err(), "{seconds} s");
            changes.note(at(seconds), &change(&format!("{seconds}.lab"), OLD, 8, false));
        }
        changes.note(at(45), &change("c.lab", OLD, 9, false));
        assert!(!changes.newest.contains_key("a.lab") && changes.newest.contains_key("b.lab"));
        changes.note(at(100), &change("c.lab", OLD, 10, false));
        assert_eq!((changes.newest.len(), changes.told.len()), (1, 1));
    }
}
