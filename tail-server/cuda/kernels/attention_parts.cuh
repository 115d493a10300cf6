// What the attention kernels have in common: the order of their work, and partial results.
#pragma once
#include "element.cuh"
#include "overlap.cuh"
#include "step.cuh"

// The unit that this thread block computes in its `turn`: units are ordered by length, and every other turn goes
// backwards over the blocks, so that all of them get about as much. They grow with `turn`.
__device__ __forceinline__ uint32_t unit_of(uint32_t turn) {
  uint32_t place = turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  return turn * gridDim.x + place;
}

// The first position that a row at `position` sees. `window`: how many it sees, 0 for all.
__device__ __forceinline__ uint32_t first_seen(uint32_t position, uint32_t window) {
  return window && position + 1 > window ? position + 1 - window : 0;
}

// Partial results, f32 [slot, heads, PARTIAL_HEAD + head_dim]: the largest score times log2(e), the sum of weights, and
// behind two unused ones the weighted values.
constexpr uint32_t PARTIAL_HEAD = 4;
__device__ __forceinline__ float* partial_at(float* partial, const Item& item, uint32_t index, uint32_t row,
                                             uint32_t head, uint32_t heads, uint32_t head_dim) {
  size_t slot = item.first_slot + index * item.rows + row;
  return partial + (slot * heads + head) * (PARTIAL_HEAD + head_dim);
}
