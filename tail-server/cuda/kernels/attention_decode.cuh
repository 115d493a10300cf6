// Grouped-query attention of decoding rows and drafts on tensor cores: as fast as the keys and values come.
//
// A unit of work is an item (see step.cuh) of one key-value head. Its rows and their query heads, at most 16 together,
// are the rows of the tensor cores' tiles. The warps of a thread block take the unit's KV blocks in turn, the warp of a
// block being its number modulo DECODE_WARPS; each brings its own blocks to shared memory, those of the next unit too,
// and waits for no other warp before the unit's end, where the warps' results are merged. Meanwhile another thread block of the
// same multiprocessor goes on. A row's sums have the same order whatever rows share the tile, since what a row does not
// see adds exact zeros.
#pragma once
#include "attention_parts.cuh"
#include "tensor_cores.cuh"

constexpr int DECODE_WARPS = 4;
constexpr int DECODE_THREADS = 32 * DECODE_WARPS;
constexpr int TILE_ROWS = 16;

// Shared memory of a thread block, in bytes from its start. `decode_bytes` in attention.rs says the same.
template <int D> struct DecodeMemory {
  static constexpr int HALF = BLOCK_POSITIONS * D * 2; // keys or values of a block
  static constexpr int STAGES = 128 / D;               // blocks that a warp has in flight
  static constexpr int VALUE_STRIDE = D + 4;
  static constexpr int VALUES = DECODE_WARPS * STAGES * 2 * HALF; // f32 [warp, tile row, VALUE_STRIDE]
  static constexpr int WEIGHTS = VALUES + DECODE_WARPS * TILE_ROWS * VALUE_STRIDE * 4; // float2 [warp, tile row]
  static constexpr int BARRIERS = WEIGHTS + DECODE_WARPS * TILE_ROWS * 8;
  static constexpr int BYTES = BARRIERS + DECODE_WARPS * STAGES * 16;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// What stays the same throughout a launch.
struct DecodeWork {
  const Item* items;
  const uint32_t* tables;
  uint32_t units, layer, kv_heads, window;
};

// The KV blocks [first, end) of an item that a warp takes, every DECODE_WARPS-th.
struct WarpBlocks {
  uint32_t first, end;
  __device__ __forceinline__ WarpBlocks(const Item& item, uint32_t window) {
    uint32_t warp = threadIdx.x / 32;
    uint32_t begin = max(item.begin, first_seen(item.position, window)) / BLOCK_POSITIONS;
    first = begin + (warp - begin) % DECODE_WARPS;
    end = (item.end + BLOCK_POSITIONS - 1) / BLOCK_POSITIONS;
  }
};

// A warp's copies of its blocks to shared memory, in the order in which it takes them. What it reads of the next unit
// is asked for a unit ahead.
template <typename T, int D> struct Fetch {
  using Memory = DecodeMemory<D>;
  const T* kv;
  uint8_t* stages;    // the warp's
  uint64_t* barriers; // the warp's
  uint32_t stage = 0, at = 0, left = 0, kv_head = 0;
  uint32_t number = 0; // lane l: of the block l turns after the first one whose numbers were read
  const T* values = nullptr; // of the block whose keys were copied last, if they are still to be copied
  Item item;
  // The next unit.
  uint32_t turn = 0, next_kv_head = 0, next_number = 0;
  bool has_next = false, knows_number = false;
  Item next_item;

  // The numbers of 32 blocks from the warp's block `at` on.
  __device__ __forceinline__ uint32_t read_numbers(const DecodeWork& work, const Item& of, uint32_t at) const {
    WarpBlocks blocks(of, work.window);
    uint32_t block = blocks.first + (at + threadIdx.x % 32) * DECODE_WARPS;
    return block < blocks.end ? block_of(work.tables, of, work.layer, block) : 0;
  }

  // Asks for the next unit's item.
  __device__ __forceinline__ void look_ahead(const DecodeWork& work) {
    uint32_t unit = unit_of(turn++);
    has_next = unit < work.units;
    knows_number = false;
    if (!has_next) return;
    next_item = load_item(work.items + unit / work.kv_heads);
    next_kv_head = unit % work.kv_heads;
  }
  __device__ __forceinline__ void learn_number(const DecodeWork& work) {
    if (has_next && !knows_number) next_number = read_numbers(work, next_item, 0), knows_number = true;
  }

  // Goes to the next unit that has blocks for the warp; leaves none where there is no such unit.
  __device__ __forceinline__ void find(const DecodeWork& work) {
    while (has_next && left == 0) {
      learn_number(work);
      item = next_item, kv_head = next_kv_head, number = next_number;
      WarpBlocks blocks(item, work.window);
      if (blocks.first < blocks.end) left = (blocks.end - blocks.first + DECODE_WARPS - 1) / DECODE_WARPS;
      at = 0;
      look_ahead(work);
    }
  }

  // Starts the copy of the next block's keys, if there is one.
  __device__ __forceinline__ void next_keys(const DecodeWork& work) {
    values = nullptr;
    if (left == 0) return;
    uint32_t block = __shfl_sync(~0u, number, at % 32);
    const T* keys = kv + keys_at(block, kv_head, work.kv_heads, D);
    values = keys + (size_t)work.kv_heads * BLOCK_POSITIONS * D;
    copy(keys, 0);
  }

  // Starts the copy of the same block's values.
  __device__ __forceinline__ void next_values(const DecodeWork& work) {
    if (!values) return;
    copy(values, 1);
    stage = (stage + 1) % Memory::STAGES;
    at++;
    if (--left == 0) find(work);
    else if (at % 32 == 0) number = read_numbers(work, item, at);
    else learn_number(work);
  }

  __device__ __forceinline__ void copy(const T* from, uint32_t part) const {
    if (threadIdx.x % 32) return;
    uint32_t at = 2 * stage + part;
    arrive_expecting(barriers + at, Memory::HALF);
    copy_bytes(stages + at * Memory::HALF, from, Memory::HALF, barriers + at);
  }
};

// The queries of the tile's rows, as the left operand; zeros where the tile has no such row.
template <typename T, int D>
__device__ __forceinline__ void load_queries(uint32_t (&q)[D / 16][4], const T* queries, const Item& item,
                                             uint32_t first_head, uint32_t per_kv_head, uint32_t heads) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t tile_row = threadIdx.x % 32 / 4 + 8 * half, row = tile_row / per_kv_head;
    const T* from = queries + ((size_t)(item.row + row) * heads + first_head + tile_row % per_kv_head) * D;
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(from) + threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
      q[k][half] = row < item.rows ? pairs[8 * k] : 0;
      q[k][2 + half] = row < item.rows ? pairs[8 * k + 4] : 0;
    }
  }
}

// scores = q kᵀ of a block's 32 positions.
template <typename T, int D>
__device__ __forceinline__ void score_block(float (&scores)[4][4], const uint32_t (&q)[D / 16][4], uint32_t keys) {
  uint32_t lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) scores[i][j] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t eight = (k % 4 * 2 + lane / 8 % 2) ^ lane % 8;
    uint32_t from = keys + (k / 4 * BLOCK_POSITIONS + row) * 128 + eight * 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t b[4];
      load_matrices(b, from + half * 16 * 128);
      multiply(scores[2 * half], q[k], b[0], b[1], T());
      multiply(scores[2 * half + 1], q[k], b[2], b[3], T());
    }
  }
}

// sums += weights · values of a block's 32 positions.
template <typename T, int D>
__device__ __forceinline__ void add_values(float (&sums)[D / 8][4], const float (&weights)[4][4], uint32_t values) {
  uint32_t lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float(&left)[4] = weights[2 * half], (&right)[4] = weights[2 * half + 1];
    uint32_t p[4] = {pack(left[0], left[1], T()), pack(left[2], left[3], T()), pack(right[0], right[1], T()),
                     pack(right[2], right[3], T())};
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
      uint32_t eight = (i % 4 * 2 + lane / 16) ^ lane % 8;
      uint32_t b[4];
      load_transposed(b, values + (i / 4 * BLOCK_POSITIONS + half * 16 + row) * 128 + eight * 16);
      multiply(sums[2 * i], p, b[0], b[1], T());
      multiply(sums[2 * i + 1], p, b[2], b[3], T());
    }
  }
}

// Zeros a block's values from position `first` on: nobody has written them, and zero times them must be zero.
template <int D> __device__ __forceinline__ void clear_values(uint8_t* values, uint32_t first) {
  for (uint32_t i = threadIdx.x % 32; i < (BLOCK_POSITIONS - first) * (D / 8); i += 32) {
    uint32_t row = first + i / (D / 8), eight = i % (D / 8);
    uint32_t at = (eight / 8 * BLOCK_POSITIONS + row) * 128 + eight % 8 * 16;
    *reinterpret_cast<uint4*>(values + at) = make_uint4(0, 0, 0, 0);
  }
  __syncwarp();
}

// Merges the warps' results of a unit into the rows' result or a partial one.
template <typename T, int D>
__device__ __forceinline__ void finish_unit(const float* values, const float2* weights, const Item& item, T* out,
                                            float* partial, uint32_t first_head, uint32_t per_kv_head,
                                            uint32_t heads) {
  constexpr int STRIDE = DecodeMemory<D>::VALUE_STRIDE;
  for (uint32_t i = threadIdx.x; i < item.rows * per_kv_head * (D / 4); i += DECODE_THREADS) {
    uint32_t tile_row = i / (D / 4), element = i % (D / 4) * 4;
    uint32_t row = tile_row / per_kv_head, head = first_head + tile_row % per_kv_head;
    float most = -INFINITY, weight = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int warp = 0; warp < DECODE_WARPS; warp++) most = fmaxf(most, weights[warp * TILE_ROWS + tile_row].x);
    float base = most == -INFINITY ? 0.f : most;
#pragma unroll
    for (int warp = 0; warp < DECODE_WARPS; warp++) {
      float2 part = weights[warp * TILE_ROWS + tile_row];
      float4 value = *reinterpret_cast<const float4*>(values + (warp * TILE_ROWS + tile_row) * STRIDE + element);
      float shrink = exp2f(part.x - base);
      weight += part.y * shrink;
      sum.x += value.x * shrink, sum.y += value.y * shrink, sum.z += value.z * shrink, sum.w += value.w * shrink;
    }
    if (item.items == 1) {
      float part = 1.f / weight;
      store_four(out + ((size_t)(item.row + row) * heads + head) * D + element,
                 make_float4(sum.x * part, sum.y * part, sum.z * part, sum.w * part));
    } else {
      float* to = partial_at(partial, item, item.index, row, head, heads, D);
      if (element == 0) __stcg(reinterpret_cast<float2*>(to), make_float2(most, weight));
      __stcg(reinterpret_cast<float4*>(to + PARTIAL_HEAD + element), sum);
    }
  }
}

// Arguments as in attention.cuh. Grid: any; shared memory: DecodeMemory<D>::BYTES.
template <typename T, int D>
__device__ __forceinline__ void decode(const T* queries, const T* kv, T* out, float* partial,
                                       const uint32_t* step, uint32_t layer, uint32_t tail_layer, uint32_t heads,
                                       uint32_t kv_heads, uint32_t window, float scale) {
  using Memory = DecodeMemory<D>;
  extern __shared__ __align__(1024) uint8_t shared[];
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* values_of = reinterpret_cast<float*>(shared + Memory::VALUES);
  float2* weights_of = reinterpret_cast<float2*>(shared + Memory::WEIGHTS);
  uint8_t* own = shared + warp * Memory::STAGES * 2 * Memory::HALF;

  let_next_start();
  Fetch<T, D> fetch;
  fetch.kv = kv;
  fetch.stages = own;
  fetch.barriers = reinterpret_cast<uint64_t*>(shared + Memory::BARRIERS) + warp * Memory::STAGES * 2;
  if (lane < 2 * Memory::STAGES) init_barrier(fetch.barriers + lane, 1);
  publish_barriers();
  __syncwarp();
  wait_for_previous();
  DecodeWork work = {part_of<Item>(step, ITEMS), part_of<uint32_t>(step, TABLES),
                     work_of(step, tail_layer).items * kv_heads, layer, kv_heads, window};
  uint32_t per_kv_head = heads / kv_heads;
  fetch.look_ahead(work);
  fetch.find(work);
#pragma unroll 1
  for (int i = 0; i < Memory::STAGES; i++) fetch.next_keys(work), fetch.next_values(work);

  uint32_t stage = 0, parity = 0, unit = unit_of(0), q[D / 16][4];
  if (unit >= work.units) return;
  Item next_item = load_item(work.items + unit / kv_heads);
  load_queries<T, D>(q, queries, next_item, unit % kv_heads * per_kv_head, per_kv_head, heads);
#pragma unroll 1
  for (uint32_t turn = 1; unit < work.units; turn++) {
    Item item = next_item;
    uint32_t first_head = unit % kv_heads * per_kv_head;
    unit = unit_of(turn);
    if (unit < work.units) next_item = load_item(work.items + unit / kv_heads);
    float sums[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    uint32_t begin[2], end[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t row = (lane / 4 + 8 * half) / per_kv_head, position = item.position + row;
      begin[half] = first_seen(position, window);
      end[half] = row < item.rows ? position + 1 : 0;
    }
    WarpBlocks blocks(item, window);
#pragma unroll 1
    for (uint32_t block = blocks.first; block < blocks.end; block += DECODE_WARPS) {
      uint8_t* keys = own + stage * 2 * Memory::HALF;
      uint32_t first = block * BLOCK_POSITIONS;
      uint64_t* barrier = fetch.barriers + stage * 2;
      float weights[4][4], shrink[2];
      wait_barrier(barrier, parity);
      score_block<T, D>(weights, q, shared_address(keys));
      __syncwarp();
      fetch.next_keys(work);
      if (window || first + BLOCK_POSITIONS > item.position + 1) hide(weights, first, begin, end);
      weigh(weights, largest, sum, shrink, scale);
#pragma unroll
      for (int i = 0; i < D / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] *= shrink[j / 2];
      wait_barrier(barrier + 1, parity);
      bool is_cut = item.end < first + BLOCK_POSITIONS;
      if (is_cut) clear_values<D>(keys + Memory::HALF, item.end - first);
      add_values<T, D>(sums, weights, shared_address(keys + Memory::HALF));
      if (is_cut) show_to_copies();
      __syncwarp();
      fetch.next_values(work);
      if (++stage == Memory::STAGES) stage = 0, parity ^= 1;
    }

    // The next unit's come while this one ends.
    if (unit < work.units)
      load_queries<T, D>(q, queries, next_item, unit % kv_heads * per_kv_head, per_kv_head, heads);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t tile_row = warp * TILE_ROWS + lane / 4 + 8 * half;
      float weight = row_sum(sum[half]);
      if (lane % 4 == 0) weights_of[tile_row] = make_float2(largest[half] * scale, weight);
      float* to = values_of + tile_row * Memory::VALUE_STRIDE + lane % 4 * 2;
      if (lane / 4 + 8 * half < item.rows * per_kv_head)
#pragma unroll
        for (int i = 0; i < D / 8; i++)
          *reinterpret_cast<float2*>(to + 8 * i) = make_float2(sums[i][2 * half], sums[i][2 * half + 1]);
    }
    __syncthreads();
    finish_unit<T, D>(values_of, weights_of, item, out, partial, first_head, per_kv_head, heads);
    __syncthreads();
  }
}
#endif

#define DECODE(T, NAME, D)                                                                                     \
  extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 2) attend_decode_##NAME##_##D(                     \
      const T* q, const T* kv, T* out, float* partial, const uint32_t* step,                \
      uint32_t layer, uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t window, float scale) {  \
    DECODE_BODY(T, D)                                                                                          \
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DECODE_BODY(T, D)                                                                                      \
  decode<T, D>(q, kv, out, partial, step, layer, tail_layer, heads, kv_heads, window, scale);
#else
#define DECODE_BODY(T, D)
#endif
DECODE(__nv_bfloat16, bf16, 64) DECODE(__nv_bfloat16, bf16, 128)
DECODE(__half, f16, 64) DECODE(__half, f16, 128)
#undef DECODE_BODY
#undef DECODE
