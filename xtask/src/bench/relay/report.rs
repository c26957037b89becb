//! What the figures come to, and the section about them.

use std::fmt::Write as _;

use cyphonic_lab::figures::{Figure, Figures};

use super::Mode;

/// A ratio that is promised: its name, what is divided by what, and at least what comes out.
const PROMISES: [(&str, &str, &str, f64); 3] = [
    ("xdp_vs_bare", "xdp.kpps_64", "bare_xdp_forward.kpps_64", 0.8),
    ("xdp_vs_coturn", "xdp.kpps_64", "coturn.kpps_64", 5.0),
    ("xdp_1m_vs_1", "xdp.bindings_1m_kpps", "xdp.bindings_1_kpps", 0.75),
];

/// Adds the ratios that can be formed.
pub(super) fn ratios(figures: &mut Figures) {
    for (name, over, under, _) in PROMISES {
        let of = |name: &str| figures.get(name).map(|figure| figure.value);
        if let (Some(over), Some(under)) = (of(over), of(under)) {
            figures.insert(name, Figure::single(over / under, ""));
        }
    }
}

/// The promises that were measured and not kept.
pub(super) fn broken(figures: &Figures) -> Vec<String> {
    let measured =
        PROMISES.iter().filter_map(|(name, _, _, least)| Some((name, figures.get(name)?.value, least)));
    measured
        .filter(|(_, value, least)| value < least)
        .map(|(name, value, least)| format!("{name} is {value:.2}, and {least} was promised"))
        .collect()
}

/// The promises, as the table for several machines has them.
pub(in crate::bench) fn rows(figures: &Figures) -> Vec<[String; 3]> {
    let row = |(name, least, verdict): (&str, f64, &str)| {
        let value = figures.get(name).map(|figure| format!("{:.2}, ", figure.value)).unwrap_or_default();
        let verdict = if verdict == "missed" { "**missed**" } else { verdict };
        [format!("`{name}`"), format!("≥ {least}"), format!("{value}{verdict}")]
    };
    judged(figures).map(row).collect()
}

/// Each promise: the ratio's name, the least that it is to be, and what became of it.
fn judged(figures: &Figures) -> impl Iterator<Item = (&'static str, f64, &'static str)> {
    PROMISES.into_iter().map(|(name, _, _, least)| {
        let verdict = match figures.get(name).map(|figure| figure.value) {
            Some(value) if value >= least => "kept",
            Some(_) => "missed",
            None => "not measured",
        };
        (name, least, verdict)
    })
}

/// The relay's section of `docs/performance.md`.
pub(in crate::bench) fn section(figures: &Figures) -> String {
    let mut text = String::from(TEXT);
    let value = |name: &str| figures.get(name).map(|figure| figure.value);
    let cell = |name: String, digits: usize| {
        value(&name).map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    for mode in Mode::ALL {
        let name = mode.name();
        let _ = writeln!(
            text,
            "| `{name}` | {} | {} | {} | {} | {} | {} |",
            cell(format!("{name}.bindings_1_kpps"), 0),
            cell(format!("{name}.bindings_1k_kpps"), 0),
            cell(format!("{name}.bindings_1m_kpps"), 0),
            cell(format!("{name}.gbps_1400"), 1),
            cell(format!("{name}.ns_per_packet"), 0),
            cell(format!("{name}.delivered_kpps"), 0),
        );
    }
    text += "\n| Ratio | Reached | At least | |\n|---|---|---|---|\n";
    for (name, least, verdict) in judged(figures) {
        let _ = writeln!(text, "| `{name}` | {} | {least} | {verdict} |", cell(name.to_owned(), 2));
    }
    let _ = writeln!(
        text,
        "\nThe program alone, without driver and cable: {} ns with 1 binding, {} ns with 1,000, {} ns with 1,000,000.",
        cell("xdp.program_1_ns".to_owned(), 0),
        cell("xdp.program_1k_ns".to_owned(), 0),
        cell("xdp.program_1m_ns".to_owned(), 0),
    );
    if let (Some(trains), Some(one)) = (value("xdp.bindings_1m_trains_kpps"), value("xdp.bindings_1_kpps")) {
        let _ = writeln!(
            text,
            "\nWith a million bindings in use, of each of which 16 packets follow each other, as they do where senders hand \
             super-packets to kernel or card: `xdp` forwards {trains:.0} kpps, {:.2} of what it does with one. No promise is judged by that.",
            trains / one
        );
    }
    let machine = figures.machine();
    let _ = writeln!(
        text,
        "\nMeasured on: {}, Linux {}; load {:.1} when the run began.",
        machine.cpu, machine.kernel, machine.load
    );
    text
}

const TEXT: &str = "\
## The relay

Packets from a generator in the kernel pass the relay by one veth cable and end in a sink in the kernel: the same two
for all. The relay's interface polls in a thread of its own; packets per second *and processor* are those that arrived,
divided by the processor time of that thread and of the relay's own threads. Each packet belongs to a binding drawn at
random from all, and all are in use: before XDP is measured, four packets for each binding have passed the program, since the
first of each asks the routing table. `bare_xdp_forward` writes all that a relay writes, with constants: no binding, route, limit or counter.
coturn relays between a channel and a peer without authentication: each packet passes it once. An allocation of its is a
port and a socket, so it has no figure for a million. Packets of different bindings leave a relay in userspace one by one, and each
wakes the thread that polls the sink, which a network card would not ask of it: that is most of what they cost it here. *Delivered* is what arrived in a second,
with 1 binding, whatever the relay's thread did meanwhile: the generator, whose packets are made one by one on the other processor, and the sink
are part of it.

| Relay | kpps a processor, 1 binding | 1,000 | 1,000,000 | Gbit/s a processor, 1,400 B | ns per packet | delivered, kpps |
|---|---|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_judged_only_if_it_was_measured() {
        let mut figures = Figures::new("bench relay");
        for (name, kpps) in
            [("xdp.kpps_64", 900.0), ("bare_xdp_forward.kpps_64", 1000.0), ("coturn.kpps_64", 200.0)]
        {
            figures.insert(name, Figure::single(kpps, "kpps"));
        }
        ratios(&mut figures);
        assert_eq!(figures.get("xdp_vs_bare").map(|figure| figure.value), Some(0.9));
        assert!(figures.get("xdp_1m_vs_1").is_none());
        assert_eq!(broken(&figures), ["xdp_vs_coturn is 4.50, and 5 was promised"]);
        let text = section(&figures);
        assert!(text.contains("| `xdp_vs_coturn` | 4.50 | 5 | missed |"), "{text}");
        assert!(text.contains("| `xdp_1m_vs_1` | – | 0.75 | not measured |"), "{text}");
    }
}
