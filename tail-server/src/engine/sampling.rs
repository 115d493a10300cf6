//! From logits to tokens and accepted drafts, alike on every device.

use headway_model::sampler::{Sampled, Sampler};

use super::device::{Member, Sampling};

/// A row of the batch after which a token may be wanted.
pub(super) struct WantedRow {
    member: usize,
    /// Index in the batch.
    pub(super) row: usize,
    /// Where the token would stand.
    position: usize,
    /// Draft tokens before it.
    #[cfg(feature = "cuda")]
    guessed: usize,
}

#[cfg(feature = "cuda")]
impl WantedRow {
    /// Whose token it is, where it would stand, and the draft tokens right before it.
    pub(super) fn sampled_by<'a>(
        &self,
        members: &'a [Member<'_>],
    ) -> Option<(&'a Sampler, usize, &'a [u32])> {
        let sampling = members[self.member].sampling.as_ref()?;
        let guessed = &sampling.draft[..self.guessed];
        Some((&*sampling.sampler, self.position, guessed))
    }
}

/// In the order of the batch.
pub(super) fn wanted_rows(members: &[Member<'_>]) -> Vec<WantedRow> {
    let mut wanted = Vec::with_capacity(members.len());
    let mut end_row = 0;
    for (index, member) in members.iter().enumerate() {
        end_row += member.rows;
        let Some(sampling) = &member.sampling else {
            continue;
        };
        let end_position = member.table.len() + member.rows;
        wanted.extend((0..=sampling.draft.len()).rev().map(|behind| WantedRow {
            member: index,
            row: end_row - 1 - behind,
            position: end_position - behind,
            #[cfg(feature = "cuda")]
            guessed: sampling.draft.len() - behind,
        }));
    }
    wanted
}

/// Samples the token after a row, unless a draft token before it was wrong. `sample`: gives the token for a position.
/// To be called for each wanted row, in order.
///
/// # Errors
/// Those of `sample`.
pub(super) fn verify<E>(
    members: &mut [Member<'_>],
    samples: &mut [Vec<Sampled>],
    wanted: &WantedRow,
    sample: impl FnOnce(&Sampler, usize) -> Result<Sampled, E>,
) -> Result<(), E> {
    let samples = &mut samples[wanted.member];
    let Some(Sampling { sampler, draft }) = &mut members[wanted.member].sampling else {
        return Ok(());
    };
    let are_right = samples
        .iter()
        .zip(*draft)
        .all(|(sampled, guess)| sampled.token_id == *guess);
    if !are_right {
        return Ok(());
    }
    let sampled = sample(sampler, wanted.position)?;
    // Seen by the sampler as it would be without a draft: with the next step's rows.
    if draft.get(samples.len()) == Some(&sampled.token_id) {
        sampler.observe(wanted.position, sampled.token_id);
    }
    samples.push(sampled);
    Ok(())
}

/// Counts the rows as held, less those of draft tokens that were not accepted.
pub(super) fn advance(members: &mut [Member<'_>], samples: &[Vec<Sampled>]) {
    for (member, sampled) in members.iter_mut().zip(samples) {
        let rejected = member
            .sampling
            .as_ref()
            .map_or(0, |sampling| sampling.draft.len() + 1 - sampled.len());
        member.table.advance(member.rows - rejected);
    }
}
