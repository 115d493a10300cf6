//! `cargo xtask bench tail`: steps of the tail on a GPU, beside transformers on the same one, and beside what the GPU
//! cannot be faster than.
//!
//! Two programs measure, each on its own: `cuda-check --time --json` and `peers/transformers_tail.py`. Each prints a
//! JSON object a line; the tables are made of those lines alone, so that both can run on a machine without this
//! repository.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use self::tables::Line;
use crate::cuda;
use crate::paths::{program, root};

mod tables;

/// Options of `bench tail`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print tables from the `*.jsonl` files in this folder, and measure nothing.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "without_peer"])]
    from: Option<PathBuf>,
    /// Keep the measured lines in this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measure without transformers.
    #[arg(long)]
    without_peer: bool,
    /// A Python with torch and transformers 5.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Passed on to peers/transformers_tail.py, such as `-- --compile-decode 8x512`.
    #[arg(last = true)]
    peer: Vec<String>,
}

/// Prints tables of times and of ratios.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(folder) = &arguments.from {
        return print(folder);
    }
    ensure!(
        cuda::has_driver(),
        "there is no NVIDIA driver on this machine, and bench tail measures a GPU. Where there is one, run\n\
         \x20 cuda-check --time --json > DIR/headway.jsonl    (`cargo xtask cuda build` makes it)\n\
         \x20 python3 transformers_tail.py > DIR/peer.jsonl   (in xtask/peers)\n\
         and here `cargo xtask bench tail --from DIR`"
    );
    cuda::run(cuda::Command::Build)?;
    let temporary = tempfile::tempdir()?;
    let folder = arguments.out.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut ours = Command::new(program("cuda-check")?);
    ours.args(["--time", "--json"]);
    measure(ours, &folder.join("headway.jsonl"))?;
    if !arguments.without_peer {
        let mut peer = Command::new(&arguments.python);
        peer.arg(root().join("xtask/peers/transformers_tail.py"))
            .args(&arguments.peer);
        if let Err(error) = measure(peer, &folder.join("peer.jsonl")) {
            eprintln!("without the peer: {error:#}");
        }
    }
    print(folder)
}

/// Runs a program whose standard output are lines.
fn measure(mut command: Command, lines: &Path) -> anyhow::Result<()> {
    let out = File::create(lines).with_context(|| format!("creating {}", lines.display()))?;
    let name = command.get_program().display().to_string();
    let status = command
        .stdout(out)
        .status()
        .with_context(|| format!("running {name}"))?;
    let said = || std::fs::read_to_string(lines).unwrap_or_default();
    ensure!(status.success(), "{name}: {status}\n{}", said().trim());
    Ok(())
}

fn print(folder: &Path) -> anyhow::Result<()> {
    let listed = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = listed
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|kind| kind == "jsonl"));
    files.sort();
    ensure!(!files.is_empty(), "no *.jsonl in {}", folder.display());
    let mut lines: Vec<Line> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        for (index, line) in text.lines().enumerate() {
            let parsed = serde_json::from_str(line);
            lines.push(parsed.with_context(|| format!("{}:{}", file.display(), index + 1))?);
        }
    }
    println!("{}", tables::markdown(&lines));
    Ok(())
}
