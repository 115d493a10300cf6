//! One tail: who has room, and which rows the next step has. Steps are chosen as `tail-server/src/batcher.rs` does it:
//! answers first, whole and in turn; a quarter of the budget kept for prompts that wait, half of what prompts get to the
//! first in line and the rest to the shortest. Steps are not put off to gather rows (`engine/gather.rs`).

use std::collections::VecDeque;

use super::scenario::TailShape;

/// Index of a session in the world.
pub(super) type SessionIndex = u32;

/// The rows of one session in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) session: SessionIndex,
    pub(super) rows: u32,
    pub(super) is_prompt: bool,
}

/// A session whose prompt waits.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    session: SessionIndex,
    rows: u32,
}

/// What a tail has at one moment.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) is_lost: bool,
    pub(super) sessions: u32,
    pub(super) queued_prompts: u32,
    pub(super) kv_bytes: u64,
    /// Sessions that it was asked for in the present second.
    pub(super) opens: u32,
    pub(super) opens_second: u64,
    /// Session and rows.
    answers: VecDeque<(SessionIndex, u32)>,
    prompts: Vec<Prompt>,
    /// The step that runs; empty where none does.
    pub(super) running: Vec<Chunk>,
}

impl Tail {
    /// One that is gone, with all it held.
    pub(super) fn lost() -> Self {
        Self {
            is_lost: true,
            ..Self::default()
        }
    }

    /// Whether there is room for a session with so many bytes of KV cache.
    pub(super) fn has_room(&self, shape: &TailShape, kv_bytes: u64) -> bool {
        self.sessions < shape.max_sessions
            && self.queued_prompts < shape.max_queued_prompts
            && self.kv_bytes + kv_bytes <= shape.kv_bytes
    }

    pub(super) fn enter(&mut self, kv_bytes: u64) {
        self.sessions += 1;
        self.queued_prompts += 1;
        self.kv_bytes += kv_bytes;
    }

    pub(super) fn leave(&mut self, kv_bytes: u64) {
        self.sessions -= 1;
        self.kv_bytes -= kv_bytes;
    }

    pub(super) fn answer_ready(&mut self, session: SessionIndex, rows: u32) {
        self.answers.push_back((session, rows));
    }

    pub(super) fn prompt_ready(&mut self, session: SessionIndex, rows: u32) {
        self.prompts.push(Prompt { session, rows });
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Takes the rows of the next step into `running`, which is empty before, and after where nothing is ready.
    pub(super) fn plan(&mut self, step_rows: u32) {
        let prompt_rows: u32 = self.prompts.iter().map(|prompt| prompt.rows).sum();
        let kept = prompt_rows.min((step_rows / 4).max(1));
        let mut left = step_rows - kept;
        while let Some(&(session, rows)) = self.answers.front() {
            if rows > left {
                break;
            }
            left -= rows;
            self.answers.pop_front();
            self.running.push(Chunk {
                session,
                rows,
                is_prompt: false,
            });
        }
        self.plan_prompts(left + kept);
    }

    fn plan_prompts(&mut self, budget: u32) {
        let Some(first) = self.prompts.first().copied() else {
            return;
        };
        let mut left = budget;
        let mut take = |wanted: u32| {
            let rows = wanted.min(left);
            left -= rows;
            rows
        };
        let mut first_rows = take(first.rows.min(budget.div_ceil(2)));
        // Stable: among equals, the one that has waited longer.
        let mut shortest: Vec<usize> = (1..self.prompts.len()).collect();
        shortest.sort_by_key(|&index| self.prompts[index].rows);
        let mut taken = vec![0; self.prompts.len()];
        for index in shortest {
            taken[index] = take(self.prompts[index].rows);
        }
        first_rows += take(first.rows - first_rows);
        taken[0] = first_rows;
        for (prompt, rows) in self.prompts.iter_mut().zip(taken) {
            prompt.rows -= rows;
            if rows > 0 {
                self.running.push(Chunk {
                    session: prompt.session,
                    rows,
                    is_prompt: true,
                });
            }
        }
        self.prompts.retain(|prompt| prompt.rows > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(tail: &mut Tail, step_rows: u32) -> Vec<(u32, u32)> {
        tail.running.clear();
        tail.plan(step_rows);
        tail.running
            .iter()
            .map(|chunk| (chunk.session, chunk.rows))
            .collect()
    }

    #[test]
    fn answers_are_whole_and_a_quarter_is_kept_for_prompts() {
        let mut tail = Tail::default();
        (0..10).for_each(|session| tail.answer_ready(session, 3));
        tail.prompt_ready(20, 100);
        // Twelve rows for answers, four for the prompt.
        assert_eq!(
            planned(&mut tail, 16),
            [(0, 3), (1, 3), (2, 3), (3, 3), (20, 4)]
        );
        assert_eq!(tail.prompts[0].rows, 96);
    }

    #[test]
    fn half_goes_to_the_first_prompt_and_the_rest_to_the_shortest() {
        let mut tail = Tail::default();
        for (session, rows) in [(0, 100), (1, 30), (2, 5)] {
            tail.prompt_ready(session, rows);
        }
        assert_eq!(planned(&mut tail, 16), [(0, 8), (1, 3), (2, 5)]);
        assert_eq!(planned(&mut tail, 200), [(0, 92), (1, 27)]);
        assert_eq!(planned(&mut tail, 200), []);
    }
}
