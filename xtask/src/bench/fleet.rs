//! `cargo xtask bench fleet`: what no machine here can run, from 1,000 to 1,000,000 devices, as a simulation that counts
//! with measured costs (`fleet/calibration.rs`).

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use self::cells::Grid;
use self::plots::Plot;
use crate::processes::{self, cargo};

mod calibration;
mod cells;
mod control_plane;
mod events;
mod histogram;
mod outages;
mod outcome;
mod plots;
mod random;
mod scenario;
mod scrape_loop;
mod sensitivity;
mod step_costs;
mod tail;
mod validation;
mod world;

/// What is simulated, and what is measured for it.
#[derive(clap::Args)]
pub struct Arguments {
    /// What chance is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Numbers of devices, of all clusters together.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000,10000,100000,1000000"
    )]
    devices: Vec<u32>,
    /// Numbers of tails, of all clusters together.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000,2000")]
    tails: Vec<u32>,
    /// Numbers of clusters.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    clusters: Vec<u32>,
    /// Play clusters in whole, however large they are.
    #[arg(long)]
    whole: bool,
    /// A small part of it, in seconds.
    #[arg(long)]
    quick: bool,
    /// A folder that curves are written to.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Also measures a real tail on this machine beside what is predicted of it.
    #[arg(long)]
    validate: bool,
    /// Measures what the control plane's parts cost, and simulates nothing.
    #[arg(long)]
    costs: bool,
}

/// How much is simulated.
struct Extent {
    grid: Grid,
    devices_a_tail: Vec<u32>,
    tails: u32,
    pods: Vec<u32>,
}

/// Prints all tables and writes all curves.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.costs {
        processes::build_all()?;
        return cargo(&["run", "--quiet", "--release", "--bin", "fleet-costs"]);
    }
    let extent = extent(arguments);
    let plots = simulate(&extent, &mut |line| println!("{line}"));
    if let Some(folder) = &arguments.plots {
        write(folder, plots)?;
    }
    if arguments.validate {
        println!("### A tail on this machine\n");
        validation::cpu(&mut |line| println!("{line}"))?;
    }
    Ok(())
}

fn extent(arguments: &Arguments) -> Extent {
    let seed = arguments.seed;
    if arguments.quick {
        return Extent {
            grid: Grid {
                devices: vec![1_000, 10_000],
                tails: vec![1, 10],
                clusters: vec![1, 4],
                seed,
                is_whole: false,
                time_share: 0.2,
            },
            devices_a_tail: vec![500, 4_000],
            tails: 2,
            pods: vec![100, 2_000],
        };
    }
    Extent {
        grid: Grid {
            devices: arguments.devices.clone(),
            tails: arguments.tails.clone(),
            clusters: arguments.clusters.clone(),
            seed,
            is_whole: arguments.whole,
            time_share: 1.0,
        },
        devices_a_tail: vec![250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000],
        tails: 40,
        pods: vec![10, 100, 1_000, 2_000, 10_000, 100_000],
    }
}

fn simulate(extent: &Extent, print: &mut impl FnMut(&str)) -> Vec<(&'static str, Plot)> {
    let Extent {
        grid,
        devices_a_tail,
        tails,
        pods,
    } = extent;
    let (seed, time) = (grid.seed, grid.time_share);
    print("### A tail on a GPU, measured and simulated\n");
    print(&validation::gpu());
    print("### Devices, tails, clusters\n");
    cells::table(grid, print);
    print("### Devices on a tail\n");
    let density = cells::density(devices_a_tail, 4, seed, time);
    print(&density.text);
    print("### What was assumed\n");
    print(&sensitivity::table(
        8_000 * (tails / 8).max(1),
        (tails / 8).max(1),
        seed,
        time,
    ));
    print("### Lost tails\n");
    let outages = outages::play_all(*tails, seed);
    print(&outages.text);
    print(&control_plane::report(pods, seed));
    let mut plots = density.plots;
    plots.extend(outages.plots);
    plots.push(("scrape-rounds", control_plane::rounds_plot(seed)));
    plots
}

fn write(folder: &Path, plots: Vec<(&'static str, Plot)>) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, plot) in plots {
        let path = folder.join(format!("{name}.svg"));
        std::fs::write(&path, plot.svg()?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_quick_run_prints_every_table_and_draws_every_curve() {
        let line = <Line as clap::Parser>::parse_from(["fleet", "--quick"]);
        let mut text = String::new();
        let plots = simulate(&extent(&line.arguments), &mut |line| {
            text.push_str(line);
            text.push('\n');
        });
        for title in [
            "### A tail on a GPU",
            "### Devices, tails, clusters",
            "### Devices on a tail",
            "### What was assumed",
            "### Lost tails",
            "### Load by the number of pods",
            "### Where each part ends",
        ] {
            assert!(text.contains(title), "{title}");
        }
        // 10,000 devices on one tail are refused, and the row says so.
        let refused = text
            .lines()
            .find(|line| line.starts_with("| 10000 | 1 | 1 |"));
        assert!(
            refused.is_some_and(|row| row.contains("**refused**")),
            "{refused:?}"
        );
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), plots).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 5);
    }
}
