// What is found out about rows of logits, so that the rows need not go to the host: the largest, sums, and the most
// likely tokens in order. `sampling.rs` is the other side, the model crate's `sampler/summary.rs` says what for.
//
// A row is dealt out to chunks, one for each thread block, in pieces of 128 neighbours. `largest_logits` adjusts single
// logits and finds the largest one, and a threshold that at least CANDIDATES logits reach, but not many more: the
// chunks' logits are dealt out to groups, neighbours to different ones, and the CANDIDATES-th largest of the groups'
// largest is about such a threshold. `sum_logits` adds up, and gathers and sorts what reaches the threshold. In both
// kernels the block of a row that ends last puts the chunks together, in a fixed order.
#pragma once
#include <cstdint>

#include "overlap.cuh"

// Tokens that are given in order, and that can be gathered on the way; sampling.rs has the same numbers.
constexpr uint32_t CANDIDATES = 256;
constexpr uint32_t GATHERED = 1024;
constexpr uint32_t MOST_CHUNKS = 64;
// Groups of a row, at most.
constexpr uint32_t MOST_GROUPS = 8192;
constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
// Thread blocks of a multiprocessor, at least.
constexpr int BLOCKS = 3;
// Logits of a piece: four for each thread of a warp.
constexpr uint32_t PIECE = 128;
// Pieces of a warp that are on their way at once.
constexpr int PIECES = 4;
// Bits of a threshold that are searched for, in pairs from the highest.
constexpr int THRESHOLD_BITS = 20;

// Weights so near the floor, over the floor, are doubtful.
constexpr float DOUBT = 4e-6f;

// What a row wants, beside the largest logit.
constexpr uint32_t WANTS_LOG_TOTAL = 1, WANTS_WEIGHTS = 2, WANTS_CANDIDATES = 4;

// The host's words: four of the header, of which the first is the number of rows, then these, then the adjustments.
struct PlannedRow {
  uint32_t first_adjustment, adjustments, wants;
  float floor;
  // log2(e) / temperature, as a sum of two.
  float scale, scale_rest;
  uint32_t unused[2];
};
struct Adjustment {
  uint32_t token_id;
  float bias, repetition, penalty;
};
constexpr uint32_t PLAN_HEADER_WORDS = 4;

// Zero between steps, but for `largest` and `threshold`, which what is to be gathered reaches.
struct RowState {
  uint32_t largest_done, sums_done, gathered, has_nan;
  float largest, threshold;
  uint32_t unused[2];
};

// What a chunk of a row gave.
struct ChunkSums {
  double exp_sum, weight_sum, doubtful_sum;
  uint32_t weight_count, unused;
};

// The host reads this, and [row, CANDIDATES] of token id and logit.
struct RowResult {
  double exp_sum, weight_sum, doubtful_sum;
  uint32_t weight_count, candidates, has_nan, unused;
  // Token id and logit.
  uint32_t largest[2];
  uint32_t unused_more[4];
};
static_assert(sizeof(PlannedRow) == 32 && sizeof(RowState) == 32 && sizeof(ChunkSums) == 32, "as in sampling.rs");
static_assert(sizeof(RowResult) == 64, "as in sampling.rs");

// Device memory of `rows` rows each, in this order.
struct Scratch {
  RowState* states;
  ChunkSums* sums;         // [row, chunk]
  unsigned long long* largest; // [row, chunk]
  unsigned long long* gathered; // [row, GATHERED]
  float* groups;           // [row, chunk, group]
};

__device__ __forceinline__ Scratch scratch_of(void* memory, uint32_t most_rows, uint32_t chunks) {
  Scratch scratch;
  scratch.states = static_cast<RowState*>(memory);
  scratch.sums = reinterpret_cast<ChunkSums*>(scratch.states + most_rows);
  scratch.largest = reinterpret_cast<unsigned long long*>(scratch.sums + (size_t)most_rows * chunks);
  scratch.gathered = scratch.largest + (size_t)most_rows * chunks;
  scratch.groups = reinterpret_cast<float*>(scratch.gathered + (size_t)most_rows * GATHERED);
  return scratch;
}

// Larger for larger logits, alike for both zeros; above 0, which stands for no logit.
__device__ __forceinline__ uint32_t key_of(float logit) {
  uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}
// Larger for what comes first: the larger logit, of equal ones the lower token.
__device__ __forceinline__ unsigned long long order_of(uint32_t key, uint32_t token_id) {
  return (unsigned long long)key << 32 | (uint32_t)~token_id;
}

// Logits of a chunk: of each of a thread's pieces four neighbours.
struct Pieces { float values[PIECES][4]; };

// The thread's first token of a piece, which is counted in pieces of the warp.
__device__ __forceinline__ uint32_t token_of(uint32_t piece) {
  return ((piece * WARPS + threadIdx.x / 32) * gridDim.x + blockIdx.x) * PIECE + threadIdx.x % 32 * 4;
}

// `first`: the first piece. What is beyond the row is minus infinity.
__device__ __forceinline__ void load(Pieces& pieces, const float* row, uint32_t vocab_size, uint32_t first) {
  const float none = -INFINITY;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    uint32_t at = token_of(first + i);
    float4 four = make_float4(none, none, none, none);
    if (vocab_size % 4 == 0) {
      if (at < vocab_size) four = __ldcg(reinterpret_cast<const float4*>(row + at));
    } else {
      if (at < vocab_size) four.x = __ldcg(row + at);
      if (at + 1 < vocab_size) four.y = __ldcg(row + at + 1);
      if (at + 2 < vocab_size) four.z = __ldcg(row + at + 2);
      if (at + 3 < vocab_size) four.w = __ldcg(row + at + 3);
    }
    pieces.values[i][0] = four.x, pieces.values[i][1] = four.y;
    pieces.values[i][2] = four.z, pieces.values[i][3] = four.w;
  }
}

// True in all threads of the block that is the last of the `chunks` ones to get here; what the others wrote before is
// visible to it then.
__device__ __forceinline__ bool is_last(uint32_t* done, uint32_t chunks) {
  __shared__ uint32_t before;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    before = atomicAdd(done, 1);
    __threadfence();
  }
  __syncthreads();
  return before == chunks - 1;
}

__device__ __forceinline__ unsigned long long warp_largest(unsigned long long value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value = max(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

// What at least CANDIDATES of the groups' largest logits reach, and few others: the largest key of THRESHOLD_BITS
// leading bits that does. At least 1. All threads of the block call it.
__device__ __forceinline__ uint32_t threshold_of(const float* largest_of, uint32_t count) {
  constexpr int TURNS = MOST_GROUPS / THREADS;
  __shared__ uint32_t reached[THRESHOLD_BITS / 2][2];
  if (threadIdx.x < THRESHOLD_BITS) reached[threadIdx.x / 2][threadIdx.x % 2] = 0;
  uint32_t mine[TURNS];
#pragma unroll
  for (int turn = 0; turn < TURNS; turn++) {
    uint32_t i = turn * THREADS + threadIdx.x;
    mine[turn] = i < count ? key_of(__ldcg(largest_of + i)) : 0;
  }
  __syncthreads();
  uint32_t threshold = 0;
#pragma unroll 1
  for (int pair = 0; pair < THRESHOLD_BITS / 2; pair++) {
    uint32_t step = 1u << (30 - 2 * pair);
    // Counts of 1 and 2 steps in halves of a word, and of 3 steps: none is above MOST_GROUPS.
    uint32_t first = 0, second = 0;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      if (turn * THREADS >= count) break;
      uint32_t key = mine[turn];
      first += (key >= threshold + step) + ((uint32_t)(key >= threshold + 2 * step) << 16);
      second += key >= threshold + 3 * step;
    }
    first = __reduce_add_sync(~0u, first);
    second = __reduce_add_sync(~0u, second);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(&reached[pair][0], first);
      atomicAdd(&reached[pair][1], second);
    }
    __syncthreads();
    first = reached[pair][0], second = reached[pair][1];
    threshold += second >= CANDIDATES             ? 3 * step
                 : first >> 16 >= CANDIDATES      ? 2 * step
                 : (first & 0xFFFF) >= CANDIDATES ? step
                                                  : 0;
  }
  return max(threshold, 1u);
}

// Adjusts the rows' logits, [row, vocab_size], and finds the largest of each. Grid: chunks, rows, of which those behind
// the plan's number are read, and left as they are. A chunk is `pieces_of_warp` pieces of each warp, a multiple of
// PIECES, and all chunks are at least vocab_size; `groups` is a power of two from PIECE to 4 · THREADS, and
// chunks · groups at most MOST_GROUPS.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    largest_logits(float* logits, const uint32_t* plan, void* memory, RowResult* results, uint32_t most_rows,
                   uint32_t vocab_size, uint32_t pieces_of_warp, uint32_t groups) {
  __shared__ float4 of_threads[THREADS];
  __shared__ unsigned long long of_warps[WARPS];
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.y, chunk = blockIdx.x, chunks = gridDim.x;
  const PlannedRow planned = reinterpret_cast<const PlannedRow*>(plan + PLAN_HEADER_WORDS)[row];
  logits += (size_t)row * vocab_size;
  Pieces pieces;
  // All of these are on their way at once.
  load(pieces, logits, vocab_size, 0);
  if (row >= plan[0]) return;
  Scratch scratch = scratch_of(memory, most_rows, chunks);

  if (planned.adjustments) {
    const PlannedRow* rows = reinterpret_cast<const PlannedRow*>(plan + PLAN_HEADER_WORDS);
    const Adjustment* adjustments = reinterpret_cast<const Adjustment*>(rows + most_rows) + planned.first_adjustment;
    for (uint32_t i = threadIdx.x; i < planned.adjustments; i += THREADS) {
      Adjustment adjust = adjustments[i];
      if (adjust.token_id >= vocab_size || adjust.token_id / PIECE % chunks != chunk) continue;
      float logit = __fadd_rn(__ldcg(logits + adjust.token_id), adjust.bias);
      logit = logit > 0.f ? __fdiv_rn(logit, adjust.repetition) : __fmul_rn(logit, adjust.repetition);
      __stcg(logits + adjust.token_id, __fsub_rn(logit, adjust.penalty));
    }
    __syncthreads();
    load(pieces, logits, vocab_size, 0);
  }

  float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  uint32_t token_ids[4];
#pragma unroll
  for (int j = 0; j < 4; j++) token_ids[j] = token_of(0) + j;
  bool has_nan = false;
  for (uint32_t first = 0;;) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float logit = pieces.values[i][j];
        has_nan |= isnan(logit);
        if (logit > best[j]) best[j] = logit, token_ids[j] = token_of(first + i) + j;
      }
    }
    if ((first += PIECES) >= pieces_of_warp) break;
    load(pieces, logits, vocab_size, first);
  }
  unsigned long long largest = 0;
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (token_ids[j] < vocab_size) largest = max(largest, order_of(key_of(best[j]), token_ids[j]));
  of_threads[threadIdx.x] = make_float4(best[0], best[1], best[2], best[3]);
  largest = warp_largest(largest);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
  if (__syncthreads_or(has_nan) && threadIdx.x == 0) scratch.states[row].has_nan = 1;
  if (threadIdx.x < 32) {
    largest = warp_largest(threadIdx.x < WARPS ? of_warps[threadIdx.x] : 0);
    if (threadIdx.x == 0) scratch.largest[(size_t)row * chunks + chunk] = largest;
  }
  float* row_groups = scratch.groups + (size_t)row * chunks * groups;
  if (planned.wants & WANTS_CANDIDATES) {
    const float* all = reinterpret_cast<const float*>(of_threads);
    for (uint32_t group = threadIdx.x; group < groups; group += THREADS) {
      float most = all[group];
      for (uint32_t i = group + groups; i < THREADS * 4; i += groups) most = fmaxf(most, all[i]);
      row_groups[chunk * groups + group] = most;
    }
  }

  RowState* state = scratch.states + row;
  if (!is_last(&state->largest_done, chunks)) return;
  __shared__ float of_row;
  if (threadIdx.x < 32) {
    largest = 0;
    for (uint32_t i = threadIdx.x; i < chunks; i += 32)
      largest = max(largest, __ldcg(scratch.largest + (size_t)row * chunks + i));
    largest = warp_largest(largest);
    if (threadIdx.x == 0) of_row = logit_of((uint32_t)(largest >> 32));
  }
  __syncthreads();
  float logit = of_row;
  // No number reaches what is not a number.
  float threshold = __int_as_float(0x7FFFFFFF);
  if (planned.wants & WANTS_CANDIDATES) {
    uint32_t key = threshold_of(row_groups, chunks * groups);
    threshold = key <= key_of(-INFINITY) ? -INFINITY : logit_of(key);
  }
  if (threadIdx.x) return;
  RowResult result = {};
  result.candidates = 1;
  result.has_nan = __ldcg(&state->has_nan);
  result.largest[0] = ~(uint32_t)largest;
  result.largest[1] = __float_as_uint(logit);
  results[row] = result;
  state->largest_done = 0;
  state->has_nan = 0;
  state->largest = logit;
  state->threshold = threshold;
}

// exp2((logit - largest) · (scale + scale_rest)), 0 for less than 2^-125. Off by no more than 3e-7, and 6e-8 of the
// exponent: what is light is less exact.
__device__ __forceinline__ float weight_of(float logit, float largest, float scale, float scale_rest) {
  float apart = logit - largest;
  float power = __fmul_rn(apart, scale);
  float rest = __fmaf_rn(apart, scale_rest, __fmaf_rn(apart, scale, -power));
  float weight;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"(power));
  weight = __fmaf_rn(weight * 0.693147182f, rest, weight);
  // Also for what is infinitely far apart, or not a number.
  return power >= -125.f ? weight : 0.f;
}

// Over the warp, in all of its threads.
__device__ __forceinline__ double warp_total(double value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// Sums that all of the warp's threads lack cost nothing.
__device__ __forceinline__ ChunkSums warp_total(const ChunkSums& sums) {
  ChunkSums total = {};
  if (__any_sync(~0u, sums.exp_sum != 0)) total.exp_sum = warp_total(sums.exp_sum);
  if (__any_sync(~0u, sums.weight_sum != 0)) total.weight_sum = warp_total(sums.weight_sum);
  if (__any_sync(~0u, sums.doubtful_sum != 0)) total.doubtful_sum = warp_total(sums.doubtful_sum);
  total.weight_count = __reduce_add_sync(~0u, sums.weight_count);
  return total;
}

// Sums over the rows that `largest_logits` has adjusted, and their most likely tokens: [row, CANDIDATES] of token id and
// logit. The same grid, plan and pieces; rows that want nothing more are left alone.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    sum_logits(const float* logits, const uint32_t* plan, void* memory, RowResult* results, uint2* candidates,
               uint32_t most_rows, uint32_t vocab_size, uint32_t pieces_of_warp) {
  __shared__ __align__(16) unsigned long long gathered[GATHERED + 2];
  __shared__ ChunkSums of_warps[WARPS];
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.y, chunk = blockIdx.x, chunks = gridDim.x;
  const PlannedRow planned = reinterpret_cast<const PlannedRow*>(plan + PLAN_HEADER_WORDS)[row];
  if (row >= plan[0] || planned.wants == 0) return;
  logits += (size_t)row * vocab_size;
  Pieces pieces;
  load(pieces, logits, vocab_size, 0);
  Scratch scratch = scratch_of(memory, most_rows, chunks);
  RowState* state = scratch.states + row;
  const float largest = __ldcg(&state->largest);
  const float threshold = __ldcg(&state->threshold);
  const float floor_low = planned.floor * (1.f - DOUBT), floor_high = planned.floor * (1.f + DOUBT);
  const bool log_total = planned.wants & WANTS_LOG_TOTAL, weights = planned.wants & WANTS_WEIGHTS;
  unsigned long long* row_gathered = scratch.gathered + (size_t)row * GATHERED;

  ChunkSums sums = {};
  for (uint32_t first = 0;;) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      float exp_sum = 0, weight_sum = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float logit = pieces.values[i][j];
        // log2(e), as a sum of two.
        if (log_total) exp_sum += weight_of(logit, largest, 1.44269502f, 1.92596303e-8f);
        if (weights) {
          float weight = weight_of(logit, largest, planned.scale, planned.scale_rest);
          bool counts = weight >= floor_low;
          weight_sum += counts ? weight : 0.f;
          sums.weight_count += counts;
          if (counts && weight <= floor_high) sums.doubtful_sum += weight;
        }
        if (logit >= threshold) {
          uint32_t token_id = token_of(first + i) + j;
          uint32_t index = token_id < vocab_size ? atomicAdd(&state->gathered, 1) : GATHERED;
          if (index < GATHERED) row_gathered[index] = order_of(key_of(logit), token_id);
        }
      }
      sums.exp_sum += exp_sum, sums.weight_sum += weight_sum;
    }
    if ((first += PIECES) >= pieces_of_warp) break;
    load(pieces, logits, vocab_size, first);
  }
  sums = warp_total(sums);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x < 32) {
    sums = {};
    if (threadIdx.x < WARPS) sums = of_warps[threadIdx.x];
    sums = warp_total(sums);
    if (threadIdx.x == 0) scratch.sums[(size_t)row * chunks + chunk] = sums;
  }

  if (!is_last(&state->sums_done, chunks)) return;
  uint32_t all = __ldcg(&state->gathered);
  uint32_t given = all <= GATHERED ? min(all, CANDIDATES) : 0;
  if (given) {
    for (uint32_t i = threadIdx.x; i <= all; i += THREADS) gathered[i] = i < all ? __ldcg(row_gathered + i) : 0;
    __syncthreads();
    // A token's place is the number of those before it; a zero behind the last one makes pairs of them.
    for (uint32_t i = threadIdx.x; i < all; i += THREADS) {
      unsigned long long mine = gathered[i];
      uint32_t place = 0;
#pragma unroll 4
      for (uint32_t j = 0; j < all; j += 2) {
        ulonglong2 two = *reinterpret_cast<const ulonglong2*>(gathered + j);
        place += (two.x > mine) + (two.y > mine);
      }
      if (place < given)
        candidates[(size_t)row * CANDIDATES + place] =
            make_uint2(~(uint32_t)mine, __float_as_uint(logit_of((uint32_t)(mine >> 32))));
    }
  }
  if (threadIdx.x >= 32) return;
  ChunkSums total = {};
  for (uint32_t i = threadIdx.x; i < chunks; i += 32) {
    const ChunkSums* more = scratch.sums + (size_t)row * chunks + i;
    total.exp_sum += __ldcg(&more->exp_sum);
    total.weight_sum += __ldcg(&more->weight_sum);
    total.doubtful_sum += __ldcg(&more->doubtful_sum);
    total.weight_count += __ldcg(&more->weight_count);
  }
  total = warp_total(total);
  if (threadIdx.x) return;
  RowResult* result = results + row;
  result->exp_sum = total.exp_sum;
  result->weight_sum = total.weight_sum;
  result->doubtful_sum = total.doubtful_sum;
  result->weight_count = total.weight_count;
  if (given) result->candidates = given;
  state->sums_done = 0;
  state->gathered = 0;
}
