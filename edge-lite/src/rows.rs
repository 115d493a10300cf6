//! What goes up for each position: encoded hidden states from the head layers, or bare token ids.

mod head;

use std::time::Duration;

use bytes::Bytes;
use headway_wire::message::{Activations, Step, TokenIds, step};
use headway_wire::{Codec, codec};

use self::head::{Head, Pass};
use crate::drafting::{Draft, DraftPass, Guessing};
use crate::error::DeviceError;
use crate::head_layers::{HeadLayers, HeadRows};
use crate::prefix::PrefixDigests;
use crate::replay::ReplayBuffer;

/// Makes the steps of one generation, one at a time, off the async threads.
pub(crate) struct Rows {
    head: Option<Head>,
    /// Positions before this one go up as token ids, although there are head layers.
    token_positions: usize,
    /// That many may, where the tail takes them.
    wanted_token_positions: usize,
    /// Of token ids; those of hidden states are made with them.
    token_digests: Option<PrefixDigests>,
    codec: Codec,
    hidden_size: usize,
    max_replay_bytes: usize,
    sends_history: bool,
    ready: Option<Made>,
    /// Rows that were made for a step with guesses whose result is not there yet; the first one's position.
    unverified: Option<(usize, Activations)>,
    compute: Duration,
}

/// Consecutive positions and their tokens.
#[derive(Clone)]
pub(crate) struct Span {
    position: usize,
    token_ids: Vec<u32>,
    /// Of the tokens, the last ones that are guesses.
    guesses: usize,
}

/// A step that only lacks whether it samples.
pub(crate) struct Made {
    span: Span,
    input: step::Input,
    draft: Option<Draft>,
}

impl Made {
    /// One past the step's last position.
    pub(crate) fn end(&self) -> usize {
        self.span.position + self.span.token_ids.len()
    }

    /// Positions of the sequence in it that go up as token ids.
    pub(crate) const fn token_id_positions(&self) -> usize {
        match self.input {
            step::Input::TokenIds(_) => self.span.token_ids.len() - self.span.guesses,
            step::Input::Activations(_) => 0,
        }
    }

    /// What head layers made, and the time it took.
    fn of_rows(span: Span, rows: HeadRows, draft: Option<Draft>) -> (Self, Duration) {
        let HeadRows {
            activations,
            compute,
        } = rows;
        let made = Self {
            span,
            input: step::Input::Activations(activations),
            draft,
        };
        (made, compute)
    }

    /// The guesses among its tokens, and what is known of them.
    pub(crate) fn take_draft(&mut self) -> Option<Draft> {
        self.draft.take()
    }
}

/// How a generation's rows are made.
pub(crate) struct RowsConfig {
    pub(crate) codec: Codec,
    pub(crate) hidden_size: usize,
    pub(crate) capacity: usize,
    /// A penalty on the tail needs the token ids beside the hidden states.
    pub(crate) sends_history: bool,
    pub(crate) max_replay_bytes: usize,
    /// What is sent is digested, too.
    pub(crate) digests: bool,
    /// So many positions go up as token ids although there are head layers, where the tail takes them.
    pub(crate) token_positions: usize,
}

impl Rows {
    /// Without head layers, token ids go up.
    pub(crate) fn new(
        head_layers: Option<&HeadLayers>,
        draft: Option<DraftPass>,
        config: &RowsConfig,
    ) -> Self {
        let codec = config.codec;
        let digests = |split_layer: usize, codec| {
            config
                .digests
                .then(|| PrefixDigests::new(wire_u32(split_layer), codec))
        };
        let digests_token_ids = head_layers.is_none() || config.token_positions > 0;
        let head = head_layers.map(|layers| {
            let split_layer = layers.layers().num_layers();
            let digests = digests(split_layer, Some(codec)).filter(|_| !digests_token_ids);
            let max_bytes = config.max_replay_bytes;
            let replay = ReplayBuffer::new(codec, config.token_positions, max_bytes);
            Head::new(layers.pass(config.capacity, codec, digests, draft), replay)
        });
        Self {
            sends_history: config.sends_history && head.is_some(),
            token_digests: digests(0, None).filter(|_| digests_token_ids),
            head,
            token_positions: 0,
            wanted_token_positions: config.token_positions,
            max_replay_bytes: config.max_replay_bytes,
            codec: config.codec,
            hidden_size: config.hidden_size,
            ready: None,
            unverified: None,
            compute: Duration::ZERO,
        }
    }

    /// A tail takes the first positions as token ids, or does not.
    pub(crate) fn prefill_by_token_ids(&mut self, granted: bool) {
        self.token_positions = if granted {
            self.wanted_token_positions
        } else {
            0
        };
        if let Some(head) = &mut self.head
            && self.wanted_token_positions > 0
            && !granted
        {
            // All rows are computed from the first one on, so that none that is kept is behind a gap.
            head.replay = ReplayBuffer::new(self.codec, 0, self.max_replay_bytes);
        }
    }

    /// True where this position goes up as a token id although there are head layers.
    pub(crate) fn takes_token_ids(&self, position: usize) -> bool {
        self.head.is_some() && position < self.token_positions
    }

    /// True between `start` and the `next` that gives the result.
    pub(crate) fn is_started(&self) -> bool {
        self.ready.is_some() || self.head.as_ref().is_some_and(Head::is_started)
    }

    /// Time in which layers ran here.
    pub(crate) fn compute(&self) -> Duration {
        self.compute
    }

    /// Starts to make a step of at most `max_rows` rows from `position` on. To be called when nothing is
    /// started; `sequence` is all tokens of the generation, and `position` lies before its end.
    pub(crate) fn start(&mut self, sequence: &[u32], position: usize, max_rows: usize) {
        let mut end = sequence.len().min(position + max_rows);
        if let Some(head) = &mut self.head
            && position < self.token_positions
        {
            end = end.min(self.token_positions);
            head.catch_up(&sequence[..self.token_positions], max_rows);
        }
        let span = |end: usize| Span {
            position,
            token_ids: sequence[position..end].to_vec(),
            guesses: 0,
        };
        let head = self.head.as_mut();
        let Some(head) = head.filter(|_| position >= self.token_positions) else {
            let span = span(end);
            let input = step::Input::TokenIds(TokenIds {
                ids: span.token_ids.clone(),
            });
            self.ready = Some(Made {
                span,
                input,
                draft: None,
            });
            return;
        };
        if let Some(activations) = head.replay.rows_from(position, end - position) {
            self.ready = Some(Made {
                span: span(position + activations.rows as usize),
                input: step::Input::Activations(activations),
                draft: None,
            });
            return;
        }
        let span = span(end);
        head.start(move |pass| {
            let rows = pass.run(span.position, &span.token_ids, span.token_ids.len())?;
            Ok(Made::of_rows(span, rows, None))
        });
    }

    /// Starts to make the step of the last token of `sequence` and of guesses of the next ones. To be called when
    /// nothing is started; [`Rows::verified`] follows the step's result.
    pub(crate) fn start_draft(&mut self, sequence: &[u32], guessing: Guessing) {
        let position = sequence.len() - 1;
        let span = move |sequence: &[u32], draft: &Draft| Span {
            position,
            token_ids: [&sequence[position..], &draft.token_ids].concat(),
            guesses: draft.token_ids.len(),
        };
        match (&mut self.head, guessing) {
            (Some(head), Guessing::Guessed(draft)) => {
                let span = span(sequence, &draft);
                head.start(move |pass| {
                    let rows = pass.run(position, &span.token_ids, 1)?;
                    Ok(Made::of_rows(span, rows, Some(draft)))
                });
            }
            (Some(head), Guessing::AskModel(budget)) => {
                let sequence = sequence.to_vec();
                head.start(move |pass| {
                    let (rows, draft) = pass.run_draft(&sequence, budget)?;
                    Ok(Made::of_rows(span(&sequence, &draft), rows, Some(draft)))
                });
            }
            (None, guessing) => {
                // A model guesses from what head layers make.
                let draft = match guessing {
                    Guessing::Guessed(draft) => draft,
                    Guessing::AskModel(_) => Draft::of_model(),
                };
                let span = span(sequence, &draft);
                let ids = span.token_ids.clone();
                self.ready = Some(Made {
                    span,
                    input: step::Input::TokenIds(TokenIds { ids }),
                    draft: Some(draft),
                });
            }
        }
    }

    /// The first `right` guesses of the last step stand: their rows are the sequence's now.
    pub(crate) fn verified(&mut self, right: usize) {
        let Some(((position, activations), head)) = self.unverified.take().zip(self.head.as_mut())
        else {
            return;
        };
        let kept = first_rows(&activations, 1 + right, self.codec);
        head.replay.record(position, &kept);
        if let Pass::Idle(pass) = &mut head.pass {
            pass.digest(position, &kept);
        }
    }

    /// The step that was started. Cancel safe; pending for ever where nothing was started.
    pub(crate) async fn next(&mut self) -> Result<Made, DeviceError> {
        if let Some(made) = self.ready.take() {
            return Ok(made);
        }
        if let Some(head) = &mut self.head {
            self.compute += head.caught_up().await?;
        }
        let Some(Head {
            pass: pass @ Pass::Busy(_),
            replay,
            ..
        }) = &mut self.head
        else {
            return std::future::pending().await;
        };
        let Pass::Busy(worker) = pass else {
            return std::future::pending().await;
        };
        let outcome = worker.await;
        // From here to the end nothing is awaited, so that a cancelled call loses nothing.
        *pass = Pass::Lost;
        let (head_pass, made) = outcome?;
        *pass = Pass::Idle(head_pass);
        let (made, compute) = made?;
        self.compute += compute;
        if let step::Input::Activations(activations) = &made.input {
            let Span {
                position, guesses, ..
            } = made.span;
            self.unverified = (guesses > 0).then(|| (position, activations.clone()));
            if self.unverified.is_none() {
                replay.record(position, activations);
            }
        }
        Ok(made)
    }

    /// `Open.prefix_digests` for the first `positions` positions of `sequence`. To be called when nothing is
    /// started.
    ///
    /// Hidden states are computed for it, in steps of `max_rows`, as far as the replay buffer keeps them: behind
    /// that they would be computed a second time when they are sent. Where nothing is digested, nothing is
    /// computed and the offer is empty.
    pub(crate) async fn prefix_digests(
        &mut self,
        sequence: &[u32],
        positions: usize,
        max_rows: usize,
    ) -> Result<Bytes, DeviceError> {
        let sequence = &sequence[..positions];
        if let Some(digests) = &mut self.token_digests {
            let positions = match self.head {
                Some(_) => positions.min(self.wanted_token_positions),
                None => positions,
            };
            digests.extend_token_ids(&sequence[..positions]);
            return Ok(digests.offer(positions));
        }
        while let Some(position) = self.next_to_digest(positions, max_rows) {
            self.start(sequence, position, max_rows);
            self.next().await?;
        }
        let Some((digests, replay)) = self.digested() else {
            return Ok(Bytes::new());
        };
        Ok(digests.offer(positions.min(replay.end())))
    }

    /// Where hidden states are still to be made before `positions` positions can be offered.
    fn next_to_digest(&self, positions: usize, max_rows: usize) -> Option<usize> {
        let (_, replay) = self.digested()?;
        let position = replay.end();
        let rows = positions.saturating_sub(position).min(max_rows);
        let bytes = self.codec.encoded_bytes_max(rows, self.hidden_size);
        (rows > 0 && replay.has_room(bytes)).then_some(position)
    }

    /// The digests of hidden states, and the rows kept of those.
    fn digested(&self) -> Option<(&PrefixDigests, &ReplayBuffer)> {
        let head = self.head.as_ref()?;
        let Pass::Idle(pass) = &head.pass else {
            return None;
        };
        Some((pass.digests()?, &head.replay))
    }

    /// Waits out what was started for a connection that is gone.
    pub(crate) async fn settle(&mut self) -> Result<(), DeviceError> {
        while self.is_started() {
            self.next().await?;
        }
        Ok(())
    }

    /// The message for `made`.
    pub(crate) fn step(&self, made: Made, sample: bool) -> Step {
        let Made { span, input, .. } = made;
        let known = span.token_ids.len() - span.guesses;
        let draft = (span.guesses > 0).then(|| TokenIds {
            ids: span.token_ids[known..].to_vec(),
        });
        let needs_history = self.sends_history && matches!(input, step::Input::Activations(_));
        let history = needs_history.then_some(TokenIds {
            ids: span.token_ids,
        });
        Step {
            position: wire_u32(span.position),
            input: Some(input),
            sample,
            history,
            draft,
        }
    }
}

/// The first `count` rows.
fn first_rows(activations: &Activations, count: usize, codec: Codec) -> Activations {
    let rows = codec::encoded_rows(activations, codec).take(count);
    let bytes: usize = rows.map(<[u8]>::len).sum();
    Activations {
        rows: wire_u32(count),
        data: activations.data.slice(..bytes),
        ..activations.clone()
    }
}

/// Positions and sizes are bounded by `Limits`, all of which are 32 bits.
pub(crate) fn wire_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
