//! The load of rows that nobody computed, on a small tail: what a measurement of a large one on a GPU runs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::load::server::Server;
use e2e::load::synthetic::{self, Crowd};
use e2e::tiny_llama;
use headway_wire::Codec;

#[tokio::test]
async fn every_number_of_sessions_has_a_row_with_its_speed() -> Result<()> {
    let server = Server::start(&tiny_llama(), &[], None).await?;
    let crowd = Crowd {
        prompt_tokens: 20,
        answer_tokens: 200,
        split_layer: 1,
        codec: Codec::F16,
        arrival: Duration::from_millis(5),
        think_ms: [0.0, 0.0],
    };
    let mut lines = Vec::new();
    let mut print = |line: &str| lines.push(line.to_owned());
    synthetic::run(server.address(), &[1, 6], &crowd, &mut print).await?;
    for (sessions, line) in [1, 6].iter().zip(&lines[lines.len() - 2..]) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[1], sessions.to_string(), "{line}");
        let speed: f64 = cells[2].parse().context("a speed")?;
        assert!(speed > 0.0, "{line}");
    }
    Ok(())
}
