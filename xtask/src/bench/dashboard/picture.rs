//! A dashboard as SVG, in Grafana's grid.

use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::panel::{Drawn, Kind};

/// Pixels of a column of the grid.
const COLUMN: u32 = 60;
/// Pixels of a row of it.
const ROW: u32 = 26;
const COLUMNS: u32 = 24;
const MARGIN: u32 = 6;
const BACKGROUND: RGBColor = RGBColor(24, 27, 31);
const PANEL: RGBColor = RGBColor(34, 37, 43);
const TEXT: RGBColor = RGBColor(204, 204, 220);
const GRID: RGBColor = RGBColor(60, 64, 72);
const COLOURS: [RGBColor; 6] = [
    RGBColor(115, 191, 105),
    RGBColor(242, 204, 12),
    RGBColor(87, 148, 242),
    RGBColor(255, 152, 48),
    RGBColor(242, 73, 92),
    RGBColor(184, 119, 217),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failed = Box<dyn std::error::Error>;

/// Draws every panel where the dashboard has it.
pub(super) fn write(path: &Path, drawn: &[Drawn]) -> anyhow::Result<()> {
    let mut text = String::new();
    let result = draw(&mut text, drawn);
    result.map_err(|error| anyhow::anyhow!("drawing: {error}"))?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn draw(text: &mut String, drawn: &[Drawn]) -> Result<(), Failed> {
    let bottom = |each: &Drawn| each.panel.place[1] + each.panel.place[3];
    let rows = drawn.iter().map(bottom).max().unwrap_or(1);
    let area = SVGBackend::with_string(text, (COLUMNS * COLUMN, rows * ROW)).into_drawing_area();
    area.fill(&BACKGROUND)?;
    for each in drawn {
        let [x, y, width, height] = each.panel.place;
        let corner = (
            i32::try_from(x * COLUMN + MARGIN)?,
            i32::try_from(y * ROW + MARGIN)?,
        );
        let size = (width * COLUMN - 2 * MARGIN, height * ROW - 2 * MARGIN);
        let part = area.clone().shrink(corner, size);
        if each.panel.kind == Kind::Row {
            part.draw(&Text::new(each.panel.title.clone(), (2, 0), words(17)))?;
            continue;
        }
        part.fill(&PANEL)?;
        part.draw(&Text::new(each.panel.title.clone(), (10, 8), words(15)))?;
        match each.panel.kind {
            Kind::Stat => stat(&part, each)?,
            _ => time_series(&part, each)?,
        }
    }
    area.present()?;
    Ok(())
}

fn words(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT)
}

/// The last value of every series, large.
fn stat(area: &Area<'_>, drawn: &Drawn) -> Result<(), Failed> {
    let (_, height) = area.dim_in_pixel();
    let step = (height - 40) / u32::try_from(drawn.series.len().max(1))?;
    for (index, (name, samples)) in drawn.series.iter().enumerate() {
        let Some((_, value)) = samples.last() else {
            continue;
        };
        let top = 36 + u32::try_from(index)? * step;
        let top = i32::try_from(top)?;
        let size = (step * 2 / 3).clamp(14, 44);
        let colour = COLOURS[index % COLOURS.len()];
        let style = ("sans-serif", size).into_font().color(&colour);
        area.draw(&Text::new(
            shown(*value, &drawn.panel.unit),
            (12, top),
            style,
        ))?;
        area.draw(&Text::new(name.clone(), (170, top + 4), words(14)))?;
    }
    Ok(())
}

fn time_series(area: &Area<'_>, drawn: &Drawn) -> Result<(), Failed> {
    let (width, height) = area.dim_in_pixel();
    let legend = 20;
    let part = area
        .clone()
        .shrink((4, 30), (width - 14, height - 34 - legend));
    let all = || drawn.series.iter().flat_map(|(_, samples)| samples);
    let least = all().map(|sample| sample.0).fold(f64::INFINITY, f64::min);
    let most = all().map(|sample| sample.0).fold(least, f64::max);
    if !least.is_finite() {
        let middle = (i32::try_from(width / 2)? - 30, i32::try_from(height / 2)?);
        area.draw(&Text::new("nothing", middle, words(15)))?;
        return Ok(());
    }
    let top = all().map(|sample| sample.1).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(&part)
        .x_label_area_size(0)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..(most - least).max(1.0), 0.0..top)?;
    let unit = &drawn.panel.unit;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_labels(5)
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .y_label_formatter(&|value| shown(*value, unit))
        .label_style(words(12))
        .draw()?;
    let mut left = 10;
    for (index, (name, samples)) in drawn.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line = samples.iter().map(|(time, value)| (time - least, *value));
        chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
        let length = i32::try_from(name.chars().count())? * 7 + 30;
        if left + length > i32::try_from(width)? {
            continue;
        }
        let middle = i32::try_from(height)? - 14;
        area.draw(&PathElement::new(
            [(left, middle), (left + 14, middle)],
            colour.stroke_width(3),
        ))?;
        area.draw(&Text::new(name.clone(), (left + 18, middle - 7), words(12)))?;
        left += length;
    }
    Ok(())
}

/// A value in its panel's unit.
fn shown(value: f64, unit: &str) -> String {
    let scaled = |value: f64, names: [&str; 4], step: f64| {
        let mut value = value;
        let mut names = names.into_iter();
        let mut name = names.next().unwrap_or_default();
        while value.abs() >= step {
            let Some(next) = names.next() else { break };
            (value, name) = (value / step, next);
        }
        let digits = usize::from(value.abs() < 10.0) + usize::from(value.abs() < 1.0);
        format!("{value:.digits$}{name}")
    };
    match unit {
        "percentunit" if value != 0.0 && value.abs() < 0.01 => format!("{:.2} %", value * 100.0),
        "percentunit" => format!("{:.0} %", value * 100.0),
        "s" if value.abs() < 1.0 => format!("{:.1} ms", value * 1e3),
        "s" => format!("{value:.1} s"),
        "bytes" => scaled(value, [" B", " KiB", " MiB", " GiB"], 1024.0),
        "Bps" => scaled(value, [" B/s", " kB/s", " MB/s", " GB/s"], 1000.0),
        "ops" => format!("{}/s", scaled(value, ["", " k", " M", " G"], 1000.0)),
        "none" => format!("{value:.4}"),
        _ => scaled(value, ["", " k", " M", " G"], 1000.0),
    }
}
