//! Curves as SVG.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

const SIZE: (u32, u32) = (860, 480);
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 94, 162),
    RGBColor(200, 80, 0),
    RGBColor(60, 140, 60),
    RGBColor(120, 120, 120),
    RGBColor(150, 60, 150),
    RGBColor(86, 160, 211),
    RGBColor(210, 160, 0),
];

type Points = Vec<(f64, f64)>;

/// What is drawn.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    /// Whether the axes are logarithmic; points at 0 are then left out.
    pub(super) is_log: (bool, bool),
    pub(super) series: Vec<(String, Points)>,
}

impl Plot {
    /// The drawing.
    pub(super) fn svg(mut self) -> anyhow::Result<String> {
        let (log_x, log_y) = self.is_log;
        for (_, points) in &mut self.series {
            points.retain(|(x, y)| (!log_x || *x > 0.0) && (!log_y || *y > 0.0));
        }
        let mut text = String::new();
        let drawn = self.draw(&mut text);
        drawn.map_err(|error| anyhow::anyhow!("drawing {:?}: {error}", self.title))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let all = || self.series.iter().flat_map(|(_, points)| points);
        let least = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(0.0, f64::max);
        // Where nothing is to be drawn, there are axes all the same.
        let range = |least: f64, most: f64| match least < most {
            true => (least, most),
            false => (0.1, most.max(1.0)),
        };
        let x = range(least(|point| point.0), most(|point| point.0));
        let y = range(least(|point| point.1), most(|point| point.1) * 1.1);
        match self.is_log {
            (true, true) => self.on(&area, (x.0..x.1).log_scale(), (y.0..y.1).log_scale())?,
            (true, false) => self.on(&area, (x.0..x.1).log_scale(), 0.0..y.1)?,
            (false, true) => self.on(&area, 0.0..x.1, (y.0..y.1).log_scale())?,
            (false, false) => self.on(&area, 0.0..x.1, 0.0..y.1)?,
        }
        area.present()?;
        Ok(())
    }

    fn on<X, Y>(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: X,
        y: Y,
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(70)
            .caption(self.title, ("sans-serif", 18))
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(("sans-serif", 13))
            .axis_desc_style(("sans-serif", 14))
            .light_line_style(WHITE)
            .draw()?;
        for ((name, points), color) in self.series.iter().zip(COLORS.iter().cycle()) {
            chart
                .draw_series(LineSeries::new(
                    points.iter().copied(),
                    color.stroke_width(2),
                ))?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK)
            .label_font(("sans-serif", 13))
            .draw()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_axes_is_drawn_with_all_series() {
        for is_log in [(false, false), (false, true), (true, false), (true, true)] {
            let points = vec![(0.0, 0.0), (1.0, 2.0), (10.0, 200.0)];
            let plot = Plot {
                title: "title",
                x: "across",
                y: "up",
                is_log,
                series: vec![
                    ("first".to_owned(), points.clone()),
                    ("second".to_owned(), points),
                ],
            };
            let svg = plot.svg().unwrap();
            let is_there =
                ["title", "across", "up", "first", "second"].map(|text| svg.contains(text));
            assert_eq!(is_there, [true; 5], "{is_log:?}");
        }
    }
}
