//! `edge-lite pull`

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Result, ensure};
use edge_lite::client::pull;
use edge_lite::config::Progress;

use crate::args::{PullArgs, SplitLayer};
use crate::engine::client_config;

pub async fn run(args: PullArgs) -> Result<()> {
    ensure!(
        args.head.split_layer != SplitLayer::Plan,
        "a plan depends on what is asked: ask `edge-lite plan`, and pull the split layer that it names"
    );
    let mut config = client_config(&args.head, &args.credentials);
    config.progress = Some(Arc::new(show));
    let pulled = pull(&args.tail, &config).await?;
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "{} {}",
        pulled.manifest.name, pulled.manifest.model_digest
    )?;
    for (part, file) in pulled.parts.iter().zip(&pulled.files) {
        writeln!(
            stdout,
            "{}\t{}\t{}\t{}",
            part.name,
            part.bytes,
            part.digest,
            file.display()
        )?;
    }
    Ok(())
}

/// Lines to stderr; a stderr that is closed is no reason to stop the download.
fn show(progress: &Progress) {
    let Progress {
        part,
        done_bytes,
        total_bytes,
        cached,
    } = progress;
    let note = if *cached { " (cached)" } else { "" };
    let _ = writeln!(
        std::io::stderr(),
        "{part}: {done_bytes} of {total_bytes} bytes{note}"
    );
}
