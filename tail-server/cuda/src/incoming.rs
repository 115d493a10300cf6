//! Hidden states on their way to the device.
//!
//! Rows that come ahead of their step are written to a ring in pinned memory, and a stream of its own copies them to the
//! same ring on the device while a step runs. They are numbered in the order in which they came; row `n` lies in slot
//! `n % slots`.
//!
//! With `2 h` slots and `w` rows written when a step begins, the step reads no row before `w − h`, and until the next
//! step begins nothing is written from `w + h` on. So no slot is written that a running step reads. Nor is one written
//! that is still being copied: a slot's last row was before `w − h`, and so came before the step before this one began,
//! which has waited for it and is done.
//!
//! Rows that a step brings itself lie behind the ring, always in the same place, which is in the host's caches.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice};
use rayon::prelude::*;

use crate::calls::{copy_range_up, pinned};
use crate::error::CudaError;
use crate::gpu::Gpu;

/// Rows whose copy to the device is started once there are so many.
const BUNCH_ROWS: usize = 16;
/// Values of a piece of what several threads write to pinned memory, and rows that are written so before their copy is
/// started.
const PIECE_VALUES: usize = 1 << 16;
const WRITTEN_ROWS: usize = 256;

/// The number of the first of some rows that were taken in. Others follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenIn(usize);

impl TakenIn {
    /// The number of the row that is `rows` further on.
    #[must_use]
    pub const fn after(self, rows: usize) -> Self {
        Self(self.0 + rows)
    }
}

/// Where rows of a step lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    InRing(TakenIn),
    /// Behind it, from this one on.
    Behind(usize),
}

/// The ring, and what lies behind it.
pub(crate) struct Incoming {
    host: PinnedHostSlice<f32>,
    device: CudaSlice<f32>,
    copies: Arc<CudaStream>,
    /// The copies that were started last are done.
    copied: CudaEvent,
    row_len: usize,
    numbers: Numbers,
    /// Rows of the step that is put together which were not taken in, and how many of them are on their way.
    behind: usize,
    behind_sent: usize,
}

impl Incoming {
    /// For steps of at most `max_rows` rows of `row_len` values.
    pub(crate) fn new(gpu: &Gpu, max_rows: usize, row_len: usize) -> Result<Self, CudaError> {
        let numbers = Numbers::new(max_rows);
        let values = (numbers.slots() + max_rows) * row_len;
        let device = gpu.zeros(values)?;
        // Zeroed on the GPU's own stream, and written on another.
        gpu.stream().synchronize()?;
        Ok(Self {
            host: pinned(gpu.context(), values)?,
            device,
            copies: gpu.context().new_stream()?,
            copied: gpu.context().new_event(None)?,
            row_len,
            numbers,
            behind: 0,
            behind_sent: 0,
        })
    }

    /// Where the kernels find the slots.
    pub(crate) fn address(&self, gpu: &Gpu) -> u64 {
        gpu.address(&self.device)
    }

    /// Takes rows in ahead of their step; `None` where there is no room before the next step begins, or the device
    /// fails, which the next step will find out.
    pub(crate) fn take_in(&mut self, values: &[f32]) -> Option<TakenIn> {
        let rows = values.len() / self.row_len;
        if rows == 0 || !self.numbers.has_room(rows) {
            return None;
        }
        let first = self.write(values).ok()?;
        if self.numbers.waiting() >= BUNCH_ROWS {
            self.send_ring().ok()?;
        }
        Some(first)
    }

    /// A step begins: the last one is done.
    pub(crate) const fn begin_step(&mut self) {
        self.numbers.begin_step();
        (self.behind, self.behind_sent) = (0, 0);
    }

    /// Where a step's rows lie: where they have been taken in to, if they are still there; otherwise they are written
    /// now. A step has no more rows than it may have.
    pub(crate) fn place(
        &mut self,
        values: &[f32],
        taken_in: Option<TakenIn>,
    ) -> Result<Place, CudaError> {
        if let Some(first) = taken_in.filter(|first| self.numbers.holds(*first)) {
            return Ok(Place::InRing(first));
        }
        let first = self.numbers.slots() + self.behind;
        for piece in values.chunks(WRITTEN_ROWS * self.row_len) {
            let slot = self.numbers.slots() + self.behind;
            let to = &mut self.host.as_mut_slice()?[slot * self.row_len..][..piece.len()];
            write_values(to, piece);
            self.behind += piece.len() / self.row_len;
            if self.behind - self.behind_sent >= BUNCH_ROWS {
                self.send_behind()?;
            }
        }
        Ok(Place::Behind(first))
    }

    /// The slot of the row that is `offset` behind the first one.
    pub(crate) const fn slot(&self, place: Place, offset: usize) -> usize {
        match place {
            Place::InRing(first) => self.numbers.slot(first.0 + offset),
            Place::Behind(first) => first + offset,
        }
    }

    /// Makes what is started on the GPU's stream from here on wait for all rows.
    pub(crate) fn arrive(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        self.send_ring()?;
        self.send_behind()?;
        self.copied.record(&self.copies)?;
        gpu.stream().wait(&self.copied)?;
        Ok(())
    }

    fn write(&mut self, values: &[f32]) -> Result<TakenIn, CudaError> {
        let rows = values.len() / self.row_len;
        let first = TakenIn(self.numbers.written);
        let mut values = values;
        for [slot, rows] in self.numbers.pieces(first.0, rows) {
            let (piece, rest) = values.split_at(rows * self.row_len);
            let to = &mut self.host.as_mut_slice()?[slot * self.row_len..][..piece.len()];
            write_values(to, piece);
            values = rest;
        }
        self.numbers.written += rows;
        Ok(first)
    }

    /// Starts the copies of what was written to the ring and is not on its way.
    fn send_ring(&mut self) -> Result<(), CudaError> {
        let (first, rows) = (self.numbers.sent, self.numbers.waiting());
        for [slot, rows] in self.numbers.pieces(first, rows) {
            self.send(slot, rows)?;
        }
        self.numbers.sent = self.numbers.written;
        Ok(())
    }

    /// The same of what lies behind it.
    fn send_behind(&mut self) -> Result<(), CudaError> {
        let first = self.numbers.slots() + self.behind_sent;
        self.send(first, self.behind - self.behind_sent)?;
        self.behind_sent = self.behind;
        Ok(())
    }

    fn send(&mut self, slot: usize, rows: usize) -> Result<(), CudaError> {
        if rows > 0 {
            let range = slot * self.row_len..(slot + rows) * self.row_len;
            copy_range_up(&self.copies, &self.host, &mut self.device, range)?;
        }
        Ok(())
    }
}

impl Drop for Incoming {
    /// Both memories are free when this ends; copies that no step has waited for may be on their way.
    fn drop(&mut self) {
        // After a fault nothing is on its way any more.
        let _ = self.copies.synchronize();
    }
}

/// By several threads where there are many: one alone is slower than the copies to the device.
fn write_values(to: &mut [f32], from: &[f32]) {
    if from.len() < 2 * PIECE_VALUES {
        return to.copy_from_slice(from);
    }
    to.par_chunks_mut(PIECE_VALUES)
        .zip(from.par_chunks(PIECE_VALUES))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

/// What is where in the ring, without the ring.
#[derive(Clone, Debug)]
struct Numbers {
    /// `h`: half of the slots.
    half: usize,
    /// Rows that came.
    written: usize,
    /// Rows whose copies were started.
    sent: usize,
    /// `written` when the last step began.
    begun: usize,
}

impl Numbers {
    const fn new(half: usize) -> Self {
        Self {
            half,
            written: 0,
            sent: 0,
            begun: 0,
        }
    }

    const fn begin_step(&mut self) {
        self.begun = self.written;
    }

    const fn has_room(&self, rows: usize) -> bool {
        self.written + rows <= self.begun + self.half
    }

    /// The step that begins may read from there on.
    const fn holds(&self, first: TakenIn) -> bool {
        first.0 + self.half >= self.begun
    }

    const fn slots(&self) -> usize {
        2 * self.half
    }

    const fn waiting(&self) -> usize {
        self.written - self.sent
    }

    const fn slot(&self, row: usize) -> usize {
        row % self.slots()
    }

    /// First slots and numbers of rows of pieces that lie side by side.
    fn pieces(&self, first: usize, rows: usize) -> impl Iterator<Item = [usize; 2]> + use<> {
        let slot = self.slot(first);
        let before_end = rows.min(self.slots() - slot);
        let pieces = [[slot, before_end], [0, rows - before_end]];
        pieces.into_iter().filter(|[_, rows]| *rows > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_on_at_the_first_slot() {
        let mut numbers = Numbers::new(4);
        numbers.written = 13;
        let pieces: Vec<[usize; 2]> = numbers.pieces(13, 5).collect();
        assert_eq!(pieces, [[5, 3], [0, 2]]);
        let pieces: Vec<[usize; 2]> = numbers.pieces(16, 3).collect();
        assert_eq!(pieces, [[0, 3]]);
    }

    /// Random steps and arrivals: no slot is written that the running step reads, or whose last row may still be on its
    /// way.
    #[test]
    fn nothing_is_written_over_what_is_in_use() {
        let half = 24;
        let mut numbers = Numbers::new(half);
        let mut random = crate::check::Random(3);
        // Of each slot: its row. Rows that steps up to the last but one have waited for. What the running step reads.
        let mut slots = vec![None; 2 * half];
        let (mut settled, mut waited) = (0, 0);
        let mut in_use: Vec<usize> = Vec::new();
        let mut taken: Vec<TakenIn> = Vec::new();
        let mut lost = 0;
        for _ in 0..20_000 {
            if random.below(4) > 0 {
                if numbers.has_room(1) {
                    let row = numbers.written;
                    if let Some(before) = slots[numbers.slot(row)].replace(row) {
                        assert!(!in_use.contains(&before), "row {before} is read");
                        assert!(before < settled, "row {before} may be on its way");
                    }
                    numbers.written += 1;
                    taken.push(TakenIn(row));
                }
                continue;
            }
            // The step before is done, and with it all that it has waited for.
            settled = waited;
            numbers.begin_step();
            in_use.clear();
            for _ in 0..random.between(1, 10).min(taken.len()) {
                let row = taken.swap_remove(random.below(taken.len()));
                if numbers.holds(row) {
                    assert_eq!(slots[numbers.slot(row.0)], Some(row.0), "it is there");
                    in_use.push(row.0);
                } else {
                    lost += 1;
                }
            }
            waited = numbers.written;
        }
        assert!(lost > 0, "some rows waited too long");
    }
}
