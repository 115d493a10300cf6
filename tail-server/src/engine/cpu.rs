//! The engine's device where there is no accelerator: the decoder's own kernels on the global thread pool.

use std::time::Instant;

use headway_model::decoder::Segment;
use headway_model::sampler::Sampled;
use headway_model::{Decoder, ForwardError, KvStore};

use super::device::{Device, DeviceError, Meanwhile, Member, MemberRows, StepRun};
use super::sampling::{advance, verify, wanted_rows};
use crate::accounting::StepTimes;

/// Rows whose logits are in memory at a time: 64 rows of a vocabulary of 150,000 take 38 MB.
const LOGITS_ROWS: usize = 64;

/// A decoder, its KV memory, and the batch's buffer.
pub(crate) struct CpuDevice {
    decoder: Decoder,
    kv_store: KvStore,
    /// `[rows, hidden_size]` of the step that runs; kept between steps for its memory.
    hidden_states: Vec<f32>,
}

impl CpuDevice {
    /// With `kv_blocks` blocks of KV memory, which the system gives as they are first written.
    pub(crate) fn new(decoder: Decoder, kv_blocks: usize) -> Self {
        let kv_store = KvStore::new(decoder.config(), kv_blocks);
        Self {
            decoder,
            kv_store,
            hidden_states: Vec::new(),
        }
    }
}

impl Device for CpuDevice {
    /// The batch is one buffer with the members' rows in their order, so the rows that are active at a layer
    /// are its first ones: a session joins at its layer by making that prefix longer, and nothing is copied
    /// between layers.
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
        _meanwhile: &mut Meanwhile<'_>,
    ) -> Result<StepRun, DeviceError> {
        let mut laps = Laps { last: started };
        self.assemble(members)?;
        let mut times = StepTimes {
            assemble_ns: laps.lap(),
            ..StepTimes::default()
        };

        self.forward(members, &mut times, &mut laps)?;
        let samples = self.sample(members)?;
        advance(members, &samples);
        times.finish_ns = laps.lap();
        times.logits_ns = times.finish_ns;
        Ok(StepRun { times, samples })
    }
}

impl CpuDevice {
    /// Fills the buffer with the rows at their entry layers.
    fn assemble(&mut self, members: &[Member<'_>]) -> Result<(), ForwardError> {
        self.hidden_states.clear();
        for member in members {
            match member.input {
                MemberRows::TokenIds(token_ids) => {
                    self.hidden_states
                        .extend_from_slice(&self.decoder.embed(token_ids)?);
                }
                MemberRows::HiddenStates(values, _) => self.hidden_states.extend_from_slice(values),
            }
        }
        Ok(())
    }

    fn forward(
        &mut self,
        members: &[Member<'_>],
        times: &mut StepTimes,
        laps: &mut Laps,
    ) -> Result<(), ForwardError> {
        let hidden_size = self.decoder.config().hidden_size;
        let num_layers = self.decoder.config().num_layers;
        times.first_layer = members
            .first()
            .map_or(num_layers, |member| member.entry_layer);

        let mut segments: Vec<Segment<'_>> = Vec::with_capacity(members.len());
        let mut active_rows = 0;
        let mut joining = members.iter().peekable();
        for layer in times.first_layer..num_layers {
            while let Some(member) = joining.next_if(|member| member.entry_layer <= layer) {
                active_rows += member.rows;
                segments.push(Segment {
                    table: &*member.table,
                    rows: member.rows,
                });
            }
            let active = &mut self.hidden_states[..active_rows * hidden_size];
            self.decoder
                .forward_layer(layer, active, &segments, &mut self.kv_store)?;
            times.layers_ns.push(laps.lap());
        }
        Ok(())
    }

    /// Final norm, lm_head and sampler, for the rows after which members want a token.
    fn sample(&self, members: &mut [Member<'_>]) -> Result<Vec<Vec<Sampled>>, ForwardError> {
        let config = self.decoder.config();
        let wanted = wanted_rows(members);
        let mut samples: Vec<Vec<Sampled>> = members.iter().map(|_| Vec::new()).collect();
        for wanted in wanted.chunks(LOGITS_ROWS) {
            let mut rows = Vec::with_capacity(wanted.len() * config.hidden_size);
            for wanted in wanted {
                let start = wanted.row * config.hidden_size;
                rows.extend_from_slice(&self.hidden_states[start..start + config.hidden_size]);
            }
            let mut logits = self.decoder.logits(&rows)?; // [wanted, vocab_size]
            for (wanted, logits) in wanted.iter().zip(logits.chunks_mut(config.vocab_size)) {
                verify(members, &mut samples, wanted, |sampler, position| {
                    Ok::<_, ForwardError>(sampler.sample(logits, position))
                })?;
            }
        }
        Ok(samples)
    }
}

/// Measures from the end of one lap to the end of the next, so that no time falls between two.
struct Laps {
    last: Instant,
}

impl Laps {
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let lap = now.saturating_duration_since(self.last);
        self.last = now;
        u64::try_from(lap.as_nanos()).unwrap_or(u64::MAX)
    }
}
