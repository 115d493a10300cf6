//! `cargo xtask bench quality`: `edge-lite eval` on the text of the golden data.

use std::process::Command;

use anyhow::ensure;

use crate::paths::{program, root};
use crate::{model, processes};

/// Options of `bench quality`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Split layers, separated by commas.
    #[arg(long, default_value = "10")]
    split_layers: String,
    /// Tokens of text; the text has 27,188.
    #[arg(long, default_value_t = 20_480)]
    max_tokens: usize,
}

/// Prints one table for the codecs and one for the head quantisations, each with the other one lossless.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let model = model::fetch()?;
    let eval = |codecs: &str, quantizations: &str| -> anyhow::Result<()> {
        let status = Command::new(program("edge-lite")?)
            .args([
                "eval",
                "--codecs",
                codecs,
                "--head-quantizations",
                quantizations,
            ])
            .args([
                "--split-layers",
                &arguments.split_layers,
                "--max-tokens",
                &arguments.max_tokens.to_string(),
            ])
            .arg("--model")
            .arg(&model)
            .arg("--text")
            .arg(root().join("tests/golden/eval_text.txt"))
            .status()?;
        ensure!(status.success(), "edge-lite eval failed");
        println!();
        Ok(())
    };
    eval("f32,f16,bf16,int8,int4,tcq4,tcq3", "none")?;
    eval("f32", "none,q8_0,q6_k,q5_1,q5_0,q5_k,q4_1,q4_0,q4_k")
}
