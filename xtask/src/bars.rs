//! Bars of two series beside each other, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// What it is, and its value in either series.
pub(crate) type Row<'a> = (&'a str, [Option<f64>; 2]);

/// The legend lies above all bars.
const HEADROOM: f64 = 1.3;
const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xff, 0x7f, 0x0e)];

/// Draws them; whether there was anything to draw.
pub(crate) fn bars(title: &str, series: [&str; 2], rows: &[Row<'_>], file: &Path) -> Result<bool> {
    let highest = rows.iter().flat_map(|(_, values)| values).flatten().copied().fold(0.0, f64::max);
    if highest <= 0.0 {
        return Ok(false);
    }
    draw(title, series, rows, highest, file)
        .map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
    Ok(true)
}

fn draw(
    title: &str,
    series: [&str; 2],
    rows: &[Row<'_>],
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
    for (which, (name, colour)) in series.into_iter().zip(COLOURS).enumerate() {
        let bar = |(index, row): (usize, &Row<'_>)| {
            let value = row.1.get(which).copied().flatten()?;
            let left = index as f64 + 0.12 + 0.39 * which as f64;
            Some(Rectangle::new([(left, 0.0), (left + 0.37, value)], colour.filled()))
        };
        chart
            .draw_series(rows.iter().enumerate().filter_map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
        let digits = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let number = |(index, row): (usize, &Row<'_>)| {
            let value = row.1.get(which).copied().flatten()?;
            let left = index as f64 + 0.14 + 0.39 * which as f64;
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
