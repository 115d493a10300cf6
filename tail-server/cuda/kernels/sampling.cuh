// What is found out about rows of logits, so that the rows need not go to the host: the largest, sums, and the most
// likely tokens in order. `sampling.rs` is the other side, the model crate's `sampler/summary.rs` says what for.
//
// A row is cut into chunks, one for each thread block. `largest_logits` adjusts single logits and finds the largest
// one, and a threshold that at least CANDIDATES logits reach, but not many more: the chunks' logits are dealt out to
// groups, and the CANDIDATES-th largest of the groups' largest is such a threshold. `sum_logits` adds up, and gathers
// and sorts what reaches the threshold. In both kernels the block of a row that ends last puts the chunks together, in
// a fixed order.
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
// Bits of a threshold that are searched for, in pairs from the highest.
constexpr int THRESHOLD_BITS = 20;

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

// Zero between steps, but for `largest` and `threshold`.
struct RowState {
  uint32_t largest_done, sums_done, gathered, has_nan;
  float largest;
  uint32_t threshold, unused[2];
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
  uint32_t* groups;        // [row, chunk, group]
};

__device__ __forceinline__ Scratch scratch_of(void* memory, uint32_t most_rows, uint32_t chunks) {
  Scratch scratch;
  scratch.states = static_cast<RowState*>(memory);
  scratch.sums = reinterpret_cast<ChunkSums*>(scratch.states + most_rows);
  scratch.largest = reinterpret_cast<unsigned long long*>(scratch.sums + (size_t)most_rows * chunks);
  scratch.gathered = scratch.largest + (size_t)most_rows * chunks;
  scratch.groups = reinterpret_cast<uint32_t*>(scratch.gathered + (size_t)most_rows * GATHERED);
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

// Four neighbours from `i`, a multiple of 4. What is beyond `end` is not read, or not to be relied on.
struct Four { float values[4]; };
__device__ __forceinline__ Four load_four(const float* row, uint32_t i, uint32_t end, bool is_aligned) {
  Four four;
  if (is_aligned) {
    float4 loaded = __ldcg(reinterpret_cast<const float4*>(row + i));
    four.values[0] = loaded.x, four.values[1] = loaded.y, four.values[2] = loaded.z, four.values[3] = loaded.w;
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) four.values[j] = i + j < end ? __ldcg(row + i + j) : 0.f;
  }
  return four;
}

// Calls `take(four, i)` for a chunk's neighbours, two of a thread in flight.
template <typename Take>
__device__ __forceinline__ void for_each_four(const float* row, uint32_t start, uint32_t end, bool is_aligned,
                                              Take take) {
  for (uint32_t i = start + threadIdx.x * 4; i < end; i += 2 * THREADS * 4) {
    uint32_t next = i + THREADS * 4;
    Four four = load_four(row, i, end, is_aligned), next_four = {};
    if (next < end) next_four = load_four(row, next, end, is_aligned);
    take(four, i);
    if (next < end) take(next_four, next);
  }
}

// True in all threads of the block that is the last of the `chunks` ones to get here; what the others wrote before is
// visible to it then.
__device__ __forceinline__ bool is_last(uint32_t* done, uint32_t chunks) {
  __shared__ uint32_t before;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) before = atomicAdd(done, 1);
  __syncthreads();
  __threadfence();
  return before == chunks - 1;
}

__device__ __forceinline__ unsigned long long warp_largest(unsigned long long value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value = max(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

// The largest number of THRESHOLD_BITS leading bits that at least CANDIDATES of the keys reach; at least 1.
__device__ __forceinline__ uint32_t threshold_of(const uint32_t* keys, uint32_t count) {
  constexpr int TURNS = MOST_GROUPS / THREADS;
  __shared__ uint32_t reached[THRESHOLD_BITS / 2][2];
  if (threadIdx.x < THRESHOLD_BITS) reached[threadIdx.x / 2][threadIdx.x % 2] = 0;
  uint32_t mine[TURNS];
#pragma unroll
  for (int turn = 0; turn < TURNS; turn++) {
    uint32_t i = turn * THREADS + threadIdx.x;
    mine[turn] = i < count ? __ldcg(keys + i) : 0;
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
    threshold += second >= CANDIDATES            ? 3 * step
                 : first >> 16 >= CANDIDATES     ? 2 * step
                 : (first & 0xFFFF) >= CANDIDATES ? step
                                                  : 0;
  }
  return max(threshold, 1u);
}

// Adjusts the rows' logits, [row, vocab_size], and finds the largest of each. Grid: chunks, rows, of which those behind
// the plan's number do nothing. `chunk_len` is a multiple of 4; `groups` divides THREADS and is at least 32,
// chunks · groups is at most MOST_GROUPS.
extern "C" __global__ void __launch_bounds__(THREADS)
    largest_logits(float* logits, const uint32_t* plan, void* memory, RowResult* results, uint32_t most_rows,
                   uint32_t vocab_size, uint32_t chunk_len, uint32_t groups) {
  __shared__ uint32_t keys[THREADS];
  __shared__ unsigned long long of_warps[WARPS];
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.y, chunk = blockIdx.x, chunks = gridDim.x;
  if (row >= plan[0]) return;
  Scratch scratch = scratch_of(memory, most_rows, chunks);
  const PlannedRow planned = reinterpret_cast<const PlannedRow*>(plan + PLAN_HEADER_WORDS)[row];
  logits += (size_t)row * vocab_size;
  uint32_t start = chunk * chunk_len, end = min(vocab_size, start + chunk_len);
  bool is_aligned = vocab_size % 4 == 0;

  if (planned.adjustments) {
    const PlannedRow* rows = reinterpret_cast<const PlannedRow*>(plan + PLAN_HEADER_WORDS);
    const Adjustment* adjustments = reinterpret_cast<const Adjustment*>(rows + most_rows) + planned.first_adjustment;
    for (uint32_t i = threadIdx.x; i < planned.adjustments; i += THREADS) {
      Adjustment adjust = adjustments[i];
      if (adjust.token_id < start || adjust.token_id >= end) continue;
      float logit = __fadd_rn(__ldcg(logits + adjust.token_id), adjust.bias);
      logit = logit > 0.f ? __fdiv_rn(logit, adjust.repetition) : __fmul_rn(logit, adjust.repetition);
      __stcg(logits + adjust.token_id, __fsub_rn(logit, adjust.penalty));
    }
    __syncthreads();
  }

  uint32_t key = 0, token_id = 0;
  bool has_nan = false;
  for_each_four(logits, start, end, is_aligned, [&](const Four& four, uint32_t i) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j >= end) break;
      has_nan |= isnan(four.values[j]);
      uint32_t next = isnan(four.values[j]) ? 0 : key_of(four.values[j]);
      if (next > key) key = next, token_id = i + j;
    }
  });
  keys[threadIdx.x] = key;
  unsigned long long largest = warp_largest(order_of(key, token_id));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
  if (__syncthreads_or(has_nan) && threadIdx.x == 0) scratch.states[row].has_nan = 1;
  if (threadIdx.x < 32) {
    largest = warp_largest(threadIdx.x < WARPS ? of_warps[threadIdx.x] : 0);
    if (threadIdx.x == 0) scratch.largest[(size_t)row * chunks + chunk] = largest;
  }
  uint32_t* row_groups = scratch.groups + (size_t)row * chunks * groups;
  if ((planned.wants & WANTS_CANDIDATES) && threadIdx.x < groups) {
    for (uint32_t i = threadIdx.x; i < THREADS; i += groups) key = max(key, keys[i]);
    row_groups[chunk * groups + threadIdx.x] = key;
  }

  RowState* state = scratch.states + row;
  if (!is_last(&state->largest_done, chunks)) return;
  uint32_t threshold = 0;
  if (planned.wants & WANTS_CANDIDATES) threshold = threshold_of(row_groups, chunks * groups);
  if (threadIdx.x >= 32) return;
  largest = 0;
  for (uint32_t i = threadIdx.x; i < chunks; i += 32)
    largest = max(largest, __ldcg(scratch.largest + (size_t)row * chunks + i));
  largest = warp_largest(largest);
  if (threadIdx.x) return;
  // Without a single number in the row, token 0 is the largest.
  float logit = largest >> 32 ? logit_of((uint32_t)(largest >> 32)) : 0.f;
  RowResult result = {};
  result.candidates = 1;
  result.has_nan = __ldcg(&state->has_nan);
  result.largest[0] = largest >> 32 ? ~(uint32_t)largest : 0;
  result.largest[1] = __float_as_uint(logit);
  results[row] = result;
  state->largest_done = 0;
  state->has_nan = 0;
  state->largest = logit;
  state->threshold = threshold;
}

// exp2((logit - largest) · (scale + scale_rest)), at most 3e-7 off; 0 for less than 2^-125.
__device__ __forceinline__ float weight_of(float logit, float largest, float scale, float scale_rest) {
  // The difference is the sum of `apart` and `rest`, exactly.
  float apart = __fsub_rn(logit, largest);
  float back = __fsub_rn(apart, logit);
  float rest = __fadd_rn(__fsub_rn(logit, __fsub_rn(apart, back)), __fsub_rn(-largest, back));
  float power = __fmul_rn(apart, scale);
  // For what is infinitely far apart, too.
  if (!(power >= -125.f)) return 0.f;
  float power_rest = __fmaf_rn(apart, scale, -power) + __fmaf_rn(apart, scale_rest, rest * scale);
  float whole = rintf(power);
  float weight;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"((power - whole) + power_rest));
  return weight * __int_as_float(((int)whole + 127) << 23);
}

// Over the warp, in all of its threads.
__device__ __forceinline__ double warp_total(double value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

__device__ __forceinline__ ChunkSums warp_total(const ChunkSums& sums) {
  ChunkSums total;
  total.exp_sum = warp_total(sums.exp_sum);
  total.weight_sum = warp_total(sums.weight_sum);
  total.doubtful_sum = warp_total(sums.doubtful_sum);
  total.weight_count = __reduce_add_sync(~0u, sums.weight_count);
  total.unused = 0;
  return total;
}

// Sorts `size` values, largest first; a power of two from 64 to 2 · THREADS.
__device__ __forceinline__ void sort(unsigned long long* values, uint32_t size) {
  for (uint32_t run = 2; run <= size; run <<= 1) {
    for (uint32_t apart = run >> 1; apart; apart >>= 1) {
      uint32_t i = threadIdx.x;
      if (i < size / 2) {
        uint32_t low = (i & ~(apart - 1)) << 1 | (i & (apart - 1)), high = low + apart;
        unsigned long long a = values[low], b = values[high];
        bool is_falling = (low & run) == 0;
        if ((a < b) == is_falling) values[low] = b, values[high] = a;
      }
      // Up to 32 apart, the 32 pairs of a warp are 64 neighbours, and the next ones as well.
      if (apart > 32 || (apart == 1 && run >= 64)) __syncthreads();
      else __syncwarp();
    }
  }
}

// Sums over the rows that `largest_logits` has adjusted, and their most likely tokens: [row, CANDIDATES] of token id and
// logit. The same grid, chunks and plan; rows that want nothing more are left alone.
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_logits(const float* logits, const uint32_t* plan, void* memory, RowResult* results, uint2* candidates,
               uint32_t most_rows, uint32_t vocab_size, uint32_t chunk_len) {
  __shared__ unsigned long long gathered[GATHERED];
  __shared__ uint32_t count, place;
  __shared__ ChunkSums of_warps[WARPS];
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.y, chunk = blockIdx.x, chunks = gridDim.x;
  if (row >= plan[0]) return;
  const PlannedRow planned = reinterpret_cast<const PlannedRow*>(plan + PLAN_HEADER_WORDS)[row];
  if (planned.wants == 0) return;
  Scratch scratch = scratch_of(memory, most_rows, chunks);
  RowState* state = scratch.states + row;
  const float largest = __ldcg(&state->largest);
  const uint32_t threshold = __ldcg(&state->threshold);
  logits += (size_t)row * vocab_size;
  uint32_t start = chunk * chunk_len, end = min(vocab_size, start + chunk_len);
  bool is_aligned = vocab_size % 4 == 0;
  const bool log_total = planned.wants & WANTS_LOG_TOTAL, weights = planned.wants & WANTS_WEIGHTS;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();

  ChunkSums sums = {};
  for_each_four(logits, start, end, is_aligned, [&](const Four& four, uint32_t i) {
    float exp_sum = 0, weight_sum = 0, doubtful_sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j >= end) break;
      float logit = four.values[j];
      // log2(e), as a sum of two.
      if (log_total) exp_sum += weight_of(logit, largest, 1.44269502f, 1.92596303e-8f);
      if (weights) {
        float weight = weight_of(logit, largest, planned.scale, planned.scale_rest);
        bool is_doubtful = fabsf(weight - planned.floor) <= 2e-6f * planned.floor;
        if (weight >= planned.floor) weight_sum += weight;
        if (is_doubtful) doubtful_sum += weight;
        sums.weight_count += weight >= planned.floor || is_doubtful;
      }
      uint32_t key = key_of(logit);
      if (threshold && key >= threshold && !isnan(logit)) {
        uint32_t index = atomicAdd(&count, 1);
        if (index < GATHERED) gathered[index] = order_of(key, i + j);
      }
    }
    sums.exp_sum += exp_sum, sums.weight_sum += weight_sum, sums.doubtful_sum += doubtful_sum;
  });
  sums = warp_total(sums);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x < 32) {
    ChunkSums none = {};
    sums = warp_total(threadIdx.x < WARPS ? of_warps[threadIdx.x] : none);
    if (threadIdx.x == 0) {
      scratch.sums[(size_t)row * chunks + chunk] = sums;
      place = count ? atomicAdd(&state->gathered, count) : 0;
    }
  }
  __syncthreads();
  unsigned long long* row_gathered = scratch.gathered + (size_t)row * GATHERED;
  for (uint32_t i = threadIdx.x; i < min(count, GATHERED) && place + i < GATHERED; i += THREADS)
    row_gathered[place + i] = gathered[i];

  if (!is_last(&state->sums_done, chunks)) return;
  uint32_t all = __ldcg(&state->gathered);
  uint32_t given = all <= GATHERED ? min(all, CANDIDATES) : 0;
  if (given) {
    uint32_t size = 64;
    while (size < all) size <<= 1;
    for (uint32_t i = threadIdx.x; i < size; i += THREADS) gathered[i] = i < all ? __ldcg(row_gathered + i) : 0;
    __syncthreads();
    sort(gathered, size);
    for (uint32_t i = threadIdx.x; i < given; i += THREADS)
      candidates[(size_t)row * CANDIDATES + i] =
          make_uint2(~(uint32_t)gathered[i], __float_as_uint(logit_of((uint32_t)(gathered[i] >> 32))));
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
