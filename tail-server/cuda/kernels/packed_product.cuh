// One product with weights in fewer bits, for up to 64 rows; and their widening to bf16, for more.
#pragma once
#include "packed.cuh"

struct PackedWeights {
  const uint8_t* chunks;   // [tile, chunk]
  const float* row_scales; // [row of all tiles]
  uint32_t format;
};

// x: [rows, columns], as a map with boxes of [ROWS, CHUNK]. `shape.chunks`: of the format. Grid: at most one thread
// block for each item.
template <int ROWS, int WEIGHT_STAGES, int X_STAGES, Into INTO>
__device__ __forceinline__ void packed_product(const PackedWeights& weights, const TensorMap* x, void* out,
                                               uint64_t plane_stride, ProductShape shape) {
  constexpr uint32_t OUTPUTS = INTO == GATED ? TILE / 2 : TILE;
  extern __shared__ uint8_t unaligned[];
  __shared__ uint64_t barriers[2 * (WEIGHT_STAGES + X_STAGES)];
  Rings<ROWS, WEIGHT_STAGES, X_STAGES> rings(unaligned, barriers);
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Walk walk(shape, (shape.outputs + OUTPUTS - 1) / OUTPUTS, (shape.rows + ROWS - 1) / ROWS);

  if (warp == MULTIPLYING_WARPS) {
    if (lane == 0) {
      uint32_t bytes = bytes_of(weights.format);
      // The weights do not depend on the kernels before.
      for (; walk.has_item(); walk.next_chunk()) {
        uint64_t* full;
        uint8_t* to = rings.next_weights(full);
        arrive_expecting(full, bytes);
        copy_bytes(to, weights.chunks + ((size_t)walk.tile * shape.chunks + walk.chunk) * bytes, full, bytes, READ_ONCE);
      }
      let_next_start();
    }
    wait_for_previous();
    return;
  }

  wait_for_previous();
  if (warp == MULTIPLYING_WARPS + 1) {
    if (lane != 0) return;
    uint32_t steps = steps_of(weights.format);
    for (; walk.has_item(); walk.next_chunk())
      for (uint32_t step = 0; step < steps; step++)
        rings.bring_x(x, walk.chunk * steps + step, walk.row_tile * ROWS);
    return;
  }

  for (; walk.has_item(); walk.next_item()) {
    rings.multiply_item(weights.format, walk.end - walk.begin, [&](float(&sums)[ROWS / 2]) {
      scale_rows(sums, weights.row_scales, walk.tile);
      if constexpr (INTO == GATED)
        write_gated<__nv_bfloat16, ROWS>(static_cast<__nv_bfloat16*>(out), sums, shape.outputs, walk.tile,
                                         walk.row_tile * ROWS, shape.rows);
      else
        write_plane<ROWS>(static_cast<float*>(out) + walk.split * plane_stride, sums, shape.outputs, walk.tile,
                          walk.row_tile * ROWS, shape.rows);
    });
  }
}

// Rows of a tile between two of the shared tile below, in words: lanes of a warp write to different banks.
constexpr int WIDENED_WORDS = CHUNK / 2 + 4;

// Tiles from `first_tile` on as bf16, row-major: [128 · tiles, columns]; where gated, all gates first, then as many ups.
// Each value is rounded once more where the row's scale is no power of two. Grid: tiles, chunks.
template <Format FORMAT>
__device__ __forceinline__ void widen_tiles(const PackedWeights& weights, __nv_bfloat16* out, uint32_t first_tile,
                                            uint32_t columns, bool gated) {
  using Chunk = Packed<FORMAT>;
  __shared__ alignas(16) uint32_t shared[MULTIPLYING_WARPS][16][WIDENED_WORDS];
  let_next_start();
  wait_for_previous();
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = first_tile + blockIdx.x;
  const uint8_t* chunk = weights.chunks + ((size_t)tile * gridDim.y + blockIdx.y) * Chunk::BYTES;
  const float* row_scales = weights.row_scales + tile * TILE + warp * 16;
  float scales[2] = {row_scales[lane / 4], row_scales[lane / 4 + 8]};
#pragma unroll
  for (int step = 0; step < Chunk::STEPS; step++) {
    Fragments fragments = widen<FORMAT>(chunk + warp * Chunk::WARP_VALUES,
                                        chunk + Chunk::VALUES + warp * Chunk::WARP_SCALES, step, lane);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < CHUNK / 16; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float2 pair = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&fragments.words[k][i]));
        shared[warp][lane / 4 + i % 2 * 8][8 * k + i / 2 * 4 + lane % 4] =
            to_pair(pair.x * scales[i % 2], pair.y * scales[i % 2]);
      }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t row = 4 * i + lane / 8, eight = lane % 8;
      uint32_t column = blockIdx.y * Chunk::COLUMNS + step * CHUNK + eight * 8;
      // Eight gates are above their ups.
      uint32_t to = gated ? blockIdx.x * (TILE / 2) + warp * 8 + row % 8 + row / 8 * (gridDim.x * (TILE / 2))
                          : blockIdx.x * TILE + warp * 16 + row;
      if (column < columns)
        *reinterpret_cast<uint4*>(out + (size_t)to * columns + column) =
            *reinterpret_cast<const uint4*>(&shared[warp][row][eight * 4]);
    }
  }
}
