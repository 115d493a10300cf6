//! `cuda-check`: compares every kernel and the whole tail with the CPU on one device, and measures steps.
#![expect(clippy::print_stdout, reason = "a command-line tool talks to a person")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use headway_cuda::check::timing::Held;
use headway_cuda::check::{self, Check, attention_time, product_time, sampling_time, timing};
use headway_cuda::{CudaError, Gpu, TailSizes};

/// Compares the CUDA device with the CPU. Ends with 1 where a comparison fails.
#[derive(clap::Parser)]
#[command(name = "cuda-check", version)]
struct Args {
    /// A model, or a folder of models: .gguf files, and folders with config.json and *.safetensors.
    #[arg(long, default_value = "tests/golden/tiny")]
    models: PathBuf,
    /// Compare the model, SmolLM2-135M-Instruct, with the data in this folder, and nothing else.
    #[arg(long, value_name = "FOLDER")]
    golden: Option<PathBuf>,
    /// The device's number.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Measure steps too.
    #[arg(long)]
    time: bool,
    /// Print measured steps alone, each as a line of JSON. Leaves the comparisons out.
    #[arg(long, requires = "time")]
    json: bool,
    /// Measure decode steps with so many copies of weights in flight.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    time_in_flight: Vec<u32>,
    /// Measure decode steps as graphs, and kernel by kernel.
    #[arg(long)]
    time_graphs: bool,
    /// Measure steps of a deterministic tail, and of another one.
    #[arg(long)]
    time_deterministic: bool,
    /// What the matrices are held in of the model whose steps are measured.
    #[arg(long, default_value = "bf16")]
    weights: Weights,
    /// Measure products of several shapes too.
    #[arg(long)]
    time_products: bool,
    /// Measure attention of several shapes too.
    #[arg(long)]
    time_attention: bool,
    /// Measure what is found out about logits too.
    #[arg(long)]
    time_sampling: bool,
    /// Check this part alone.
    #[arg(long)]
    only: Option<Part>,
    /// Measure only.
    #[arg(long)]
    no_checks: bool,
}

/// A part of the checks.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    Attention,
    Quantised,
    Sampling,
    Stages,
    Tails,
}

/// What matrices are held in.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Weights {
    Bf16,
    Fp8,
    EightBits,
    FourBits,
}

impl Weights {
    const fn held(self) -> Held {
        match self {
            Self::Bf16 => Held::Bf16,
            Self::Fp8 => Held::Fp8,
            Self::EightBits => Held::EightBits,
            Self::FourBits => Held::FourBits,
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} checks FAILED");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many checks have failed.
fn run(args: &Args) -> Result<usize, CudaError> {
    let gpu = Gpu::open(args.device)?;
    if args.json {
        timing::all(&gpu, args.weights.held(), &mut |line| {
            println!("{}", line.json());
        })?;
        return Ok(0);
    }
    let (free, total) = gpu.memory_bytes()?;
    println!(
        "{}: {} of {} MiB free",
        gpu.name()?,
        free >> 20,
        total >> 20
    );
    let (mut passed, mut failed) = (0, 0);
    if !args.no_checks {
        let mut report = |check: &Check| {
            println!("{check}");
            if check.passed() {
                passed += 1;
            } else {
                failed += 1;
            }
        };
        match (&args.golden, args.only) {
            (Some(golden), _) => check::golden(&gpu, &args.models, golden, &mut report)?,
            (None, Some(Part::Attention)) => check::attention(&gpu, &mut report)?,
            (None, Some(Part::Quantised)) => check::quantised(&gpu, &args.models, &mut report)?,
            (None, Some(Part::Sampling)) => check::sampling(&gpu, &mut report)?,
            (None, Some(Part::Stages)) => check::stages(&gpu, &args.models, &mut report)?,
            (None, Some(Part::Tails)) => check::whole_tails(&gpu, &args.models, &mut report)?,
            (None, None) => check::all(&gpu, &args.models, &mut report)?,
        }
        println!("{passed} checks ok, {failed} failed");
    }
    let usual = TailSizes::new(0, 0);
    let mut sizes = Vec::new();
    for &in_flight in &args.time_in_flight {
        let name = format!("{in_flight} in flight");
        sizes.push((name, TailSizes { in_flight, ..usual }));
    }
    if args.time_graphs {
        for (name, graphs) in [("kernel by kernel", false), ("as graphs", true)] {
            sizes.push((name.to_owned(), TailSizes { graphs, ..usual }));
        }
    }
    if args.time_deterministic {
        for (name, deterministic) in [("usual", false), ("deterministic", true)] {
            let sizes_of = TailSizes {
                deterministic,
                ..usual
            };
            sizes.push((name.to_owned(), sizes_of));
        }
    }
    if !sizes.is_empty() {
        timing::sizes(&gpu, &sizes, &mut |name, line| println!("{name}: {line}"))?;
    }
    if args.time_products {
        product_time::all(&gpu, &mut |line| println!("{line}"))?;
    }
    if args.time_attention {
        attention_time::all(&gpu, &mut |line| println!("{line}"))?;
    }
    if args.time_sampling {
        sampling_time::all(&gpu, &mut |timing| println!("{timing}"))?;
    }
    if args.time {
        timing::all(&gpu, args.weights.held(), &mut |line| println!("{line}"))?;
    }
    Ok(failed)
}
