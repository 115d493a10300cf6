// What the attention kernels have in common: the order of their work, and the merge of partial results.
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

// True in the thread block that is the last one to come here with an item of these rows and heads: all partial
// results are there. `arrived` is 0 before, and again after the last one. `last`: in shared memory.
__device__ __forceinline__ bool is_last(uint32_t* arrived, uint32_t items, uint32_t* last) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *last = atomicInc(arrived, items - 1) == items - 1;
  }
  __syncthreads();
  bool is = *last;
  if (is) __threadfence();
  return is;
}

// Merges the partial results of `count` heads of the item's rows, in order of their positions.
template <typename T, int THREADS>
__device__ __forceinline__ void merge(float* partial, T* out, const Item& item, uint32_t first_head, uint32_t count,
                                      uint32_t heads, uint32_t head_dim) {
  uint32_t fours = head_dim / 4;
  for (uint32_t i = threadIdx.x; i < item.rows * count * fours; i += THREADS) {
    uint32_t element = i % fours * 4, head = first_head + i / fours % count, row = i / fours / count;
    const float* from = partial_at(partial, item, 0, row, head, heads, head_dim);
    size_t stride = (size_t)item.rows * heads * (PARTIAL_HEAD + head_dim);
    float most = -INFINITY, weights = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (uint32_t at = 0; at < item.items; at++) most = fmaxf(most, __ldcg(from + at * stride));
#pragma unroll 4
    for (uint32_t at = 0; at < item.items; at++) {
      const float* part = from + at * stride;
      float2 head_of = __ldcg(reinterpret_cast<const float2*>(part));
      float4 values = __ldcg(reinterpret_cast<const float4*>(part + PARTIAL_HEAD + element));
      float shrink = exp2f(head_of.x - most);
      weights += head_of.y * shrink;
      sum.x += values.x * shrink, sum.y += values.y * shrink, sum.z += values.z * shrink, sum.w += values.w * shrink;
    }
    float part = 1.f / weights;
    T* to = out + ((size_t)(item.row + row) * heads + head) * head_dim + element;
    store_four(to, make_float4(sum.x * part, sum.y * part, sum.z * part, sum.w * part));
  }
}
