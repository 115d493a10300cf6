//! Asks a tail for what traffic has not told yet: the round trip, the bandwidths, and what rows cost it.
//!
//! The tail measures itself: a short prompt and a few tokens, and it knows its costs. Where it knows them already,
//! nothing is computed there but a few rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headway_model::manifest::Manifest;
use headway_model::tail_load::{RowCosts, TailLoad};
use headway_wire::message::{Open, Step, TokenIds, step};
use headway_wire::{Codec, PROTOCOL_VERSION, codec};

use super::float;
use crate::client::Reached;
use crate::config::ClientConfig;
use crate::connection::{Connection, Dialer};
use crate::error::{DeviceError, Error};
use crate::link::{Exchange, Link};
use crate::rows::wire_u32;

/// Of the prompt and the tokens from which a tail learns what they cost: rows, and tokens enough for the first ones,
/// which are slow, to count little.
const UNMEASURED: (usize, usize) = (64, 32);
/// As many where it knows: the tokens tell the round trip.
const MEASURED: (usize, usize) = (1, 8);
/// The first frame that is sent to tell the bandwidth; the next one has four times as much where this one was fast.
const FIRST_BYTES: usize = 64 << 10;
const FRAMES: usize = 3;
/// Rows of all of them together.
const MOST_ROWS: usize = 1024;
/// A frame that took so long tells enough.
const ENOUGH: Duration = Duration::from_millis(150);
/// Bounds of the download that tells the bandwidth down.
const MOST_DOWN_BYTES: u64 = 4 << 20;
const MOST_DOWN: Duration = Duration::from_secs(1);

/// What is known of a tail and the way to it.
pub(crate) struct Probed {
    pub(crate) link: Link,
    pub(crate) load: TailLoad,
}

/// Measures the way to a tail; the tail learns its costs where it does not know them.
pub(crate) async fn probe(reached: &Reached, config: &ClientConfig) -> Result<Probed, Error> {
    let probe = Probe {
        manifest: &reached.manifest,
        dialer: Dialer::new(reached.url.clone(), Arc::clone(&reached.tls), config),
    };
    let load = reached.api.load().await?;
    let (prompt_rows, tokens) = match is_measured(&load.costs) {
        true => MEASURED,
        false => UNMEASURED,
    };
    probe.tokens(prompt_rows, tokens).await?;
    probe.uplink().await?;
    let began = Instant::now();
    let tokenizer = reached.api.url().tokenizer(&reached.manifest.model_digest);
    let down_bytes = reached
        .api
        .fetch_some(tokenizer, MOST_DOWN_BYTES, MOST_DOWN)
        .await?;
    probe.dialer.link.observe(Exchange {
        up_bytes: 0,
        down_bytes,
        elapsed: began.elapsed(),
        tail: Duration::ZERO,
    });
    Ok(Probed {
        link: probe.dialer.link.link(),
        load: reached.api.load().await?,
    })
}

/// Whether a tail knows what rows cost it.
pub(crate) fn is_measured(costs: &RowCosts) -> bool {
    costs.decode_step_layer_us.is_some()
        && costs.prefill_row_layer_us.is_some()
        && costs.sampled_row_us.is_some()
}

struct Probe<'a> {
    manifest: &'a Manifest,
    dialer: Dialer,
}

/// A session for rows that mean nothing.
struct ProbeSession {
    connection: Connection,
    split_layer: usize,
    hidden_size: usize,
    codec: Codec,
    /// Positions that are left.
    left: usize,
}

impl Probe<'_> {
    /// A prompt, and a token after each of a few rows.
    async fn tokens(&self, prompt_rows: usize, tokens: usize) -> Result<(), Error> {
        let manifest = self.manifest;
        let split_layer = match (manifest.split.min, manifest.token_upload) {
            // The tail then holds all layers but those below, which nobody may send for token ids.
            (0, false) => 1.min(manifest.split.max),
            (min, _) => min,
        };
        let mut session = self.open(split_layer, prompt_rows, tokens).await?;
        session.send(prompt_rows, false).await?;
        for _ in 0..tokens {
            session.send(1, true).await?;
        }
        session.connection.close().await;
        Ok(())
    }

    /// Frames of hidden states, where the tail takes any; to the last of its layers, which cost it least.
    async fn uplink(&self) -> Result<(), Error> {
        let config = &self.manifest.identity.config;
        let split_layer = self.manifest.split.max.min(config.num_layers - 1);
        if split_layer == 0 {
            return Ok(());
        }
        let row_bytes = self.codec().encoded_bytes_max(1, config.hidden_size).max(1);
        let in_frame = (self.dialer.limits.max_frame_bytes / 2 / row_bytes).max(1);
        let mut rows = FIRST_BYTES.div_ceil(row_bytes).min(in_frame);
        let mut session = self.open(split_layer, MOST_ROWS, 0).await?;
        for _ in 0..FRAMES {
            rows = rows.min(in_frame).min(session.left);
            if rows == 0 {
                break;
            }
            let began = Instant::now();
            session.send(rows, false).await?;
            if began.elapsed() > ENOUGH {
                break;
            }
            rows *= 4;
        }
        session.connection.close().await;
        Ok(())
    }

    /// The tail's first codec: bytes are what is measured.
    fn codec(&self) -> Codec {
        let first = self.manifest.codecs.first();
        let first = first.and_then(|name| name.parse().ok());
        first.unwrap_or(Codec::F32)
    }

    /// A session for a prompt and tokens, as far as the tail takes so many.
    async fn open(
        &self,
        split_layer: usize,
        prompt_rows: usize,
        tokens: usize,
    ) -> Result<ProbeSession, Error> {
        let positions = (prompt_rows + tokens).min(self.manifest.max_positions);
        let open = Open {
            protocol_version: PROTOCOL_VERSION,
            model_digest: self.manifest.model_digest.clone(),
            split_layer: wire_u32(split_layer),
            codec: Some(self.codec().into()),
            max_positions: wire_u32(positions),
            prompt_tokens: wire_u32(positions.saturating_sub(tokens).max(1)),
            ..Open::default()
        };
        let connection = Connection::open(&self.dialer, open).await?;
        let most = connection.opened.max_positions as usize;
        Ok(ProbeSession {
            connection,
            split_layer,
            hidden_size: self.manifest.identity.config.hidden_size,
            codec: self.codec(),
            left: positions.min(most),
        })
    }
}

impl ProbeSession {
    /// As many of `rows` as fit, and their result.
    async fn send(&mut self, rows: usize, sample: bool) -> Result<(), Error> {
        let most = self.connection.opened.max_step_positions as usize;
        let rows = rows.min(self.left).min(most);
        if rows == 0 {
            return Ok(());
        }
        let position = self.connection.sent();
        let input = if self.split_layer == 0 {
            step::Input::TokenIds(TokenIds { ids: vec![0; rows] })
        } else {
            // Numbers of the size that hidden states have, no two rows alike.
            let values: Vec<f32> = (0..rows * self.hidden_size).map(small_number).collect();
            let encoded = codec::encode(self.codec, &values, self.hidden_size);
            step::Input::Activations(encoded.map_err(DeviceError::from)?)
        };
        let step = Step {
            position: wire_u32(position),
            input: Some(input),
            sample,
            ..Step::default()
        };
        self.left -= rows;
        self.connection.send_step(step, position + rows).await?;
        self.connection.next_result().await?;
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "between -1 and 1")]
fn small_number(index: usize) -> f32 {
    ((float(index) * 0.618_034).fract() * 2.0 - 1.0) as f32
}
