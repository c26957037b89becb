//! What was measured, before it becomes figures.

use std::collections::BTreeMap;

use cyphonic_lab::figures::{Figure, Figures, Statistic};

use super::system::System;
use super::variant::Variant;

/// The samples of one system in one variant, by figure.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    pub(super) fn add(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    pub(super) fn last(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.last().copied()
    }

    /// The last ones of rates, for people who wait.
    pub(super) fn summary(&self) -> String {
        let rates = ["tcp1_gbps", "tcp4_gbps", "udp1360_kpps", "udp64_kpps"];
        let told = rates.iter().filter_map(|name| Some(format!("{name} {:.2}", self.last(name)?)));
        told.collect::<Vec<_>>().join(", ")
    }
}

/// The samples of all.
pub(super) type AllSamples = BTreeMap<(Variant, &'static str), Samples>;

/// The unit that a figure's name ends in.
fn unit(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("gbps") => "Gbit/s",
        Some("kpps") => "kpps",
        Some("us") => "µs",
        Some("gb") => "s/GB",
        Some("mb") => "MB",
        _ => "",
    }
}

/// What is divided by what: higher is better, but for costs.
const RATIOS: [&str; 5] = ["tcp1", "tcp4", "udp1360", "udp64", "cpu"];
const OWN: [System; 4] = [System::Offload, System::Xdp, System::Auto, System::Awake];

/// Turns samples into figures, ratios included.
pub(super) fn into_figures(all: &AllSamples, figures: &mut Figures) {
    for ((variant, system), samples) in all {
        for (name, values) in &samples.0 {
            let full = format!("{}{system}.{name}", variant.prefix());
            if let Some(figure) = Figure::of(values, Statistic::Median, unit(name)) {
                figures.insert(&full, figure);
            }
            if *name == "rtt_idle_us"
                && let Some(figure) = Figure::of(values, Statistic::P99, "µs")
            {
                figures.insert(&format!("{}{system}.rtt_idle_p99_us", variant.prefix()), figure);
            }
        }
    }
    for variant in Variant::ALL {
        add_differences(variant.prefix(), figures);
        OWN.iter().for_each(|own| add_ratios(variant.prefix(), *own, figures));
    }
}

/// What a system adds to the plain network's round trip.
fn add_differences(prefix: &str, figures: &mut Figures) {
    let value = |figures: &Figures, name: &str, figure: &str| {
        figures.get(&format!("{prefix}{name}.{figure}")).map(|figure| figure.value)
    };
    for system in System::ALL.into_iter().filter(|system| *system != System::Underlay) {
        for (from, to) in [("rtt_idle_us", "rtt_added_us"), ("rtt_idle_p99_us", "rtt_added_p99_us")] {
            let both = value(figures, system.name(), from).zip(value(figures, "underlay", from));
            if let Some((with, without)) = both {
                let name = format!("{prefix}{}.{to}", system.name());
                figures.insert(&name, Figure::single(with - without, "µs"));
            }
        }
    }
}

fn add_ratios(prefix: &str, own: System, figures: &mut Figures) {
    for peer in System::ALL.into_iter().filter(|peer| !OWN.contains(peer)) {
        for what in RATIOS {
            let figure = match what {
                "cpu" => "cpu_s_per_gb".to_owned(),
                "tcp1" | "tcp4" => format!("{what}_gbps"),
                _ => format!("{what}_kpps"),
            };
            ratio(prefix, own.name(), peer.name(), &figure, &format!("{what}_vs_{}", peer.name()), figures);
        }
        let name = format!("rtt_added_vs_{}", peer.name());
        ratio(prefix, own.name(), peer.name(), "rtt_added_us", &name, figures);
    }
}

fn ratio(prefix: &str, own: &str, peer: &str, figure: &str, name: &str, figures: &mut Figures) {
    let value = |system: &str| figures.get(&format!("{prefix}{system}.{figure}")).map(|figure| figure.value);
    if let Some((own_value, peer_value)) = value(own).zip(value(peer)).filter(|(_, peer)| *peer > 0.0) {
        figures.insert(&format!("{prefix}{own}.{name}"), Figure::single(own_value / peer_value, ""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_what_is_added() {
        let mut all = AllSamples::new();
        let mut add = |system, name, values: &[f64]| {
            let samples = all.entry((Variant::Normal, system)).or_default();
            values.iter().for_each(|value| samples.add(name, *value));
        };
        add("underlay", "rtt_idle_us", &[50.0]);
        add("auto", "rtt_idle_us", &[150.0]);
        add("wireguard_go", "rtt_idle_us", &[450.0]);
        add("auto", "tcp1_gbps", &[4.0, 6.0, 5.0]);
        add("wireguard_go", "tcp1_gbps", &[0.5]);
        let mut figures = Figures::new("bench");
        into_figures(&all, &mut figures);
        let value = |name: &str| figures.get(name).map(|figure| figure.value);
        assert_eq!(value("auto.tcp1_gbps"), Some(5.0));
        assert_eq!(value("auto.tcp1_vs_wireguard_go"), Some(10.0));
        assert_eq!(value("auto.rtt_added_us"), Some(100.0));
        assert_eq!(value("auto.rtt_added_vs_wireguard_go"), Some(0.25));
        assert_eq!(value("auto.tcp1_vs_quincy"), None);
    }
}
