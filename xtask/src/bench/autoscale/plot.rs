//! Sessions and pods over time, one panel for each load, in two SVGs.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::fleet::Outcome;
use super::policies::target_sessions;
use super::shapes::Shape;

const SIZE: (u32, u32) = (1000, 1520);
const COLUMNS: usize = 2;
const ROWS: usize = 4;
const LOAD: RGBColor = RGBColor(190, 190, 190);
/// As [`super::POLICIES`], without the last: it differs from the one before only on the way down.
const LINES: [(usize, &str, RGBColor); 3] = [
    (0, "oracle", RGBColor(30, 140, 60)),
    (2, "Knative-like", RGBColor(200, 80, 0)),
    (1, "Headway", RGBColor(0, 94, 162)),
];
/// Every so many decisions are drawn.
const STRIDE: usize = 8;

/// File names and drawings.
pub fn svgs(shapes: &[Shape], outcomes: &[[Outcome; 4]]) -> anyhow::Result<Vec<(String, String)>> {
    let panels: Vec<_> = shapes.iter().zip(outcomes).collect();
    let mut files = Vec::new();
    for (index, panels) in panels.chunks(COLUMNS * ROWS).enumerate() {
        let mut text = String::new();
        draw(panels, &mut text).map_err(|error| anyhow!("drawing: {error}"))?;
        files.push((format!("autoscale-{}.svg", index + 1), text));
    }
    Ok(files)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(panels: &[(&Shape, &[Outcome; 4])], text: &mut String) -> Drawn {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let cells = area.split_evenly((ROWS, COLUMNS));
    for ((shape, outcomes), cell) in panels.iter().zip(&cells) {
        panel(shape, outcomes, cell)?;
    }
    area.present()?;
    Ok(())
}

fn panel(
    shape: &Shape,
    outcomes: &[Outcome; 4],
    cell: &DrawingArea<SVGBackend<'_>, Shift>,
) -> Drawn {
    let minutes = |index: usize| (index * STRIDE) as f64 * super::DECISION_S / 60.0;
    // In pods of what is aimed at.
    let load: Vec<(f64, f64)> = outcomes[0]
        .sessions
        .iter()
        .step_by(STRIDE)
        .enumerate()
        .map(|(index, sessions)| (minutes(index), sessions / target_sessions()))
        .collect();
    let pods = |policy: usize| -> Vec<(f64, f64)> {
        let replicas = outcomes[policy].replicas.iter().step_by(STRIDE);
        replicas
            .enumerate()
            .map(|(index, pods)| (minutes(index), f64::from(*pods)))
            .collect()
    };
    let all = LINES
        .iter()
        .flat_map(|line| pods(line.0))
        .chain(load.iter().copied());
    let most = all.fold(1.0, |most: f64, (_, pods)| most.max(pods));
    let last = load.last().map_or(1.0, |(at, _)| *at);
    let mut chart = ChartBuilder::on(cell)
        .margin(10)
        .x_label_area_size(32)
        .y_label_area_size(40)
        .caption(shape.name, ("sans-serif", 16))
        .build_cartesian_2d(0.0..last, 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("minutes")
        .y_desc("pods")
        .label_style(("sans-serif", 12))
        .axis_desc_style(("sans-serif", 12))
        .light_line_style(WHITE)
        .draw()?;
    chart
        .draw_series(LineSeries::new(load, LOAD.stroke_width(4)))?
        .label("load")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], LOAD.stroke_width(4)));
    for (policy, name, color) in LINES {
        chart
            .draw_series(LineSeries::new(pods(policy), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}
