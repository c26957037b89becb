//! Notices that the host's addresses, links or routes changed: it roamed, or a cable was pulled.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::NetlinkError;

/// One change of network is a burst of messages; the burst's end is what counts.
const QUIET: Duration = Duration::from_millis(100);

/// A host whose addresses never stop changing is still told of.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// A source of "something changed": what, one reads from [`super::Netlink::candidates`].
#[derive(Debug)]
pub struct NetworkWatch {
    changed: Arc<Notify>,
    // Aborts its tasks when dropped.
    _tasks: JoinSet<()>,
}

impl NetworkWatch {
    /// Subscribes. Needs a tokio runtime.
    pub fn start() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Connect)?;
        let changed = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let notify = changed.clone();
        // Drains the channel at once and keeps one bit, so that a flood of messages costs no memory.
        tasks.spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if is_change(&message) {
                    notify.notify_one();
                }
            }
        });
        Ok(Self { changed, _tasks: tasks })
    }

    /// Returns after the next change, once it has been quiet for a moment.
    pub async fn changed(&mut self) {
        self.changed.notified().await;
        let deadline = Instant::now() + MAX_DELAY;
        loop {
            tokio::select! {
                () = sleep(QUIET) => return,
                again = timeout_at(deadline, self.changed.notified()) => {
                    if again.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn is_change(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    matches!(
        &message.payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_)
                | RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
        )
    )
}
