//! What an open session costs a tail in memory and descriptors, its KV cache aside: sessions are opened and do nothing.

use std::time::Instant;

use anyhow::{Result, anyhow};
use e2e::load::answers::{wire_sampling, wire_u32};
use e2e::load::device::Session;
use e2e::load::server::Server;
use e2e::smollm2;
use headway_model::sampler::SamplingParams;
use headway_wire::message::Open;
use headway_wire::{Codec, PROTOCOL_VERSION};

use crate::{ms, number};

/// Positions that each session asks for.
const POSITIONS: usize = 64;

pub async fn measure(sessions: &[usize], print: &mut impl FnMut(&str)) -> Result<()> {
    let most = sessions
        .iter()
        .copied()
        .max()
        .unwrap_or_default()
        .max(1)
        .to_string();
    let options = ["--max-sessions", &most, "--max-queue", &most].map(str::to_owned);
    let server = Server::start(&smollm2(), &options, None).await?;
    let open = Open {
        protocol_version: PROTOCOL_VERSION,
        model_digest: server.model_digest(None).await?,
        split_layer: 15,
        codec: Some(Codec::F16.into()),
        sampling: Some(wire_sampling(&SamplingParams::default())),
        max_positions: wire_u32(POSITIONS),
        prompt_tokens: 1,
        ..Open::default()
    };
    print("## Sessions of a tail\n");
    print(
        "| open sessions | RSS, MiB | KiB a session | descriptors | threads | opening, ms of CPU a session | opened a second |\n|---|---|---|---|---|---|---|",
    );
    let (mut held, mut first) = (Vec::new(), None);
    for &count in sessions {
        let (before, started, more) = (
            server.usage()?,
            Instant::now(),
            count.saturating_sub(held.len()),
        );
        for _ in 0..more {
            let session = Session::open(server.link(), None, open.clone()).await;
            held.push(session.map_err(|ended| anyhow!("a session is refused: {ended:?}"))?);
        }
        let (after, took) = (server.usage()?, started.elapsed());
        let (first_count, first_kib) = *first.get_or_insert((count, after.resident_kib));
        let grown_kib = number(usize::try_from(
            after.resident_kib.saturating_sub(first_kib),
        )?);
        print(&format!(
            "| {count} | {:.1} | {:.1} | {} | {} | {:.2} | {:.0} |",
            number(usize::try_from(after.resident_kib)?) / 1024.0,
            grown_kib / number(count.saturating_sub(first_count).max(1)),
            after.file_descriptors,
            after.threads,
            ms(after.cpu.saturating_sub(before.cpu)) / number(more.max(1)),
            number(more) / took.as_secs_f64(),
        ));
    }
    print("");
    Ok(())
}
