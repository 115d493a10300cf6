//! Weights in fewer bits: how a matrix lies in memory. `kernels/packed.cuh` reads what is written here.
//!
//! A matrix is cut into tiles of 128 outputs, and these into chunks of as many columns as 16 KiB hold; a chunk is one
//! piece of memory, so that a plain copy brings it. A value is `scale · code - minimum` of its group of columns, or an
//! e4m3 number, times the scale of its row. Rows are scaled by powers of two where there are groups: group scales are
//! f16, and none is to be too small or too large for it.

use std::thread;

use cudarc::driver::CudaSlice;
use half::{bf16, f16};

use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::products::Outputs;

pub(crate) mod blocks;
pub(crate) mod float8;
pub(crate) mod kernels;
#[cfg(test)]
mod tests;

/// As in `kernels/products.cuh`.
pub(crate) const TILE: usize = 128;
/// Rows of a tile that a warp has.
const WARP_ROWS: usize = 16;

/// How values lie in a chunk; the order is that of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// e4m3.
    Float8,
    /// 8 bits, groups of 32 columns.
    Eight32,
    /// 8 bits, groups of 16 columns.
    Eight16,
    /// 4 bits, groups of 32 columns.
    Four32,
}

impl Format {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Float8, Self::Eight32, Self::Eight16, Self::Four32];

    /// What the kernels know it by; 0 stands there for values of two bytes.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Float8 => 1,
            Self::Eight32 => 2,
            Self::Eight16 => 3,
            Self::Four32 => 4,
        }
    }

    /// The name in kernels' names.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Float8 => "float_8",
            Self::Eight32 => "eight_32",
            Self::Eight16 => "eight_16",
            Self::Four32 => "four_32",
        }
    }

    const fn bits(self) -> usize {
        match self {
            Self::Float8 | Self::Eight32 | Self::Eight16 => 8,
            Self::Four32 => 4,
        }
    }

    /// Columns that share a scale and a minimum.
    pub(crate) const fn group(self) -> Option<usize> {
        match self {
            Self::Float8 => None,
            Self::Eight32 | Self::Four32 => Some(32),
            Self::Eight16 => Some(16),
        }
    }

    /// Columns of a chunk.
    pub(crate) const fn chunk_columns(self) -> usize {
        1024 / self.bits()
    }

    /// Bytes of a warp's values of a chunk.
    const fn warp_bytes(self) -> usize {
        WARP_ROWS * self.chunk_columns() * self.bits() / 8
    }

    /// Bytes of a warp's scales of a chunk.
    const fn warp_scale_bytes(self) -> usize {
        match self.group() {
            Some(group) => WARP_ROWS * self.chunk_columns() / group * 4,
            None => 0,
        }
    }

    /// Bytes of a chunk.
    pub(crate) const fn chunk_bytes(self) -> usize {
        TILE / WARP_ROWS * (self.warp_bytes() + self.warp_scale_bytes())
    }

    /// Where the code of a row of the tile and a column of the chunk is: its byte, and its first bit there.
    ///
    /// Lane 4 r + c of a warp has of rows r and r + 8 the columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of each 16.
    const fn place(self, row: usize, column: usize) -> (usize, usize) {
        let (warp, row) = (row / WARP_ROWS, row % WARP_ROWS);
        let within = column % 16;
        let lane = row % 8 * 4 + within % 8 / 2;
        // Of the eight codes that a lane has of 16 columns.
        let code = row / 8 * 4 + within / 8 * 2 + within % 2;
        // Columns of which a lane has 16 bytes.
        let read = 256 / self.bits();
        let at = warp * self.warp_bytes() + column / read * 512 + lane * 16;
        let bit = (column % read / 16 * 8 + code) * self.bits();
        (at + bit / 8, bit % 8)
    }

    /// Where the scale and the minimum of a row of the tile and a group of the chunk are; four bytes.
    const fn scale_place(self, row: usize, group: usize) -> usize {
        let (warp, row) = (row / WARP_ROWS, row % WARP_ROWS);
        let values = TILE / WARP_ROWS * self.warp_bytes();
        let pair = group / 2 * 128 + row % 8 * 16;
        values + warp * self.warp_scale_bytes() + pair + group % 2 * 8 + row / 8 * 4
    }

    fn write(self, tile: &mut [u8], row: usize, values: &RowValues) {
        let chunks = tile.chunks_exact_mut(self.chunk_bytes());
        let codes = values.codes.chunks(self.chunk_columns());
        for (chunk, codes) in chunks.zip(codes) {
            for (column, code) in codes.iter().enumerate() {
                let (byte, bit) = self.place(row, column);
                chunk[byte] |= code << bit;
            }
        }
        let Some(group) = self.group() else { return };
        let in_chunk = self.chunk_columns() / group;
        let chunks = tile.chunks_exact_mut(self.chunk_bytes());
        for (chunk, groups) in chunks.zip(values.groups.chunks(in_chunk)) {
            for (index, [scale, minimum]) in groups.iter().enumerate() {
                let at = self.scale_place(row, index);
                chunk[at..at + 2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
                chunk[at + 2..at + 4].copy_from_slice(&f16::from_f32(*minimum).to_le_bytes());
            }
        }
    }

    /// A value, before its row's scale.
    fn read(self, chunk: &[u8], row: usize, column: usize) -> f32 {
        let (byte, bit) = self.place(row, column);
        let Some(group) = self.group() else {
            return float8::to_f32(chunk[byte]);
        };
        let mask = if self.bits() == 8 { 0xFF } else { 0xF };
        let code = f32::from(chunk[byte] >> bit & mask);
        let at = self.scale_place(row, column / group);
        let half = |at: usize| f16::from_le_bytes([chunk[at], chunk[at + 1]]).to_f32();
        half(at) * code - half(at + 2)
    }
}

/// One row that is to be written.
pub(crate) struct RowValues {
    /// Of each column.
    pub(crate) codes: Vec<u8>,
    /// The scale and the minimum of each group of columns.
    pub(crate) groups: Vec<[f32; 2]>,
    /// Columns of a group.
    pub(crate) group: usize,
    /// What all values are multiplied by.
    pub(crate) scale: f32,
}

impl RowValues {
    fn new(format: Format, columns: usize) -> Self {
        let group = format.group().unwrap_or(columns).max(1);
        Self {
            codes: vec![0; columns],
            groups: vec![[0.0; 2]; columns.div_ceil(group)],
            group,
            scale: 1.0,
        }
    }

    /// Takes a power of two out of the groups, such that their largest number is between 2^13 and 2^14.
    fn normalise(&mut self) {
        let numbers = self.groups.iter().flatten();
        let largest = numbers.fold(0_f32, |most, number| most.max(number.abs()));
        if largest == 0.0 {
            return;
        }
        let exponent = (largest.to_bits() >> 23).clamp(1 + 13, 254);
        self.scale = f32::from_bits((exponent - 13) << 23);
        for number in self.groups.iter_mut().flatten() {
            *number /= self.scale;
        }
    }
}

/// A matrix in the host's memory, as the device has it.
pub(crate) struct PackedValues {
    format: Format,
    /// `[outputs, columns]`.
    shape: [usize; 2],
    kind: Outputs,
    /// `[tile, chunk]`.
    chunks: Vec<u8>,
    /// Of the rows of all tiles.
    row_scales: Vec<f32>,
}

/// Tiles of a matrix: a tile has 64 gates and their ups.
pub(crate) const fn tiles(outputs: usize, kind: Outputs) -> usize {
    match kind {
        Outputs::Plain => outputs.div_ceil(TILE),
        Outputs::Gated => (outputs / 2).div_ceil(TILE / 2),
    }
}

/// The output in a row of a tile, where there is one: eight gates, their eight ups, the next eight gates.
const fn output_of(tile: usize, row: usize, outputs: usize, kind: Outputs) -> Option<usize> {
    let (output, end, behind) = match kind {
        Outputs::Plain => (tile * TILE + row, outputs, 0),
        Outputs::Gated => (
            tile * (TILE / 2) + row / 16 * 8 + row % 8,
            outputs / 2,
            row % 16 / 8 * (outputs / 2),
        ),
    };
    if output < end {
        Some(output + behind)
    } else {
        None
    }
}

impl PackedValues {
    /// Writes the rows that `fill` gives for each output, on all cores.
    pub(crate) fn new(
        format: Format,
        [outputs, columns]: [usize; 2],
        kind: Outputs,
        fill: impl Fn(usize, &mut RowValues) + Sync,
    ) -> Self {
        let tiles = tiles(outputs, kind);
        let tile_bytes = columns.div_ceil(format.chunk_columns()) * format.chunk_bytes();
        let mut chunks = vec![0; tiles * tile_bytes];
        let mut row_scales = vec![0.0; tiles * TILE];
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let tiles_each = tiles.div_ceil(cores).max(1);
        let (parts, scales) = (
            chunks.chunks_mut((tiles_each * tile_bytes).max(1)),
            row_scales.chunks_mut(tiles_each * TILE),
        );
        thread::scope(|scope| {
            for (index, (part, scales)) in parts.zip(scales).enumerate() {
                let fill = &fill;
                scope.spawn(move || {
                    let mut values = RowValues::new(format, columns);
                    let tiles = part.chunks_exact_mut(tile_bytes);
                    let tiles = tiles.zip(scales.chunks_exact_mut(TILE));
                    for (tile, (part, scales)) in (index * tiles_each..).zip(tiles) {
                        for (row, scale) in scales.iter_mut().enumerate() {
                            let Some(output) = output_of(tile, row, outputs, kind) else {
                                continue;
                            };
                            fill(output, &mut values);
                            if format.group().is_some() {
                                values.scale = 1.0;
                                values.normalise();
                            }
                            format.write(part, row, &values);
                            *scale = values.scale;
                        }
                    }
                });
            }
        });
        Self {
            format,
            shape: [outputs, columns],
            kind,
            chunks,
            row_scales,
        }
    }

    /// The same chunk everywhere, for measurements.
    pub(crate) fn repeated(format: Format, [outputs, columns]: [usize; 2], kind: Outputs) -> Self {
        let one = Self::new(
            format,
            [TILE, format.chunk_columns()],
            Outputs::Plain,
            |output, row| {
                // All e4m3 numbers that are one, or all of four bits.
                let is_float = format == Format::Float8;
                let end: u16 = if format.bits() == 8 { 127 } else { 16 };
                for (column, code) in row.codes.iter_mut().enumerate() {
                    let value = (output * 7 + column * 5) % usize::from(end);
                    let sign = if is_float && column % 2 == 1 { 0x80 } else { 0 };
                    *code = u8::try_from(value).unwrap_or(0) | sign;
                }
                // As many above zero as below.
                let scale = 1e-3;
                row.groups.fill([scale, scale * f32::from(end / 2)]);
                row.scale = 1e-4;
            },
        );
        let tiles = tiles(outputs, kind);
        Self {
            format,
            shape: [outputs, columns],
            kind,
            chunks: one
                .chunks
                .repeat(tiles * columns.div_ceil(format.chunk_columns())),
            row_scales: vec![one.row_scales[0]; tiles * TILE],
        }
    }

    /// The values that the kernels multiply with: bf16 in each row's scale, `[outputs, columns]`. `rounded`: to bf16 after
    /// the row's scale, as where there are more rows than the kernels take.
    pub(crate) fn widened(&self, rounded: bool) -> Vec<f32> {
        let [outputs, columns] = self.shape;
        let mut all = vec![0.0; outputs * columns];
        let in_tile = columns.div_ceil(self.format.chunk_columns());
        let chunk_bytes = self.format.chunk_bytes();
        for tile in 0..tiles(outputs, self.kind) {
            let chunks = &self.chunks[tile * in_tile * chunk_bytes..];
            for row in 0..TILE {
                let Some(output) = output_of(tile, row, outputs, self.kind) else {
                    continue;
                };
                let values = &mut all[output * columns..][..columns];
                for (column, value) in values.iter_mut().enumerate() {
                    let chunk = column / self.format.chunk_columns();
                    let chunk = &chunks[chunk * chunk_bytes..][..chunk_bytes];
                    let column = column % self.format.chunk_columns();
                    let found = bf16::from_f32(self.format.read(chunk, row, column)).to_f32();
                    *value = found * self.row_scales[tile * TILE + row];
                    if rounded {
                        *value = bf16::from_f32(*value).to_f32();
                    }
                }
            }
        }
        all
    }

    /// `[outputs, columns]`.
    pub(crate) const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub(crate) const fn kind(&self) -> Outputs {
        self.kind
    }

    /// To the device.
    pub(crate) fn up(&self, gpu: &Gpu) -> Result<PackedMemory, CudaError> {
        let stream = gpu.stream();
        Ok(PackedMemory {
            format: self.format,
            chunks: stream.clone_htod(&self.chunks)?,
            row_scales: stream.clone_htod(&self.row_scales)?,
        })
    }
}

/// A matrix's memory on the device.
pub(crate) struct PackedMemory {
    pub(crate) format: Format,
    /// `[tile, chunk]`.
    pub(crate) chunks: CudaSlice<u8>,
    /// Of the rows of all tiles.
    pub(crate) row_scales: CudaSlice<f32>,
}

impl PackedMemory {
    /// Bytes of device memory.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.num_bytes() + self.row_scales.num_bytes()
    }
}
