// The partial results of rows whose positions are cut into several items. A launch of its own: to find out in the other
// kernels which thread block is the last one of a row takes a fence and an atomic operation for each item, and those
// wait behind the keys and values that are under way, which was measured to take longer.
#pragma once
#include "attention_parts.cuh"

constexpr int MERGE_THREADS = 128;

// Merges the partial results of MERGES, of a row's query heads of one key-value head at a time, in order of their
// positions. `partial`: see attention_parts.cuh. `out`: [row, heads, head_dim]. Grid: any.
template <typename T>
__device__ __forceinline__ void merge(float* partial, T* out, const uint32_t* step, uint32_t tail_layer,
                                      uint32_t heads, uint32_t kv_heads, uint32_t head_dim) {
  let_next_start();
  wait_for_previous();
  const Item* merges = part_of<Item>(step, MERGES);
  uint32_t units = work_of(step, tail_layer).merges * kv_heads, count = heads / kv_heads, fours = head_dim / 4;
  for (uint32_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    Item item = load_item(merges + unit / kv_heads);
    uint32_t first_head = unit % kv_heads * count;
    size_t stride = (size_t)item.rows * heads * (PARTIAL_HEAD + head_dim);
    for (uint32_t i = threadIdx.x; i < item.rows * count * fours; i += MERGE_THREADS) {
      uint32_t element = i % fours * 4, head = first_head + i / fours % count, row = i / fours / count;
      const float* from = partial_at(partial, item, 0, row, head, heads, head_dim);
      float most = -INFINITY, weights = 0;
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 16
      for (uint32_t at = 0; at < item.items; at++) most = fmaxf(most, from[at * stride]);
#pragma unroll 8
      for (uint32_t at = 0; at < item.items; at++) {
        const float* part = from + at * stride;
        float2 head_of = *reinterpret_cast<const float2*>(part);
        float4 values = *reinterpret_cast<const float4*>(part + PARTIAL_HEAD + element);
        float shrink = exp2f(head_of.x - most);
        weights += head_of.y * shrink;
        sum.x += values.x * shrink, sum.y += values.y * shrink, sum.z += values.z * shrink, sum.w += values.w * shrink;
      }
      float part = 1.f / weights;
      T* to = out + ((size_t)(item.row + row) * heads + head) * head_dim + element;
      store_four(to, make_float4(sum.x * part, sum.y * part, sum.z * part, sum.w * part));
    }
  }
}

#define DEFINE(T, NAME)                                                                                       \
  extern "C" __global__ void __launch_bounds__(MERGE_THREADS)                                                 \
      attend_merge_##NAME(float* partial, T* out, const uint32_t* step, uint32_t tail_layer, uint32_t heads,  \
                          uint32_t kv_heads, uint32_t head_dim) {                                             \
    merge<T>(partial, out, step, tail_layer, heads, kv_heads, head_dim);                                      \
  }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
