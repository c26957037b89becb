//! One look: a probe of each IP version, until nothing more can be learnt.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyphonic_dataplane::udp::{Transmit, UdpPort};
use cyphonic_proto::nat::Family;
use cyphonic_proto::netcheck::{Findings, Plan, Probe, Socket};
use tokio::sync::mpsc;

use super::sockets::{Heard, Sockets};
use super::{Arrived, News};

/// See the module. Ends when both probes are done.
pub(super) async fn look<R, F>(
    port: Arc<UdpPort>,
    mut arrived: mpsc::Receiver<Arrived>,
    servers: Vec<SocketAddr>,
    own: Vec<SocketAddr>,
    report: R,
) where
    R: Fn(News) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (mut sockets, mut heard) = Sockets::new(Arc::clone(&port));
    let probe = |family| {
        let plan = Plan { family, servers: servers.clone(), own: own.clone() };
        (family, Probe::new(plan, rand::random(), Instant::now()))
    };
    let mut probes = Family::ALL.map(probe);
    let mut told = Told::default();
    loop {
        for (family, probe) in &mut probes {
            send_all(&port, &mut sockets, *family, probe).await;
        }
        for news in told.what_is_new(&probes) {
            report(news).await;
        }
        if probes.iter().all(|(_, probe)| probe.is_done()) {
            return;
        }
        let next = probes.iter().filter_map(|(_, probe)| probe.poll_timeout()).min();
        tokio::select! {
            Some(Arrived { from, message }) = arrived.recv() => {
                let family = Family::of(&from);
                for (_, probe) in probes.iter_mut().filter(|(of, _)| *of == family) {
                    probe.handle_datagram(Instant::now(), Socket::Own, from, &message);
                }
            }
            Some(Heard { family, socket, from, message }) = heard.recv() => {
                for (_, probe) in probes.iter_mut().filter(|(of, _)| *of == family) {
                    probe.handle_datagram(Instant::now(), socket, from, &message);
                }
            }
            () = sleep_until(next) => {
                let now = Instant::now();
                probes.iter_mut().for_each(|(_, probe)| probe.handle_timeout(now));
            }
        }
    }
}

async fn send_all(port: &UdpPort, sockets: &mut Sockets, family: Family, probe: &mut Probe) {
    while let Some(transmit) = probe.poll_transmit() {
        let sent = match transmit.socket {
            Socket::Own => port.send(&Transmit::new(transmit.to, &transmit.payload)),
            fresh => sockets.send(family, fresh, transmit.to, &transmit.payload).await,
        };
        if let Err(error) = sent {
            // As if it were lost: there is no route of this IP version.
            tracing::trace!(to = %transmit.to, %error, "a network check's request was not sent");
        }
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

/// What was reported last; nothing before the first time. Nobody heard is news, too.
#[derive(Default)]
struct Told {
    findings: Option<Findings>,
    latencies: Option<Vec<(SocketAddr, Duration)>>,
}

impl Told {
    fn what_is_new(&mut self, probes: &[(Family, Probe); 2]) -> Vec<News> {
        // Half a look looks like another network.
        if !probes.iter().all(|(_, probe)| probe.is_settled()) {
            return Vec::new();
        }
        let mut findings = Findings::default();
        let mut latencies = Vec::new();
        for (family, probe) in probes {
            *findings.of_mut(*family) = probe.findings();
            findings.observations.extend(probe.observations());
            latencies.extend(probe.latencies());
        }
        let mut news = Vec::new();
        if self.findings.as_ref() != Some(&findings) {
            self.findings = Some(findings.clone());
            news.push(News::Findings(findings));
        }
        if self.latencies.as_ref() != Some(&latencies) {
            self.latencies = Some(latencies.clone());
            news.push(News::Latencies(latencies));
        }
        news
    }
}
