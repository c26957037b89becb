//! Links with properties, seen from the two ends. Bounds are wide: the machine may be busy.

use std::time::{Duration, Instant};

use cyphonic_lab::Topology;
use cyphonic_lab::command::Cancel;
use cyphonic_lab::measure::{IperfRun, IperfServer, Transport};

use crate::common::{ping_from, receive, shipped, socket, up};

const PAIR: &str = "version: 1
networks: { line: { ipv4: 10.0.0.0/24 } }
routers: {}
hosts:
  x: { interfaces: [ { network: line, ipv4: 10.0.0.1 } ] }
  y: { interfaces: [ { network: line, ipv4: 10.0.0.2 } ] }
profiles:
  far: { x@line: { delay: 20ms } }
  shaky: { x@line: { delay: 20ms, jitter: 10ms } }
  lossy: { x@line: { loss: 20% } }
  narrow: { x@line: { rate: 20mbit } }
  slanted: { x@line: { up: { delay: 30ms }, down: { delay: 2ms, rate: 8mbit } } }
  shuffled: { x@line: { delay: 30ms, reorder: 20% } }
  twice: { x@line: { delay: 10ms }, y@line: { delay: 10ms } }
";

fn pair(test: &str, profile: &str) -> cyphonic_lab::Lab {
    up(&Topology::parse(PAIR).unwrap(), test, profile)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

#[test]
fn delay_adds_up_in_both_directions() {
    for profile in ["far", "twice"] {
        let lab = pair(profile, profile);
        let report = ping_from(&lab, "x", "10.0.0.2".parse().unwrap(), 20);
        assert_eq!(report.lost(), 0, "{profile}");
        assert!(report.rtts_ms.iter().all(|rtt| *rtt >= 40.0), "{profile}: {:?}", report.rtts_ms);
        // The first includes ARP.
        let rtt = median(report.rtts_ms);
        assert!(rtt < 60.0, "{profile}: {rtt}");
    }
}

#[test]
fn jitter_spreads_round_trips_and_keeps_their_order() {
    let lab = pair("shaky", "shaky");
    let report = ping_from(&lab, "x", "10.0.0.2".parse().unwrap(), 100);
    assert_eq!(report.lost(), 0);
    assert!(report.summary.unwrap().mdev_ms > 1.0, "{report:?}");
    assert!(report.sequence.is_sorted(), "{:?}", report.sequence);
}

#[test]
fn loss_takes_about_its_share_in_each_direction() {
    let lab = pair("lossy", "lossy");
    // ARP loses its packets, too: x is to know y before it counts.
    let met = (0..10).any(|_| ping_from(&lab, "x", "10.0.0.2".parse().unwrap(), 5).received > 0);
    assert!(met);
    let report = ping_from(&lab, "x", "10.0.0.2".parse().unwrap(), 300);
    // 1 - 0.8 * 0.8 = 36 % of 300 round trips are 108; five standard deviations are 42.
    assert!((60..160).contains(&report.lost()), "{} of 300 lost", report.lost());
}

#[test]
fn a_rate_bounds_tcp_and_lets_it_come_near() {
    let lab = pair("narrow", "narrow");
    let _server = IperfServer::start(&lab, "y").unwrap();
    let run = IperfRun {
        target: "10.0.0.2".to_owned(),
        transport: Transport::Tcp { streams: 1 },
        time: Duration::from_secs(2),
    };
    let rate = run.run(&lab.namespace("x").unwrap(), &Cancel::default()).unwrap().bits_per_second / 1e6;
    assert!((10.0..21.0).contains(&rate), "{rate} Mbit/s");
}

/// What one end sends to the other every millisecond, and the order and times of arrival.
fn train(lab: &cyphonic_lab::Lab, from: (&str, &str), to: (&str, &str), count: u8) -> Vec<(u8, Duration)> {
    let (sender, receiver) = (socket(lab, from.0, from.1, 4000), socket(lab, to.0, to.1, 4000));
    sender.send_to(b"arp", receiver.local_addr().unwrap()).unwrap();
    assert!(receive(&receiver).is_some());
    let target = receiver.local_addr().unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..count {
                sender.send_to(&[number], target).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut byte = [0];
        let arrivals =
            std::iter::from_fn(|| receiver.recv(&mut byte).ok().map(|_| (byte[0], started.elapsed())));
        arrivals.take(count.into()).collect()
    })
}

#[test]
fn each_direction_has_properties_of_its_own() {
    let lab = pair("slanted", "slanted");
    let (x, y) = (("x", "10.0.0.1"), ("y", "10.0.0.2"));
    let up = train(&lab, x, y, 1)[0].1;
    assert!(up >= Duration::from_millis(30), "{up:?}");
    let down = (0..5).map(|_| train(&lab, y, x, 1)[0].1).min().unwrap();
    assert!((Duration::from_millis(2)..Duration::from_millis(25)).contains(&down), "{down:?}");
}

#[test]
fn a_share_of_frames_overtakes_others() {
    let lab = pair("shuffled", "shuffled");
    let arrived = train(&lab, ("x", "10.0.0.1"), ("y", "10.0.0.2"), 200);
    assert_eq!(arrived.len(), 200);
    let early = arrived.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
    assert!((10..100).contains(&early), "{early} of 200");
}

#[test]
fn a_burst_survives_a_delayed_link_whole() {
    let lab = pair("burst", "far");
    let (from, to) = (socket(&lab, "x", "10.0.0.1", 4000), socket(&lab, "y", "10.0.0.2", 4000));
    from.send_to(b"arp", to.local_addr().unwrap()).unwrap();
    assert!(receive(&to).is_some());
    let started = Instant::now();
    // No more than the receiving socket's own buffer holds, so that what is missing is the link's fault.
    for _ in 0..64 {
        from.send_to(&[7; 1200], to.local_addr().unwrap()).unwrap();
    }
    let arrived = std::iter::from_fn(|| receive(&to)).take(64).count();
    assert_eq!(arrived, 64);
    assert!(started.elapsed() >= Duration::from_millis(20));
}

#[test]
fn the_papers_distances_are_in_its_profile() {
    let lab = up(&shipped(), "paper", "paper");
    let b_c = median(ping_from(&lab, "c", "198.51.100.10".parse().unwrap(), 20).rtts_ms);
    assert!((15.0..25.0).contains(&b_c), "B-C takes {b_c} ms, the paper's general case 15.656 ms");
    let b_trs = median(ping_from(&lab, "b", "192.0.2.18".parse().unwrap(), 20).rtts_ms);
    assert!((11.5..20.0).contains(&b_trs), "B-TRS takes {b_trs} ms, of the paper's 24.479 ms over both legs");
}
