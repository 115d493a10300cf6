// Grouped-query attention on CUDA cores, over paged keys and values: for every type and head_dim.
//
// A row's positions are cut into items (see step.cuh); a thread block computes one item at a time for up to GROUP query
// heads that share a key-value head; attention_merge.cuh merges a row's items. How a row is cut depends on its position
// alone, so its sums have the same order beside whatever other rows it is computed.
#pragma once
#include "attention_parts.cuh"

constexpr int ATTEND_THREADS = 128;
constexpr int ATTEND_WARPS = ATTEND_THREADS / 32;
// Positions a lane group has in flight.
constexpr int IN_FLIGHT = 2;
// Below every score, and finite: differences of it are numbers.
constexpr float LOWEST = -1e30f;

// LANES threads hold the elements of one position, eight each: head_dim is at most 8 · LANES.
// `q`: [row, heads, head_dim], rotated. `out`: [row, heads, head_dim]. `partial`: see attention_parts.cuh.
// `layer`: of the model; `tail_layer`: counted from the tail's first.
// `scale`: what scores are multiplied with, times log2(e). `window`: positions a row sees, 0 for all.
// Items have one row. Grid: any; each item is kv_heads · groups of GROUP query heads units of work.
template <typename T, int LANES, int GROUP>
__device__ __forceinline__ void attend_to(const Item& item, uint32_t kv_head, uint32_t first_head, uint32_t count,
                                          const T* queries, const T* kv, T* out, float* partial,
                                          const uint32_t* tables, uint32_t layer, uint32_t heads, uint32_t kv_heads,
                                          uint32_t head_dim, uint32_t window, float scale) {
  constexpr int LANE_GROUPS = ATTEND_THREADS / LANES;
  __shared__ float largest_of[ATTEND_WARPS][GROUP], sum_of[ATTEND_WARPS][GROUP];
  __shared__ float values_of[ATTEND_WARPS][GROUP][8 * LANES];
  uint32_t begin = max(item.begin, first_seen(item.position, window)), end = item.end;

  int lane = threadIdx.x % LANES, lane_group = threadIdx.x / LANES;
  bool holds = lane * 8 < head_dim;
  float q[GROUP][8], values[GROUP][8], largest[GROUP], sum[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; g++) {
    Eight<T> query = zero_eight<T>();
    if (holds && g < count) {
      size_t head = (size_t)item.row * heads + first_head + g;
      query = load_eight(queries + head * head_dim + lane * 8);
    }
    unpack(query, q[g]);
    largest[g] = LOWEST;
    sum[g] = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      q[g][i] *= scale;
      values[g][i] = 0;
    }
  }

  size_t to_value = (size_t)kv_heads * BLOCK_POSITIONS * head_dim;
  // All threads take the same number of turns: they exchange sums in each.
  for (uint32_t turn = begin; turn < end; turn += LANE_GROUPS * IN_FLIGHT) {
    Eight<T> key[IN_FLIGHT], value[IN_FLIGHT];
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      uint32_t position = min(turn + u * LANE_GROUPS + lane_group, end - 1);
      key[u] = value[u] = zero_eight<T>();
      if (holds) {
        uint32_t block = block_of(tables, item, layer, position / BLOCK_POSITIONS);
        const T* at = kv + keys_at(block, kv_head, kv_heads, head_dim) + element_at(position, lane * 8, head_dim);
        key[u] = load_eight(at);
        value[u] = load_eight(at + to_value);
      }
    }
    float score[IN_FLIGHT][GROUP];
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      bool is_there = turn + u * LANE_GROUPS + lane_group < end;
      float k[8];
      unpack(key[u], k);
#pragma unroll
      for (int g = 0; g < GROUP; g++) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) dot += q[g][i] * k[i];
#pragma unroll
        for (int offset = LANES / 2; offset; offset >>= 1) dot += __shfl_xor_sync(~0u, dot, offset);
        score[u][g] = is_there ? dot : LOWEST;
      }
    }
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
      float now = largest[g];
#pragma unroll
      for (int u = 0; u < IN_FLIGHT; u++) now = fmaxf(now, score[u][g]);
      float shrink = exp2f(largest[g] - now);
      largest[g] = now;
      sum[g] *= shrink;
#pragma unroll
      for (int i = 0; i < 8; i++) values[g][i] *= shrink;
#pragma unroll
      for (int u = 0; u < IN_FLIGHT; u++) {
        bool is_there = turn + u * LANE_GROUPS + lane_group < end;
        score[u][g] = is_there ? exp2f(score[u][g] - now) : 0.f;
        sum[g] += score[u][g];
      }
    }
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      float v[8];
      unpack(value[u], v);
#pragma unroll
      for (int g = 0; g < GROUP; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) values[g][i] += score[u][g] * v[i];
    }
  }

  // The lane groups of a warp, then the warps.
#pragma unroll
  for (int g = 0; g < GROUP; g++) {
#pragma unroll
    for (int offset = LANES; offset < 32; offset <<= 1) {
      float other = __shfl_xor_sync(~0u, largest[g], offset);
      float both = fmaxf(largest[g], other);
      float mine = exp2f(largest[g] - both), others = exp2f(other - both);
      sum[g] = sum[g] * mine + __shfl_xor_sync(~0u, sum[g], offset) * others;
#pragma unroll
      for (int i = 0; i < 8; i++)
        values[g][i] = values[g][i] * mine + __shfl_xor_sync(~0u, values[g][i], offset) * others;
      largest[g] = both;
    }
    if (threadIdx.x % 32 < LANES) {
      int warp = threadIdx.x / 32;
      if (lane == 0) {
        largest_of[warp][g] = largest[g];
        sum_of[warp][g] = sum[g];
      }
#pragma unroll
      for (int i = 0; i < 8; i++) values_of[warp][g][lane * 8 + i] = values[g][i];
    }
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count * head_dim; i += ATTEND_THREADS) {
    uint32_t g = i / head_dim, element = i % head_dim;
    float most = LOWEST, weights = 0, weighted = 0;
#pragma unroll
    for (int warp = 0; warp < ATTEND_WARPS; warp++) most = fmaxf(most, largest_of[warp][g]);
#pragma unroll
    for (int warp = 0; warp < ATTEND_WARPS; warp++) {
      float shrink = exp2f(largest_of[warp][g] - most);
      weights += sum_of[warp][g] * shrink;
      weighted += values_of[warp][g][element] * shrink;
    }
    if (item.items == 1) {
      out[((size_t)item.row * heads + first_head + g) * head_dim + element] = from_float<T>(weighted / weights);
    } else {
      float* to = partial_at(partial, item, item.index, 0, first_head + g, heads, head_dim);
      to[PARTIAL_HEAD + element] = weighted;
      if (element == 0) {
        to[0] = most;
        to[1] = weights;
      }
    }
  }
}

template <typename T, int LANES, int GROUP>
__device__ __forceinline__ void attend(const T* queries, const T* kv, T* out, float* partial,
                                       const uint32_t* step, uint32_t layer, uint32_t tail_layer, uint32_t heads,
                                       uint32_t kv_heads, uint32_t head_dim, uint32_t window, float scale) {
  let_next_start();
  wait_for_previous();
  const Item* items = part_of<Item>(step, ITEMS);
  const uint32_t* tables = part_of<uint32_t>(step, TABLES);
  uint32_t per_kv_head = heads / kv_heads;
  uint32_t groups = (per_kv_head + GROUP - 1) / GROUP, per_item = kv_heads * groups;
  uint32_t units = work_of(step, tail_layer).items * per_item;
  for (uint32_t turn = 0, unit; (unit = unit_of(turn)) < units; turn++) {
    Item item = load_item(items + unit / per_item);
    uint32_t part = unit % per_item, kv_head = part / groups;
    uint32_t first_head = kv_head * per_kv_head + part % groups * GROUP;
    uint32_t count = min((uint32_t)GROUP, (kv_head + 1) * per_kv_head - first_head);
    attend_to<T, LANES, GROUP>(item, kv_head, first_head, count, queries, kv, out, partial, tables, layer, heads,
                               kv_heads, head_dim, window, scale);
    __syncthreads();
  }
}

#define ATTEND(T, NAME, LANES, GROUP)                                                                         \
  extern "C" __global__ void __launch_bounds__(ATTEND_THREADS) attend_##NAME##_##LANES##_##GROUP(             \
      const T* q, const T* kv, T* out, float* partial, const uint32_t* step,               \
      uint32_t layer, uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,              \
      uint32_t window, float scale) {                                                                         \
    attend<T, LANES, GROUP>(q, kv, out, partial, step, layer, tail_layer, heads, kv_heads,           \
                            head_dim, window, scale);                                                         \
  }
#define DEFINE(T, NAME)                                                                                       \
  ATTEND(T, NAME, 8, 1) ATTEND(T, NAME, 8, 4) ATTEND(T, NAME, 8, 8)                                           \
  ATTEND(T, NAME, 16, 1) ATTEND(T, NAME, 16, 4) ATTEND(T, NAME, 16, 8)                                        \
  ATTEND(T, NAME, 32, 1) ATTEND(T, NAME, 32, 4) ATTEND(T, NAME, 32, 8)
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
#undef ATTEND
