//! The virtual interface, kept as it has to be: its address and the overlay's route, and what each tunnel
//! carries.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cyphonic_proto::node::first_inner;
use tokio::sync::watch;

use super::PeerMtus;
use super::datapath::Ground;
use crate::netlink::{Interface, Netlink, NetlinkError, NetworkWatch, Placement, Sizes};

/// Where the interface could not be configured again it is tried after this: nothing may tell when it can be.
const AGAIN: Duration = Duration::from_secs(2);

/// What is wrong with the interface at present, for `status`.
#[derive(Clone, Debug, Default)]
pub struct Lost(Arc<Mutex<Option<String>>>);

impl Lost {
    /// Why it carries nothing; none if it is as it should be.
    pub fn why(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of what a look at it came to: `true` is that it had to be configured again.
    fn note(&self, outcome: &Result<bool, NetlinkError>) {
        let mut why = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was = why.take();
        match outcome {
            Ok(true) => tracing::warn!(
                "somebody took address or routes from the virtual interface: it was configured again"
            ),
            Ok(false) => {}
            Err(error) => {
                let error = error.to_string();
                if was.as_ref() != Some(&error) {
                    tracing::error!(error, "the virtual interface cannot be configured anew: will try again");
                }
                *why = Some(error);
            }
        }
    }
}

/// Gives the new interface its address, routes and MTU. Returns it, and what keeps them as they have to be.
pub(super) async fn configure(
    netlink: &Netlink,
    name: &str,
    placement: Placement,
    ground: &Ground,
) -> Result<(Interface, Sizes), NetlinkError> {
    let first = first_inner(ground.most_inner);
    let mut interface = netlink.configure(name, placement, u32::from(first)).await?;
    let sizes = Sizes::new(name.to_owned(), &interface, placement, first);
    let mut sizes = sizes.receiving(ground.least_mtu());
    sizes.apply(netlink, &PeerMtus::new()).await?;
    interface.mtu = u32::from(sizes.interface_mtu());
    Ok((interface, sizes))
}

/// Brings every change to the host, and back what the interface `index` loses, until the engine ends.
pub(super) async fn follow(
    index: u32,
    mut sizes: Sizes,
    netlink: Arc<Netlink>,
    mut changes: watch::Receiver<PeerMtus>,
    lost: Lost,
) {
    let mut losses = match NetworkWatch::of_losses(index) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "what is taken from the virtual interface will not be noticed");
            None
        }
    };
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = touched(&mut losses) => lost.note(&sizes.restore(&netlink).await),
            () = tokio::time::sleep(AGAIN), if lost.why().is_some() => lost.note(&sizes.restore(&netlink).await),
        }
        if lost.why().is_some() {
            continue;
        }
        let wanted = changes.borrow_and_update().clone();
        if let Err(error) = sizes.apply(&netlink, &wanted).await {
            // Packet Too Big does it as well, a packet later.
            tracing::warn!(%error, "the host was not told what a tunnel carries");
            // Perhaps the interface has lost what that stands on.
            lost.note(&sizes.restore(&netlink).await);
        }
    }
}

async fn touched(losses: &mut Option<NetworkWatch>) {
    match losses {
        Some(watch) => drop(watch.changed().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_until_it_is_back() {
        let lost = Lost::default();
        lost.note(&Ok(false));
        assert_eq!(lost.why(), None);
        lost.note(&Err(NetlinkError::NoInterface { name: "cyph0".into() }));
        assert!(lost.why().is_some_and(|why| why.contains("cyph0")));
        lost.note(&Ok(true));
        assert_eq!(lost.why(), None);
    }
}
