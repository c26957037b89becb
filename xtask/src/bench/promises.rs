//! What the figures must reach, as ratios within one run.

use std::fmt;

use cyphonic_lab::figures::Figures;

/// How a ratio is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A ratio that is promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Promise {
    /// What it says.
    pub(super) what: &'static str,
    /// The figure.
    names: &'static [&'static str],
    bound: Bound,
}

/// What became of a promise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    Kept(f64),
    Broken(f64),
    NotMeasured,
}

const fn promise(what: &'static str, names: &'static [&'static str], bound: Bound) -> Promise {
    Promise { what, names, bound }
}

/// Of tunnels, beside each other in one run.
const TUNNELS: [Promise; 9] = [
    promise("TCP, one stream, vs wireguard-go", &["auto.tcp1_vs_wireguard_go"], Bound::AtLeast(12.0)),
    promise("TCP, one stream, vs boringtun", &["auto.tcp1_vs_boringtun"], Bound::AtLeast(10.0)),
    promise("TCP, one stream, vs Nebula", &["auto.tcp1_vs_nebula"], Bound::AtLeast(10.0)),
    promise("TCP, one stream, vs OpenVPN", &["auto.tcp1_vs_openvpn"], Bound::AtLeast(10.0)),
    promise("TCP, one stream, vs Quincy", &["auto.tcp1_vs_quincy"], Bound::AtLeast(4.5)),
    promise("TCP, one stream, vs the pipe without keys", &["auto.tcp1_vs_null_gso"], Bound::AtLeast(0.6)),
    promise(
        "TCP, one stream, wire-like, vs wireguard-go",
        &["wire.auto.tcp1_vs_wireguard_go"],
        Bound::AtLeast(3.0),
    ),
    promise("CPU seconds per GB vs Quincy", &["auto.cpu_vs_quincy"], Bound::AtMost(0.25)),
    promise(
        "UDP, 64 bytes, vs each other VPN",
        &[
            "auto.udp64_vs_wireguard_go",
            "auto.udp64_vs_boringtun",
            "auto.udp64_vs_nebula",
            "auto.udp64_vs_openvpn",
            "auto.udp64_vs_quincy",
        ],
        Bound::AtLeast(2.0),
    ),
];

/// Kept by the better of the rings.
const ROUND_TRIP: Promise = promise(
    "added round trip, idle, the better ring vs wireguard-go",
    &["offload.rtt_added_vs_wireguard_go", "xdp.rtt_added_vs_wireguard_go"],
    Bound::AtMost(0.3),
);

/// The same where processors stay awake between packets.
const ROUND_TRIP_AWAKE: Promise = promise(
    "added round trip, idle, with `keep_awake`, vs wireguard-go",
    &["awake.rtt_added_vs_wireguard_go"],
    Bound::AtMost(0.3),
);

impl Promise {
    /// Whether all its figures keep it; its value is the worst of them. Each of them must have been measured.
    pub(super) fn judge(&self, figures: &Figures) -> Outcome {
        if self.names.iter().any(|name| figures.get(name).is_none()) {
            return Outcome::NotMeasured;
        }
        let worst = match self.bound {
            Bound::AtLeast(_) => f64::min,
            Bound::AtMost(_) => f64::max,
        };
        self.outcome(figures, worst)
    }

    /// Whether one of its figures keeps it; its value is the best of them.
    pub(super) fn judge_best(&self, figures: &Figures) -> Outcome {
        let best = match self.bound {
            Bound::AtLeast(_) => f64::max,
            Bound::AtMost(_) => f64::min,
        };
        self.outcome(figures, best)
    }

    fn outcome(&self, figures: &Figures, choose: fn(f64, f64) -> f64) -> Outcome {
        let values = self.names.iter().filter_map(|name| figures.get(name)).map(|figure| figure.value);
        let Some(value) = values.reduce(choose) else { return Outcome::NotMeasured };
        let kept = match self.bound {
            Bound::AtLeast(least) => value >= least,
            Bound::AtMost(most) => value <= most,
        };
        if kept { Outcome::Kept(value) } else { Outcome::Broken(value) }
    }

    /// The bound, for people.
    pub(super) fn bound(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!("≥ {least}"),
            Bound::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// Every promise about tunnels, and what became of it.
pub(super) fn judge_tunnels(figures: &Figures) -> Vec<(Promise, Outcome)> {
    let all = TUNNELS.iter().map(|promise| (*promise, promise.judge(figures)));
    let awake = (ROUND_TRIP_AWAKE, ROUND_TRIP_AWAKE.judge(figures));
    all.chain([(ROUND_TRIP, ROUND_TRIP.judge_best(figures)), awake]).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(value) => write!(f, "{value:.2}, kept"),
            Self::Broken(value) => write!(f, "{value:.2}, **missed**"),
            Self::NotMeasured => f.write_str("not measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use cyphonic_lab::figures::Figure;

    use super::*;

    #[test]
    fn all_figures_of_a_promise_must_keep_it_but_one_ring_is_enough() {
        let mut figures = Figures::new("bench");
        let udp = TUNNELS[8];
        assert_eq!(udp.judge(&figures), Outcome::NotMeasured);
        udp.names.iter().skip(1).for_each(|name| figures.insert(name, Figure::single(3.0, "")));
        assert_eq!(udp.judge(&figures), Outcome::NotMeasured, "one is missing");
        figures.insert(udp.names[0], Figure::single(4.0, ""));
        assert_eq!(udp.judge(&figures), Outcome::Kept(3.0));
        figures.insert("auto.udp64_vs_quincy", Figure::single(1.5, ""));
        assert_eq!(udp.judge(&figures), Outcome::Broken(1.5));
        figures.insert("offload.rtt_added_vs_wireguard_go", Figure::single(0.8, ""));
        figures.insert("xdp.rtt_added_vs_wireguard_go", Figure::single(0.2, ""));
        assert_eq!(ROUND_TRIP.judge_best(&figures), Outcome::Kept(0.2));
    }
}
