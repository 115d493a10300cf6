//! The curve as an SVG.

use plotters::prelude::*;

use super::Calibration;
use super::sweep::Point;

const SIZE: (u32, u32) = (860, 520);
const ROUTED: RGBColor = RGBColor(0, 94, 162);
const BEFORE: RGBColor = RGBColor(86, 160, 211);
const LENGTH: RGBColor = RGBColor(200, 80, 0);
const RANDOM: RGBColor = RGBColor(120, 120, 120);

/// Agreement over tail seconds an answer.
pub(super) fn svg(calibration: &Calibration) -> Result<String, String> {
    let mut text = String::new();
    draw(calibration, &mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn draw(calibration: &Calibration, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let curve = &calibration.curve;
    let percent = |points: &[Point]| -> Vec<(f64, f64)> {
        let points = points.iter();
        points
            .map(|point| (point.tail_seconds, point.agreement * 100.0))
            .collect()
    };
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let most = curve.tail.tail_seconds.max(1e-6) * 1.02;
    let least = (curve.device.agreement * 100.0 - 2.0).max(0.0);
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .caption("Quality against cost of routed answers", ("sans-serif", 18))
        .build_cartesian_2d(0.0..most, least..100.5)?;
    chart
        .configure_mesh()
        .x_desc("tail seconds an answer")
        .y_desc("agreement with the full model, %")
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .draw()?;
    let ends =
        [curve.device, curve.tail].map(|point| (point.tail_seconds, point.agreement * 100.0));
    let lines = [
        ("random", RANDOM, ends.to_vec()),
        ("by length only", LENGTH, percent(&curve.by_length)),
        (
            "routed before the answer",
            BEFORE,
            percent(&curve.before_the_answer),
        ),
        ("routed", ROUTED, percent(&curve.routed)),
    ];
    for (name, color, mut points) in lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                color.stroke_width(2),
            ))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(
            points
                .iter()
                .map(|point| Circle::new(*point, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .label_font(("sans-serif", 14))
        .draw()?;
    area.present()?;
    Ok(())
}
