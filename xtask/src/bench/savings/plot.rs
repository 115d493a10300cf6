//! Tail-seconds and latency of each way, by class of device, as SVG.

use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use super::Way;
use super::account::Account;
use super::workload::Class;

const SIZE: (u32, u32) = (900, 420);
const COLOURS: [RGBColor; 3] = [
    RGBColor(120, 120, 120),
    RGBColor(230, 150, 40),
    RGBColor(30, 110, 190),
];

/// Draws bars of tail-seconds for 1,000 tokens: a group for all devices and one for each class.
pub fn write(path: &Path, accounts: &[Account], classes: &[Class]) -> anyhow::Result<()> {
    let mut groups = vec![("all".to_owned(), None)];
    groups.extend(
        classes
            .iter()
            .map(|class| (class.name().to_owned(), Some(*class))),
    );
    let of = |account: &Account, class| account.part(class, None).tail_seconds;
    let most = groups
        .iter()
        .flat_map(|(_, class)| accounts.iter().map(|account| of(account, *class)))
        .fold(0.0, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let columns = groups.len() * (Way::ALL.len() + 1);
        let columns = i32::try_from(columns).context("a few columns")?;
        let mut chart = ChartBuilder::on(&area)
            .caption("tail-seconds for 1,000 tokens", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(0..columns, 0.0..most * 1.1)?;
        let width = Way::ALL.len() + 1;
        let name = |column: &i32| {
            let column = usize::try_from(*column).unwrap_or(0);
            let is_middle = column % width == 1;
            let group = groups.get(column / width).filter(|_| is_middle);
            group.map_or_else(String::new, |(name, _)| name.clone())
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(groups.len() * width)
            .x_label_formatter(&name)
            .draw()?;
        for (index, account) in accounts.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let bars = groups.iter().enumerate().map(|(group, (_, class))| {
                let left = i32::try_from(group * width + index).unwrap_or(0);
                let corners = [(left, 0.0), (left + 1, of(account, *class))];
                Rectangle::new(corners, colour.filled())
            });
            chart
                .draw_series(bars)?
                .label(account.way.name())
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
                });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        area.present()?;
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
