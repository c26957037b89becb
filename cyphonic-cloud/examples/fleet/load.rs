//! Nodes that ask for each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cyphonic_proto::nms::NmsTiming;
use tokio::task::JoinSet;

use crate::node::Node;

/// For the last answers to arrive, and for the NMS to give a set-up up: it waits for 2.5 s.
const LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// What came of asking.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// For how many milliseconds each answer was waited for.
    pub(crate) waited_ms: Vec<f64>,
    /// How many set-ups were begun by it: who asks while the other end does so joins that one.
    pub(crate) begun: usize,
}

/// For so long, `asking` nodes at a time each ask for another and, once answered, leave their place to the
/// next; all of them in turn, and none more often than the NMS lets it.
pub(crate) async fn ask(nodes: &Arc<Vec<Node>>, asking: usize, time: Duration) -> Result<Asked> {
    let end = Instant::now() + time;
    let mut places = JoinSet::<Result<Asked>>::new();
    for place in 0..asking.min(nodes.len()) {
        places.spawn(ask_in_turn(Arc::clone(nodes), place, asking, end));
    }
    let mut all = Asked::default();
    while let Some(asked) = places.join_next().await {
        let asked = asked.context("a node that asks panicked")??;
        all.waited_ms.extend(asked.waited_ms);
        all.begun += asked.begun;
    }
    Ok(all)
}

/// Of the nodes, every `step`th from `first` on.
async fn ask_in_turn(nodes: Arc<Vec<Node>>, first: usize, step: usize, end: Instant) -> Result<Asked> {
    let pause = Duration::from_secs(1) / NmsTiming::default().per_second;
    let mut all = Asked::default();
    for round in 0.. {
        let began = Instant::now();
        for asker in (first..nodes.len()).step_by(step) {
            // Another one each time, and never itself.
            let peer = (asker + 1 + (asker / step + round * step) % (nodes.len() - 1)) % nodes.len();
            let asked = Instant::now();
            if asked >= end {
                return Ok(all);
            }
            let direction = nodes[asker].ask_for(&nodes[peer].fqdn).await?;
            all.waited_ms.push(asked.elapsed().as_secs_f64() * 1e3);
            all.begun += usize::from(direction.initiator);
        }
        tokio::time::sleep_until((began + pause).into()).await;
    }
    Ok(all)
}

/// Waits until all nodes that were asked for have confirmed, each set-up once.
pub(crate) async fn settle(nodes: &[Node], setups: usize) -> Result<()> {
    let start = Instant::now();
    loop {
        let directed: usize = nodes.iter().map(Node::directed).sum();
        let withdrawn: usize = nodes.iter().map(Node::withdrawn).sum();
        ensure!(withdrawn == 0, "{withdrawn} of {setups} set-ups failed: the NMS has withdrawn them");
        if directed == setups {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "{directed} of {setups} set-ups were confirmed by the other end");
        tokio::time::sleep(LOOK).await;
    }
}
