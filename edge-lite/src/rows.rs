//! What goes up for each position: encoded hidden states from the head layers, or bare token ids.

mod head;
mod made;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use headway_wire::message::{Activations, Step, TokenIds, step};
use headway_wire::{Codec, codec};

use self::head::{Head, Pass};
pub(crate) use self::made::Made;
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
    /// Rows of steps with guesses that were sent and whose results are not there yet; each with the first one's position.
    unverified: VecDeque<(usize, Activations)>,
    /// Rows that stand and are not digested yet, because the layers are at work.
    undigested: Vec<(usize, Activations)>,
    /// While what is made ahead is wanted.
    ahead_is_wanted: Arc<AtomicBool>,
    compute: Duration,
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
            unverified: VecDeque::new(),
            undigested: Vec::new(),
            ahead_is_wanted: Arc::default(),
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
        let token_ids = |end: usize| sequence[position..end].to_vec();
        let head = self.head.as_mut();
        let Some(head) = head.filter(|_| position >= self.token_positions) else {
            let made = Made::of_token_ids(position, token_ids(end), Draft::default());
            self.ready = Some(made);
            return;
        };
        if let Some(activations) = head.replay.rows_from(position, end - position) {
            let kept = HeadRows {
                compute: Duration::ZERO,
                activations,
            };
            let end = position + kept.activations.rows as usize;
            let made = Made::of_rows(position, token_ids(end), kept, Draft::default());
            self.ready = Some(made);
            return;
        }
        let token_ids = token_ids(end);
        head.start(move |pass| {
            let rows = pass.run(position, &token_ids, token_ids.len())?;
            Ok(Made::of_rows(position, token_ids, rows, Draft::default()))
        });
    }

    /// Starts to make the step of the last token of `sequence` and of guesses of the next ones. To be called when
    /// nothing is started.
    pub(crate) fn start_draft(&mut self, sequence: &[u32], draft: Draft) {
        let known = sequence.len() - 1;
        self.start_guessed(known, &sequence[known..], draft);
    }

    /// Starts to make a step of guesses of what follows `sequence`, whose rows were all made. To be called when nothing is
    /// started. What is made is empty where no guess is worth it.
    pub(crate) fn start_ahead(&mut self, sequence: Vec<u32>, guessing: Guessing) {
        let outlook = match guessing {
            Guessing::Guessed(draft) => return self.start_guessed(sequence.len(), &[], draft),
            Guessing::AskModel(outlook) => outlook,
        };
        let position = sequence.len();
        let Some(head) = &mut self.head else {
            // A model guesses from what head layers make.
            let made = Made::of_token_ids(position, Vec::new(), Draft::default());
            self.ready = Some(made);
            return;
        };
        self.ahead_is_wanted = Arc::new(AtomicBool::new(true));
        let is_wanted = Arc::clone(&self.ahead_is_wanted);
        head.start(move |pass| {
            let is_wanted = || is_wanted.load(Ordering::Relaxed);
            let (rows, draft) = pass.run_ahead(sequence, outlook, is_wanted)?;
            Ok(match rows {
                Some(rows) => Made::of_rows(position, draft.token_ids(), rows, draft),
                None => Made::of_token_ids(position, Vec::new(), draft),
            })
        });
    }

    fn start_guessed(&mut self, position: usize, known: &[u32], draft: Draft) {
        let token_ids = [known, &draft.token_ids()].concat();
        let known = known.len();
        let Some(head) = &mut self.head else {
            self.ready = Some(Made::of_token_ids(position, token_ids, draft));
            return;
        };
        head.start(move |pass| {
            let rows = pass.run(position, &token_ids, known)?;
            Ok(Made::of_rows(position, token_ids, rows, draft))
        });
    }

    /// What is being made ahead is wanted no more: it comes as soon as it can, and is to be left out.
    pub(crate) fn stop_ahead(&self) {
        self.ahead_is_wanted.store(false, Ordering::Relaxed);
    }

    /// Of the oldest step with guesses, its first row stands, and the first `right` rows behind it.
    pub(crate) fn verified(&mut self, right: usize) {
        let Some(((position, activations), head)) =
            self.unverified.pop_front().zip(self.head.as_mut())
        else {
            return;
        };
        let kept = first_rows(&activations, 1 + right, self.codec);
        head.replay.record(position, &kept);
        self.undigested.push((position, kept));
        self.digest();
    }

    /// The oldest step with guesses was passed over.
    pub(crate) fn passed_over(&mut self) {
        self.unverified.pop_front();
    }

    /// No result comes any more for what was sent.
    pub(crate) fn forget_unverified(&mut self) {
        self.unverified.clear();
    }

    /// Digests what stands, where the layers are not at work.
    fn digest(&mut self) {
        if let Some(Head {
            pass: Pass::Idle(pass),
            ..
        }) = &mut self.head
        {
            for (position, rows) in self.undigested.drain(..) {
                pass.digest(position, &rows);
            }
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
        let made = made?;
        self.compute += made.compute;
        if made.draft.guesses.is_empty()
            && let step::Input::Activations(activations) = &made.input
        {
            replay.record(made.position, activations);
        }
        self.digest();
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
        self.stop_ahead();
        while self.is_started() {
            self.next().await?;
        }
        Ok(())
    }

    /// The message for `made`; where it runs ahead or has a draft, [`Rows::verified`] or [`Rows::passed_over`] follows the
    /// result.
    /// `runs_ahead`: of the result before it, that is, its first token is not known to be right.
    pub(crate) fn step(&mut self, made: Made, sample: bool, runs_ahead: bool) -> Step {
        let Made {
            position,
            token_ids,
            input,
            draft: guessed,
            ..
        } = made;
        // Of a step that was made ahead the first token is a guess, too.
        let known = (token_ids.len() - guessed.guesses.len()).max(1);
        if let step::Input::Activations(activations) = &input
            && !guessed.guesses.is_empty()
        {
            self.unverified.push_back((position, activations.clone()));
            if !runs_ahead && known == token_ids.len() {
                // Its only token has come while it was made.
                self.verified(0);
            }
        }
        let draft = (known < token_ids.len()).then(|| TokenIds {
            ids: token_ids[known..].to_vec(),
        });
        let first_guess = token_ids.first().copied().filter(|_| runs_ahead);
        let needs_history = self.sends_history && matches!(input, step::Input::Activations(_));
        let history = needs_history.then_some(TokenIds { ids: token_ids });
        Step {
            position: wire_u32(position),
            input: Some(input),
            sample,
            history,
            draft,
            first_guess,
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
