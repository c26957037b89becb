//! The network cards that carry the node's packets: what they can do, and which of them give packets to the
//! ring.
//!
//! Cards come and go with cables, roaming and virtual machines. What a card can do is asked of the kernel,
//! without touching it, once for as long as it exists; a card that refused is not bothered again either.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cyphonic_dataplane::netdevice::{self, XdpFeatures};
use cyphonic_dataplane::ring::Underlay;
use cyphonic_dataplane::xsk::CopyMode;

use super::datapath::Classifier;
use crate::config::UnderlayChoice;
use crate::control::report::CardReport;
use crate::netlink::{NetworkCard, NetworkCards};

/// Drivers of virtual machines' cards. What they do without copying still ends in the host's copy, and any
/// XDP program costs them the super-packets that the host hands over.
const VIRTUAL_DRIVERS: [&str; 5] = ["virtio_net", "xen-netfront", "vmxnet3", "hv_netvsc", "veth"];

/// What a card can do.
#[derive(Debug, Clone)]
pub(super) struct Probed {
    name: String,
    driver: Option<String>,
    /// Nothing where the kernel does not tell.
    features: Option<XdpFeatures>,
}

impl Probed {
    pub(super) fn of(name: &str) -> Self {
        let features = match netdevice::xdp_features(name) {
            Ok(features) => Some(features),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::debug!(%error, interface = name, "a network card's abilities are unknown");
                }
                None
            }
        };
        Self { name: name.to_owned(), driver: netdevice::driver(name).ok(), features }
    }

    /// Whether it spares the copy that AF_XDP costs otherwise; why not.
    pub(super) fn zero_copy(&self) -> Result<(), String> {
        let Some(features) = self.features else {
            return Err("the kernel does not tell what the driver can (Linux 6.3 does)".to_owned());
        };
        match &self.driver {
            _ if !features.native => Err("its driver has no native XDP".to_owned()),
            Some(driver) if VIRTUAL_DRIVERS.contains(&driver.as_str()) => {
                Err(format!("{driver} is virtual: packets are copied in any case"))
            }
            _ if !features.zero_copy => Err("its driver cannot do AF_XDP without copying".to_owned()),
            _ => Ok(()),
        }
    }

    fn report(&self, receives_by: &str, why: String) -> CardReport {
        CardReport {
            name: self.name.clone(),
            driver: self.driver.clone(),
            native_xdp: self.features.map(|features| features.native),
            zero_copy: self.features.map(|features| features.zero_copy),
            receives_by: receives_by.to_owned(),
            why,
        }
    }
}

/// How the ring `auto` is chosen: the ring `xdp` where a card spares it the copies, else the ring for bulk
/// transfers. Why, in either case.
///
/// # Errors
/// Why not `xdp`.
pub(super) fn worth_xdp(cards: &[Probed], no_programs: Option<&String>) -> Result<String, String> {
    if let Some(why) = no_programs {
        return Err(format!("AF_XDP needs eBPF: {why}"));
    }
    let found: Vec<_> = cards.iter().map(|card| (card, card.zero_copy())).collect();
    if let Some((card, _)) = found.iter().find(|(_, zero_copy)| zero_copy.is_ok()) {
        return Ok(format!("{} does AF_XDP without copying", card.name));
    }
    let why: Vec<_> = found
        .iter()
        .filter_map(|(card, no)| Some(format!("{}: {}", card.name, no.as_ref().err()?)))
        .collect();
    Err(if why.is_empty() { "no network card is up yet".to_owned() } else { why.join(", ") })
}

/// See the module.
pub(super) struct Cards {
    choice: UnderlayChoice,
    /// What takes packets from cards, and its programs: for the ring `xdp` alone.
    ring: Option<(Underlay, Arc<Classifier>)>,
    probed: HashMap<u32, Probed>,
    /// Why a card gives nothing, though it was asked to.
    refused: HashMap<u32, String>,
    reports: Arc<Mutex<Vec<CardReport>>>,
}

impl Cards {
    pub(super) fn new(choice: UnderlayChoice, ring: Option<(Underlay, Arc<Classifier>)>) -> Self {
        Self { choice, ring, probed: HashMap::new(), refused: HashMap::new(), reports: Arc::default() }
    }

    /// What `status` says of them.
    pub(super) fn reports(&self) -> Arc<Mutex<Vec<CardReport>>> {
        Arc::clone(&self.reports)
    }

    /// Takes note of the cards that are there now. It may wait for drivers.
    pub(super) fn update(&mut self, cards: &NetworkCards) {
        self.probed.retain(|index, _| cards.existing.contains(index));
        self.refused.retain(|index, _| cards.existing.contains(index));
        for card in &cards.usable {
            self.probed.entry(card.index).or_insert_with(|| Probed::of(&card.name));
        }
        let wanted = cards.usable.iter().filter(|card| self.mode(card).is_ok()).map(|card| card.index);
        let changes = Changes::of(&self.attached(), &cards.existing, wanted);
        if let Some((underlay, _)) = &mut self.ring {
            changes.detach.iter().for_each(|index| underlay.detach(*index));
        }
        let attach = cards.usable.iter().filter(|card| changes.attach.contains(&card.index));
        attach.for_each(|card| self.attach(card));
        *lock(&self.reports) = cards.usable.iter().filter_map(|card| self.report(card)).collect();
    }

    fn attached(&self) -> Vec<u32> {
        self.ring.iter().flat_map(|(underlay, _)| underlay.cards().map(|card| card.index)).collect()
    }

    /// How a card gives its packets to AF_XDP sockets.
    ///
    /// # Errors
    /// Why not at all.
    fn mode(&self, card: &NetworkCard) -> Result<CopyMode, String> {
        if self.ring.is_none() {
            return Err("this ring's super-packets come by it".to_owned());
        }
        let mode = match (self.choice, self.probed.get(&card.index).map(Probed::zero_copy)) {
            (UnderlayChoice::Port, _) => return Err("as configured".to_owned()),
            (UnderlayChoice::Auto, Some(Err(why))) => return Err(why),
            (UnderlayChoice::Auto, _) => CopyMode::ZeroCopy,
            (UnderlayChoice::Xdp, _) => CopyMode::Auto,
        };
        self.refused.get(&card.index).map_or(Ok(mode), |why| Err(why.clone()))
    }

    fn attach(&mut self, card: &NetworkCard) {
        let Ok(mode) = self.mode(card) else { return };
        let Some((underlay, classifier)) = &mut self.ring else { return };
        match underlay.attach(&mut classifier.lock(), &card.name, mode) {
            Ok(used) => {
                tracing::info!(card = %used, "tunnels' packets come from a network card by AF_XDP");
            }
            Err(error) => {
                tracing::warn!(%error, card = card.name, "a network card's packets come by the UDP port");
                self.refused.insert(card.index, error.to_string());
            }
        }
    }

    fn report(&self, card: &NetworkCard) -> Option<CardReport> {
        let probed = self.probed.get(&card.index)?;
        let mut used = self.ring.iter().flat_map(|(underlay, _)| underlay.cards());
        let (by, why) = match used.find(|used| used.index == card.index) {
            Some(used) if used.zero_copy => ("af_xdp-zero-copy", "it need not copy".to_owned()),
            Some(_) => ("af_xdp", "as configured, though it copies".to_owned()),
            None => ("port", self.mode(card).err().unwrap_or_default()),
        };
        Some(probed.report(by, why))
    }
}

/// What is to be done about cards.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    detach: Vec<u32>,
    attach: Vec<u32>,
}

impl Changes {
    /// A card that is attached is kept for as long as it exists: many drivers set the link up anew when a
    /// program comes or goes, so that a card without a carrier, and for a while without addresses, is
    /// what attaching itself has made.
    fn of(attached: &[u32], existing: &HashSet<u32>, wanted: impl Iterator<Item = u32>) -> Self {
        Self {
            detach: attached.iter().copied().filter(|index| !existing.contains(index)).collect(),
            attach: wanted.filter(|index| !attached.contains(index)).collect(),
        }
    }
}

/// Whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(driver: &str, features: Option<(bool, bool)>) -> Probed {
        let features = features.map(|(native, zero_copy)| XdpFeatures { native, zero_copy });
        Probed { name: "eth0".to_owned(), driver: Some(driver.to_owned()), features }
    }

    #[test]
    fn only_a_real_card_without_copies_makes_it_the_ring_xdp() {
        let cards = [
            (card("ice", Some((true, true))), true, "eth0 does AF_XDP without copying"),
            (card("virtio_net", Some((true, true))), false, "virtio_net is virtual"),
            (card("veth", Some((true, false))), false, "veth is virtual"),
            (card("tg3", Some((false, false))), false, "no native XDP"),
            (card("r8169", Some((true, false))), false, "cannot do AF_XDP without copying"),
            (card("ice", None), false, "Linux 6.3"),
        ];
        for (card, worth, says) in cards {
            let chosen = worth_xdp(std::slice::from_ref(&card), None);
            assert_eq!(chosen.is_ok(), worth, "{card:?}");
            let why = chosen.unwrap_or_else(|why| why);
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn without_programs_or_cards_the_reason_is_that() {
        let ice = [card("ice", Some((true, true)))];
        let why = worth_xdp(&ice, Some(&"not permitted".to_owned())).unwrap_err();
        assert!(why.contains("not permitted"), "{why}");
        assert!(worth_xdp(&[], None).unwrap_err().contains("no network card"));
        let two = [card("tg3", Some((false, false))), card("ice", Some((true, true)))];
        assert!(worth_xdp(&two, None).is_ok(), "one is enough");
    }

    #[test]
    fn cards_of_a_ring_that_takes_none_are_reported_all_the_same() {
        let mut cards = Cards::new(UnderlayChoice::Auto, None);
        let reports = cards.reports();
        let nosuch = NetworkCard { name: "nosuch0".to_owned(), index: 9 };
        let present =
            NetworkCards { usable: vec![nosuch], existing: HashSet::from([9]), ..Default::default() };
        cards.update(&present);
        let found = lock(&reports).clone();
        assert_eq!((found.len(), found[0].receives_by.as_str(), found[0].native_xdp), (1, "port", None));
        cards.update(&NetworkCards::default());
        assert!(lock(&reports).is_empty());
    }

    #[test]
    fn a_card_that_loses_its_carrier_for_a_while_is_attached_once_and_not_detached() {
        let mut attached = Vec::new();
        let mut done = Vec::new();
        // Attaching resets the link: usable, there without a carrier, usable again. Then it is deleted.
        for (existing, usable) in [(&[1, 9][..], &[9][..]), (&[1, 9], &[]), (&[1, 9], &[9]), (&[1], &[])] {
            let existing = existing.iter().copied().collect();
            let changes = Changes::of(&attached, &existing, usable.iter().copied());
            attached.retain(|index| !changes.detach.contains(index));
            attached.extend(&changes.attach);
            done.push((changes.attach, changes.detach));
        }
        assert_eq!(done, [(vec![9], vec![]), (vec![], vec![]), (vec![], vec![]), (vec![], vec![9])]);
    }

    #[test]
    fn a_card_without_a_carrier_is_not_attached_and_a_new_one_of_the_same_name_is() {
        let existing = HashSet::from([1, 3, 4]);
        let changes = Changes::of(&[2, 3], &existing, [3, 4].into_iter());
        assert_eq!(changes, Changes { detach: vec![2], attach: vec![4] });
        let changes = Changes::of(&[], &existing, std::iter::empty());
        assert_eq!(changes, Changes { detach: vec![], attach: vec![] });
    }
}
