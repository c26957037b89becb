//! Enrolments: what devices make of tokens.

use cyphonic_proto::identity::KeyHash;
use cyphonic_proto::token::SecretHash;
use rusqlite::{OptionalExtension, Transaction, params};

use super::certificates::{self, IssuedCertificate};
use super::tokens::{self, StoredToken};
use super::{EnrolmentRefused, Register, RegisterError, UnixSeconds, devices, keys};
use crate::names::NamePattern;

/// Who enrols.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Of its key.
    pub spki_sha256: &'a KeyHash,
    /// What it asks to be called: for tokens that leave that open.
    pub name: &'a str,
    /// The zone that names are in.
    pub zone: &'a str,
}

/// A token that was turned into a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The certificate.
    pub issued: IssuedCertificate,
    /// The token's number.
    pub token: i64,
    /// What has become of the name.
    pub outcome: Enrolled,
}

/// What an enrolment has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// The name is new.
    New,
    /// Another device had the name, or the same one before it was revoked.
    Replaced,
    /// Nothing: it was answered again.
    Again,
}

impl Register {
    /// Turns a token into a certificate: once for each of its uses.
    ///
    /// `issue` makes the certificate for the token's name, or the one that the asker chooses within the token's
    /// pattern; it runs inside the transaction that counts the use and stores the certificate and the device. The same
    /// key asking again, also after the token's end, gets the same certificate: its first answer was lost on the
    /// way.
    ///
    /// # Errors
    /// The token is unknown, revoked, expired or used up, the asker's name does not fit it or is taken, the key was
    /// revoked or is another device's, or the register or `issue` failed. Nothing was changed.
    pub fn enrol(
        &self,
        secret_hash: &SecretHash,
        asker: Asker<'_>,
        now: UnixSeconds,
        issue: impl FnOnce(&str) -> Result<IssuedCertificate, String>,
    ) -> Result<Enrolment, EnrolmentRefused> {
        let spki_sha256 = asker.spki_sha256;
        self.write(|transaction| {
            let token =
                tokens::find_by_hash(transaction, secret_hash)?.ok_or(EnrolmentRefused::UnknownToken)?;
            let name = token.name_for(asker);
            if let Some(used) = find(transaction, &token, spki_sha256)? {
                let is_another = |name: &String| *name != used.fqdn;
                if name.as_ref().is_ok_and(is_another) {
                    // As from an image that carries a key: each of its devices would be the first one.
                    let holder =
                        devices::find(transaction, &used.fqdn)?.filter(|held| held.revoked_at.is_none());
                    let (presented, holder) = (token.presented(None), holder.map(|held| held.fqdn));
                    return Err(EnrolmentRefused::KeyInUse { presented, holder });
                }
                let issued = repeat(transaction, &token, &used, spki_sha256)?;
                return Ok(Enrolment { issued, token: token.id, outcome: Enrolled::Again });
            }
            if token.is_revoked {
                return Err(EnrolmentRefused::RevokedToken(token.presented(None)));
            }
            if token.used >= token.uses {
                return Err(match token.uses {
                    1 => EnrolmentRefused::UsedToken(token.presented(None)),
                    _ => EnrolmentRefused::UsedUpToken(token.presented(None)),
                });
            }
            if token.expires_at <= now {
                return Err(EnrolmentRefused::ExpiredToken(token.presented(None)));
            }
            let fqdn = name
                .map_err(|reason| EnrolmentRefused::NameUnfit { presented: token.presented(None), reason })?;
            let presented = || token.presented(Some(&fqdn));
            let is_new = devices::find(transaction, &fqdn)?.is_none();
            if !is_new && !token.replaces {
                return Err(EnrolmentRefused::NameTaken(presented()));
            }
            if fqdn != token.name && tokens::is_kept(transaction, &fqdn, now)? {
                return Err(EnrolmentRefused::NameKept(presented()));
            }
            if keys::is_revoked(transaction, &fqdn, spki_sha256)? {
                return Err(EnrolmentRefused::RevokedKey(presented()));
            }
            let holder = keys::other_holder(transaction, &fqdn, spki_sha256)?;
            if holder.is_some() || keys::was_revoked(transaction, spki_sha256)? {
                return Err(EnrolmentRefused::KeyInUse { presented: presented(), holder });
            }
            let issued = issue(&fqdn).map_err(EnrolmentRefused::Issue)?;
            certificates::store(transaction, &issued, now)?;
            devices::enrol(transaction, &issued, Some(token.id), now)?;
            note(transaction, token.id, spki_sha256, &issued)?;
            let outcome = if is_new { Enrolled::New } else { Enrolled::Replaced };
            Ok(Enrolment { issued, token: token.id, outcome })
        })
    }
}

impl StoredToken {
    /// The name that it gives to who asks, or why it gives none.
    fn name_for(&self, asker: Asker<'_>) -> Result<String, String> {
        match NamePattern::is_meant(&self.name) {
            false => Ok(self.name.clone()),
            true => NamePattern::parse(&self.name, asker.zone)?.name_for(asker.name, asker.zone),
        }
    }
}

/// One use of a token.
struct Use {
    fqdn: String,
    /// The serial number of what it was answered with, while that is on record.
    certificate: Option<Vec<u8>>,
}

/// The use that a key has made of a token.
fn find(
    transaction: &Transaction<'_>,
    token: &StoredToken,
    spki_sha256: &KeyHash,
) -> Result<Option<Use>, RegisterError> {
    let mut statement = transaction
        .prepare_cached("SELECT fqdn, certificate FROM enrolments WHERE token = ?1 AND spki_sha256 = ?2")?;
    let found = statement.query_row(params![token.id, spki_sha256.0], |row| {
        Ok(Use { fqdn: row.get(0)?, certificate: row.get(1)? })
    });
    Ok(found.optional()?)
}

/// Counts a use of a token.
fn note(
    transaction: &Transaction<'_>,
    token: i64,
    spki_sha256: &KeyHash,
    issued: &IssuedCertificate,
) -> Result<(), RegisterError> {
    transaction.execute(
        "INSERT INTO enrolments (token, spki_sha256, fqdn, certificate) VALUES (?1, ?2, ?3, ?4)",
        params![token, spki_sha256.0, issued.fqdn, issued.serial],
    )?;
    transaction.execute("UPDATE tokens SET used = used + 1 WHERE id = ?1", [token])?;
    Ok(())
}

/// The answer to who has used the token: the same certificate for the same key, as long as it is still the device's.
fn repeat(
    transaction: &Transaction<'_>,
    token: &StoredToken,
    used: &Use,
    spki_sha256: &KeyHash,
) -> Result<IssuedCertificate, EnrolmentRefused> {
    let presented = || token.presented(Some(&used.fqdn));
    if keys::is_revoked(transaction, &used.fqdn, spki_sha256)? {
        return Err(EnrolmentRefused::RevokedUser(presented()));
    }
    let device = devices::find(transaction, &used.fqdn)?.ok_or(EnrolmentRefused::UnknownToken)?;
    if device.revoked_at.is_some() || !device.has_key(spki_sha256) {
        return Err(EnrolmentRefused::UsedToken(presented()));
    }
    let serial = used.certificate.as_deref().ok_or(EnrolmentRefused::UnknownToken)?;
    Ok(certificates::by_serial(transaction, serial, &device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::fixture::{
        KEY, NOW, OTHER_KEY, SECRET, asker, certificate, register, secret, token,
    };
    use crate::register::{NewToken, TokenState};

    #[test]
    fn a_retry_with_the_same_key_gets_the_same_certificate() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let first = register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let again = register.enrol(&SECRET, asker(&KEY), NOW + 1, |_| panic!("issued twice")).unwrap();
        assert_eq!((&first.issued, first.token), (&again.issued, again.token));
        assert_eq!((first.outcome, again.outcome), (Enrolled::New, Enrolled::Again));
    }

    #[test]
    fn a_retry_after_the_tokens_end_gets_it_too_and_a_revoked_devices_gets_the_reason() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let first = register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let again = register.enrol(&SECRET, asker(&KEY), NOW + 10_000, |_| panic!("issued twice")).unwrap();
        assert_eq!((first.issued, again.outcome), (again.issued, Enrolled::Again));
        register.revoke_device("press-7.plant.example", NOW + 1).unwrap();
        let revoked = register.enrol(&SECRET, asker(&KEY), NOW + 2, |_| panic!("issued twice"));
        assert!(matches!(revoked, Err(EnrolmentRefused::RevokedUser(_))), "{revoked:?}");
    }

    #[test]
    fn another_key_is_refused_after_use() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        let refused = register.enrol(&SECRET, asker(&OTHER_KEY), NOW, |_| panic!("issued twice"));
        assert!(matches!(refused, Err(EnrolmentRefused::UsedToken(_))));
    }

    #[test]
    fn an_unknown_or_expired_token_issues_nothing() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let unknown = register.enrol(&secret(9), asker(&KEY), NOW, |_| panic!("issued"));
        assert!(matches!(unknown, Err(EnrolmentRefused::UnknownToken)));
        let expired = register.enrol(&SECRET, asker(&KEY), NOW + 3600, |_| panic!("issued"));
        assert!(matches!(expired, Err(EnrolmentRefused::ExpiredToken(_))));
        assert!(register.devices().unwrap().is_empty());
    }

    #[test]
    fn a_failed_issue_leaves_the_token_open() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        let failed = register.enrol(&SECRET, asker(&KEY), NOW, |_| Err("no key".into()));
        assert!(matches!(failed, Err(EnrolmentRefused::Issue(_))));
        assert_eq!(register.tokens(NOW).unwrap()[0].state, TokenState::Open);
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        assert_eq!(register.tokens(NOW).unwrap()[0].state, TokenState::Used);
    }

    #[test]
    fn a_name_in_use_needs_a_replacing_token() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.create_token(&token(secret(8), false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        assert!(matches!(
            register.create_token(&token(secret(9), false), NOW),
            Err(RegisterError::NameTaken(_))
        ));
        let second = register.enrol(&secret(8), asker(&OTHER_KEY), NOW, |_| panic!("issued"));
        assert!(matches!(second, Err(EnrolmentRefused::NameTaken(_))));
        register.create_token(&token(secret(9), true), NOW).unwrap();
        let replaced =
            register.enrol(&secret(9), asker(&OTHER_KEY), NOW, |_| Ok(certificate(2, OTHER_KEY))).unwrap();
        assert_eq!(replaced.outcome, Enrolled::Replaced);
        let device = register.device("press-7.plant.example").unwrap().unwrap();
        assert!(device.has_key(&OTHER_KEY) && !device.has_key(&KEY));
    }

    #[test]
    fn a_replaced_device_cannot_repeat_its_enrolment() {
        let (_dir, register) = register();
        register.create_token(&token(SECRET, false), NOW).unwrap();
        register.enrol(&SECRET, asker(&KEY), NOW, |_| Ok(certificate(1, KEY))).unwrap();
        register.create_token(&token(secret(9), true), NOW).unwrap();
        register.enrol(&secret(9), asker(&OTHER_KEY), NOW, |_| Ok(certificate(2, OTHER_KEY))).unwrap();
        let stale = register.enrol(&SECRET, asker(&KEY), NOW, |_| panic!("issued"));
        assert!(matches!(stale, Err(EnrolmentRefused::UsedToken(_))));
    }

    const CAMERAS: &str = "camera-*.gate.example";

    fn many(uses: u32) -> NewToken {
        NewToken { name: CAMERAS.into(), uses, ..token(SECRET, false) }
    }

    fn key(n: u8) -> KeyHash {
        KeyHash([n; 32])
    }

    /// What a device of this key gets that asks to be called so.
    fn enrol_as(register: &Register, name: &str, n: u8) -> Result<String, EnrolmentRefused> {
        let key = key(n);
        let asker = Asker { spki_sha256: &key, name, zone: "example" };
        let issue = |fqdn: &str| {
            let virtual_address = std::net::Ipv6Addr::from([n; 16]);
            Ok(IssuedCertificate { fqdn: fqdn.into(), virtual_address, ..certificate(n, key) })
        };
        register.enrol(&SECRET, asker, NOW, issue).map(|enrolment| enrolment.issued.fqdn)
    }

    #[test]
    fn a_token_for_many_enrols_so_many_by_the_names_that_they_ask_for() {
        let (_dir, register) = register();
        let number = register.create_token(&many(2), NOW).unwrap();
        assert_eq!(enrol_as(&register, "camera-1", 1).unwrap(), "camera-1.gate.example");
        let token = register.tokens(NOW).unwrap().remove(0);
        assert_eq!(
            (token.state, token.used, register.count_open_tokens(NOW).unwrap()),
            (TokenState::Open, 1, 1)
        );
        // Whose answer was lost, and who has no name by now that fits.
        for name in ["camera-1", "raspberrypi", ""] {
            assert_eq!(enrol_as(&register, name, 1).unwrap(), "camera-1.gate.example");
        }
        assert_eq!(enrol_as(&register, "camera-2", 2).unwrap(), "camera-2.gate.example");
        let token = register.tokens(NOW).unwrap().remove(0);
        assert_eq!(
            (token.state, token.used, register.count_open_tokens(NOW).unwrap()),
            (TokenState::Used, 2, 0)
        );
        let late = enrol_as(&register, "camera-3", 3);
        assert!(matches!(late, Err(EnrolmentRefused::UsedUpToken(_))), "{late:?}");
        assert_eq!(enrol_as(&register, "camera-2", 2).unwrap(), "camera-2.gate.example");
        let by_token = |device: devices::DeviceRecord| (device.fqdn, device.token == Some(number));
        let known: Vec<_> = register.devices().unwrap().into_iter().map(by_token).collect();
        assert_eq!(known, [("camera-1.gate.example".into(), true), ("camera-2.gate.example".into(), true)]);
    }

    #[test]
    fn a_token_for_many_gives_no_name_that_does_not_fit_or_is_anothers() {
        let (_dir, register) = register();
        register.create_token(&many(9), NOW).unwrap();
        for name in ["", "press-1", "camera-1.hall", "camera-"] {
            let refused = enrol_as(&register, name, 1);
            assert!(
                matches!(&refused, Err(EnrolmentRefused::NameUnfit { presented, .. }) if presented.granted == CAMERAS),
                "{name}: {refused:?}"
            );
        }
        enrol_as(&register, "camera-1", 1).unwrap();
        for revoked in [false, true] {
            if revoked {
                register.revoke_device("camera-1.gate.example", NOW).unwrap();
            }
            let taken = enrol_as(&register, "camera-1", 2);
            assert!(
                matches!(&taken, Err(EnrolmentRefused::NameTaken(of)) if of.name() == "camera-1.gate.example"),
                "{taken:?}"
            );
        }
        let back = enrol_as(&register, "camera-1", 1);
        assert!(matches!(back, Err(EnrolmentRefused::RevokedUser(_))), "{back:?}");
        let back = enrol_as(&register, "camera-2", 1);
        assert!(matches!(back, Err(EnrolmentRefused::KeyInUse { .. })), "under no other name: {back:?}");
        let token = register.tokens(NOW).unwrap().remove(0);
        assert_eq!(token.used, 1, "refusals are no uses");
    }

    #[test]
    fn what_is_left_of_a_token_for_many_can_be_revoked_and_its_devices_stay() {
        let (_dir, register) = register();
        register.create_token(&many(9), NOW).unwrap();
        enrol_as(&register, "camera-1", 1).unwrap();
        assert_eq!(register.revoke_device("camera-1.gate.example", NOW).unwrap().void_tokens, 0);
        enrol_as(&register, "camera-2", 2).unwrap();
        assert_eq!(register.revoke_tokens(CAMERAS, NOW).unwrap(), 1);
        let refused = enrol_as(&register, "camera-3", 3);
        assert!(matches!(refused, Err(EnrolmentRefused::RevokedToken(_))), "{refused:?}");
        assert_eq!(
            enrol_as(&register, "camera-2", 2).unwrap(),
            "camera-2.gate.example",
            "its answer was lost"
        );
    }

    /// Of an image that carries a key, each device would be the first one.
    #[test]
    fn two_devices_with_one_key_and_two_names_are_told_apart() {
        let (_dir, register) = register();
        register.create_token(&many(9), NOW).unwrap();
        enrol_as(&register, "camera-1", 1).unwrap();
        let second = enrol_as(&register, "camera-2", 1);
        let Err(EnrolmentRefused::KeyInUse { holder, .. }) = &second else { panic!("{second:?}") };
        assert_eq!(holder.as_deref(), Some("camera-1.gate.example"));
        // It makes a key of its own.
        assert_eq!(enrol_as(&register, "camera-2", 2).unwrap(), "camera-2.gate.example");
        register.revoke_device("camera-1.gate.example", NOW).unwrap();
        let third = enrol_as(&register, "camera-3", 1);
        assert!(matches!(third, Err(EnrolmentRefused::KeyInUse { holder: None, .. })), "{third:?}");
    }

    #[test]
    fn a_token_for_many_takes_no_name_for_which_there_is_a_token() {
        let (_dir, register) = register();
        register.create_token(&many(9), NOW).unwrap();
        let kept = NewToken { name: "camera-1.gate.example".into(), ..token(secret(8), false) };
        register.create_token(&kept, NOW).unwrap();
        let refused = enrol_as(&register, "camera-1", 1);
        assert!(matches!(refused, Err(EnrolmentRefused::NameKept(_))), "{refused:?}");
        register.revoke_tokens("camera-1.gate.example", NOW).unwrap();
        enrol_as(&register, "camera-1", 1).unwrap();
    }
}
