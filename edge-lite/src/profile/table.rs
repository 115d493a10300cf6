//! A profile, for people.

use std::fmt::{Display, Formatter, Result};

use super::{DeviceFacts, LayerTimes, Power, Profile, TailLink};
use crate::link::Link;

impl Display for Power {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Mains { percent: None } => write!(f, "mains"),
            Self::Mains {
                percent: Some(percent),
            } => write!(f, "mains, battery at {percent} %"),
            Self::Battery { percent } => write!(f, "battery at {percent} %"),
            Self::Unknown => write!(f, "unknown"),
        }
    }
}

impl Display for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let ms =
            |value: Option<f64>| value.map_or("unknown".to_owned(), |ms| format!("{ms:.2} ms"));
        let rate = |bits: Option<f64>| {
            bits.map_or("unknown".to_owned(), |bits| {
                format!("{:.1} Mbit/s", bits / 1e6)
            })
        };
        write!(
            f,
            "round trip {} (least {}, jitter {}), a session opens in {}, up {}, down {}",
            ms(self.rtt_ms),
            ms(self.min_rtt_ms),
            ms(self.jitter_ms),
            ms(self.open_ms),
            rate(self.up_bits_per_second),
            rate(self.down_bits_per_second)
        )
    }
}

impl Display for Profile {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let DeviceFacts {
            memory_total_bytes,
            memory_available_bytes,
            physical_cores,
            logical_cores,
            cpu_features,
            accelerator,
            power,
        } = &self.device;
        writeln!(
            f,
            "model        {} ({})",
            self.model_name, self.key.model_digest
        )?;
        writeln!(
            f,
            "layers run   on the {accelerator}, {} threads",
            self.key.threads
        )?;
        let gigabytes = |bytes: &u64| *bytes >> 20;
        writeln!(
            f,
            "memory       {} MiB, {} MiB available",
            gigabytes(memory_total_bytes),
            gigabytes(memory_available_bytes)
        )?;
        let physical = physical_cores.map_or("unknown".to_owned(), |cores| cores.to_string());
        writeln!(
            f,
            "cores        {physical} physical, {logical_cores} logical"
        )?;
        writeln!(f, "features     {}", cpu_features.join(" "))?;
        writeln!(f, "power        {power}")?;
        for times in &self.layers {
            writeln!(f)?;
            write_times(f, times)?;
        }
        for TailLink { url, link, .. } in &self.tails {
            writeln!(f, "\nlink to {url}\n  {link}")?;
        }
        Ok(())
    }
}

fn write_times(f: &mut Formatter<'_>, times: &LayerTimes) -> Result {
    writeln!(
        f,
        "head quantisation {}, weights held as {}: {} KiB a layer, embedding {} KiB",
        times.held.quantization,
        times.held.dtype,
        times.layer_bytes >> 10,
        times.embedding_bytes >> 10
    )?;
    for time in &times.decode {
        writeln!(
            f,
            "  one row behind {:>5} positions    {:>9.4} ms a layer",
            time.positions, time.ms
        )?;
    }
    for time in &times.prefill {
        writeln!(
            f,
            "  {:>4} rows at once               {:>9.4} ms a layer, {:.4} ms a row",
            time.rows,
            time.ms,
            time.ms / super::float(time.rows)
        )?;
    }
    writeln!(
        f,
        "  embedding                       {:>9.4} ms a row",
        times.embedding_row_ms
    )?;
    match &times.lm_head {
        Some(lm_head) => writeln!(
            f,
            "  norm and lm_head                {:>9.4} ms a row",
            lm_head.one_row_ms
        ),
        None => writeln!(f, "  norm and lm_head                not here"),
    }
}
