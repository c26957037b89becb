//! What follows host and cloud for as long as the engine runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use super::EngineHandle;
use super::cards::Cards;
use super::guards::Guards;
use super::network::{self, Followed, Networks};
use crate::complaints::Complaints;
use crate::config::{CloudAddress, resolve_all};
use crate::netlink::{Netlink, NetworkWatch};

/// Between look-ups of the cloud's names while they do not resolve, and once they do.
const CLOUD_UNKNOWN: Duration = Duration::from_secs(5);
const CLOUD_KNOWN: Duration = Duration::from_secs(300);

/// Cards are looked at this long after a change: nothing waits for them.
const CARDS_LATER: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Followers {
    tasks: JoinSet<()>,
    cards: JoinHandle<()>,
    end_cards: oneshot::Sender<()>,
}

impl Followers {
    /// Those that tell the engine of cloud and networks, and the packet path of network cards.
    pub(super) fn start(
        handle: &EngineHandle,
        netlink: &Arc<Netlink>,
        cloud: Vec<CloudAddress>,
        networks: Networks,
        (cards, guards): (Cards, Guards),
    ) -> Self {
        let followed = networks.followed.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_cloud(handle.clone(), cloud));
        tasks.spawn(network::follow(handle.clone(), Arc::clone(netlink), networks));
        tasks.spawn(network::follow_sleep(handle.clone()));
        let (end_cards, ended) = oneshot::channel();
        let cards = tokio::spawn(follow_cards((cards, guards), Arc::clone(netlink), followed, ended));
        Self { tasks, cards, end_cards }
    }

    /// One more.
    pub(super) fn add(&mut self, follower: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(follower);
    }

    /// Ends all of them. To be done before the ring ends: network cards are left as they were found.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
        // Not aborted, since a driver may be waited for.
        drop(self.end_cards);
        if let Err(error) = self.cards.await {
            tracing::warn!(%error, "network cards may not be as they were found");
        }
    }
}

/// Looks the cloud's names up again and again: a device may boot before its network, and a cloud may move.
async fn follow_cloud(handle: EngineHandle, cloud: Vec<CloudAddress>) {
    if cloud.iter().all(CloudAddress::is_literal) {
        return;
    }
    let mut complaints = Complaints::default();
    loop {
        let addresses = resolve_all(&cloud, &mut complaints).await;
        let wait = if addresses.is_empty() { CLOUD_UNKNOWN } else { CLOUD_KNOWN };
        handle.set_cloud(addresses).await;
        tokio::time::sleep(wait).await;
    }
}

/// Tells the packet path, and what guards addresses, of the network cards, now and whenever they change, until
/// `ended`. Gives the cards back.
async fn follow_cards(
    (mut cards, mut guards): (Cards, Guards),
    netlink: Arc<Netlink>,
    followed: Followed,
    mut ended: oneshot::Receiver<()>,
) {
    guards.leave_out(&followed.ends);
    let mut watch = match NetworkWatch::start(followed.ends, followed.overlay) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "changes of this host's network cards will not be noticed");
            None
        }
    };
    loop {
        match netlink.cards(followed.overlay, &followed.interface).await {
            Ok(present) => {
                let update = move || {
                    guards.update(&present);
                    cards.update(&present);
                    (cards, guards)
                };
                // It may wait for drivers.
                let Ok(updated) = tokio::task::spawn_blocking(update).await else { return };
                (cards, guards) = updated;
            }
            Err(error) => tracing::warn!(%error, "this host's network cards cannot be listed"),
        }
        let changed = async {
            match &mut watch {
                Some(watch) => {
                    watch.changed().await;
                    // Whoever follows addresses is to be first.
                    tokio::time::sleep(CARDS_LATER).await;
                }
                // The cards live as long as this.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            _ = &mut ended => break,
        }
    }
    // It may wait for drivers, too.
    let _ = tokio::task::spawn_blocking(move || drop((cards, guards))).await;
}
