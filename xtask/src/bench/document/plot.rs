//! Bars of one figure over all systems, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use cyphonic_lab::figures::Figures;
use plotters::prelude::*;

use crate::bench::tunnels::NAMES;

/// A plot: both variants of one figure beside each other.
pub(super) struct Plot {
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    figure: &'static str,
    /// Without the plain network, beside which the tunnels would be too small to see.
    tunnels_only: bool,
}

pub(super) const ALL: [Plot; 4] = [
    Plot { file: "tcp1.svg", title: "TCP, one stream, Gbit/s", figure: "tcp1_gbps", tunnels_only: true },
    Plot { file: "cpu.svg", title: "CPU seconds per GB", figure: "cpu_s_per_gb", tunnels_only: false },
    Plot {
        file: "udp64.svg",
        title: "UDP, 64 bytes, thousand packets per second",
        figure: "udp64_kpps",
        tunnels_only: false,
    },
    Plot {
        file: "rtt.svg",
        title: "Round trip, idle, median, µs",
        figure: "rtt_idle_us",
        tunnels_only: false,
    },
];

/// The legend lies above all bars.
const HEADROOM: f64 = 1.3;
const NORMAL: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const WIRE: RGBColor = RGBColor(0xff, 0x7f, 0x0e);

/// Draws it; whether there was anything to draw.
pub(super) fn draw(plot: &Plot, figures: &Figures, file: &Path) -> Result<bool> {
    let value = |prefix: &str, name: &str| {
        figures.get(&format!("{prefix}{name}.{}", plot.figure)).map(|figure| figure.value)
    };
    let rows: Vec<(&str, Option<f64>, Option<f64>)> = NAMES
        .iter()
        .filter(|name| !(plot.tunnels_only && **name == "underlay"))
        .map(|name| (*name, value("", name), value("wire.", name)))
        .filter(|(_, normal, wire)| normal.is_some() || wire.is_some())
        .collect();
    let highest = rows.iter().flat_map(|(_, normal, wire)| [*normal, *wire]).flatten().fold(0.0, f64::max);
    if highest <= 0.0 {
        return Ok(false);
    }
    bars(plot.title, &rows, highest, file)
        .map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
    Ok(true)
}

fn bars(
    title: &str,
    rows: &[(&str, Option<f64>, Option<f64>)],
    highest: f64,
    file: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, (860, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..rows.len() as f64, 0.0..highest * HEADROOM)?;
    let label = |at: &f64| {
        let row = rows.get(at.floor() as usize).filter(|_| (at.fract() - 0.5).abs() < 0.01);
        row.map(|row| row.0.to_owned()).unwrap_or_default()
    };
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().max_light_lines(0).x_labels(rows.len() * 2 + 1).x_label_formatter(&label).draw()?;
    for (series, (name, colour)) in [("normal", NORMAL), ("wire-like", WIRE)].into_iter().enumerate() {
        let bar = |(index, row): (usize, &(&str, Option<f64>, Option<f64>))| {
            let value = if series == 0 { row.1 } else { row.2 }?;
            let left = index as f64 + 0.12 + 0.39 * series as f64;
            Some(Rectangle::new([(left, 0.0), (left + 0.37, value)], colour.filled()))
        };
        chart
            .draw_series(rows.iter().enumerate().filter_map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
        let digits = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let number = |(index, row): (usize, &(&str, Option<f64>, Option<f64>))| {
            let value = if series == 0 { row.1 } else { row.2 }?;
            let left = index as f64 + 0.14 + 0.39 * series as f64;
            let at = (left, value + highest * 0.05);
            Some(Text::new(digits(value), at, ("sans-serif", 10).into_font()))
        };
        chart.draw_series(rows.iter().enumerate().filter_map(number))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
