//! The closing table: what was measured, beside what the paper reports.

use cyphonic_lab::figures::{Figure, Figures};

/// A line of the table: what it is, the figure's name, and the paper's value.
type Row = (&'static str, &'static str, &'static str);

/// Fig. 6, Tables II and III of the paper. Its start-up is login and registration alone; ours has the
/// process, the interface and the programs in it, and no login: the agents are restarted, and remember where
/// their NMS is (`cargo xtask paper` measures the same as the paper). Its
/// network had distances of its own: only what is added, or measured with the profile `paper`, is to be
/// compared with it.
const ROWS: [Row; 14] = [
    ("start-up of the process, no login", "startup_ms", "286.85"),
    ("set-up, direct", "setup_direct_ms", "217"),
    ("set-up, first after both ends start", "setup_relay_cold_ms", "282.7"),
    ("set-up, TRS in use", "setup_relay_warm_ms", "61"),
    ("added to a round trip, direct", "rtt_added_direct_ms", "+2.2"),
    ("added to a round trip, relayed", "rtt_added_relay_ms", "+4.8"),
    ("UDP at 30 Mbit/s, direct", "udp30_direct_mbps", "29.9"),
    ("UDP at 30 Mbit/s, relayed", "udp30_relay_mbps", "29.9"),
    ("its jitter, direct", "jitter_direct_ms", "0.181"),
    ("its jitter, relayed", "jitter_relay_ms", "0.309"),
    ("TCP, direct", "tcp_direct_gbps", ""),
    ("TCP, relayed", "tcp_relay_gbps", ""),
    ("pings lost", "pings_lost", ""),
    ("first packets lost", "first_packets_lost", ""),
];

/// Prints the table.
pub(super) fn print(figures: &Figures, profile: &str) {
    let machine = figures.machine();
    println!(
        "\nOn {} ({} cores, Linux {}), profile `{profile}`:\n",
        machine.cpu, machine.cores, machine.kernel
    );
    println!("{:<36} {:>14} {:>10}   samples", "", "here", "paper");
    for (label, name, paper) in ROWS {
        println!(
            "{:<36} {:>14} {paper:>10}   {}",
            label,
            here(figures.get(name)),
            samples(figures.get(name))
        );
    }
    let wall = figures
        .get("wall_s")
        .map(|figure| format!("; the demo took {:.1} s", figure.value))
        .unwrap_or_default();
    println!(
        "\nTimes in ms. The paper measured over the Internet with Raspberry Pis and a cloud in Tokyo{wall}."
    );
}

fn here(figure: Option<&Figure>) -> String {
    let Some(figure) = figure else { return "not measured".to_owned() };
    match figure.unit {
        "" => format!("{:.0}", figure.value),
        "ms" => format!("{:.3}", figure.value),
        unit => format!("{:.2} {unit}", figure.value),
    }
}

fn samples(figure: Option<&Figure>) -> String {
    match figure {
        Some(figure) if figure.n > 1 => {
            format!("median of {}, {:.2} to {:.2}", figure.n, figure.min, figure.max)
        }
        Some(_) | None => String::new(),
    }
}
