// Grouped-query attention of prompts on Hopper's tensor cores, in the manner of FlashAttention.
//
// A unit of work is an item of PROMPTS of one key-value head: neighbouring rows of a session with their query heads, at
// most 128 together, and all positions up to the last row's. Two warpgroups have half of these each, and share tiles of
// 128 positions, which another warp brings to shared memory. While tensor cores add a tile's values, the threads weigh
// the scores of the next one.
#pragma once
#include "attention_parts.cuh"
#include "warpgroups.cuh"

constexpr int PROMPT_ROWS = 128;      // rows times query heads
constexpr int PROMPT_POSITIONS = 128; // of a tile
constexpr int TILE_BLOCKS = PROMPT_POSITIONS / BLOCK_POSITIONS;
constexpr int GROUP_THREADS = 128;
constexpr int PROMPT_THREADS = 3 * GROUP_THREADS; // one warp of the last group brings tiles
// Registers of a thread: all groups begin with the same number, and exchange them.
constexpr int COPY_REGISTERS = 40, PRODUCT_REGISTERS = 232;
constexpr int TILES_AHEAD = 4; // of keys or values

// Shared memory of a thread block, in bytes from its start. `prompt_bytes` in attention.rs says the same.
template <int D> struct PromptMemory {
  static constexpr int PANELS = D / 64;
  static constexpr int PANEL = PROMPT_POSITIONS * 128;
  static constexpr int TILE = PANELS * PANEL;
  static constexpr int QUERIES = TILES_AHEAD * TILE; // [panel, row]
  static constexpr int BARRIERS = QUERIES + PANELS * PROMPT_ROWS * 128;
  static constexpr int BYTES = BARRIERS + 2 * TILES_AHEAD * 8;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// The same in all lanes, and known to be: products may not stand where threads may part.
__device__ __forceinline__ uint32_t uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

struct PromptWork {
  const Item* items;
  const uint32_t* tables;
  uint32_t units, layer, heads, kv_heads, window;
  float scale;
};

// The positions of an item's tiles: from a block's beginning.
struct PromptTiles {
  uint32_t begin, end, count;
  __device__ __forceinline__ PromptTiles(const Item& item, uint32_t window) {
    begin = uniform(max(item.begin, first_seen(item.position, window)) / BLOCK_POSITIONS * BLOCK_POSITIONS);
    end = uniform(item.end);
    count = (end - begin + PROMPT_POSITIONS - 1) / PROMPT_POSITIONS;
  }
};

// The tiles in shared memory, of keys and values by turns, and whose turn it is.
template <int D> struct TileRing {
  uint8_t* tiles;
  uint64_t* barriers;
  __device__ __forceinline__ uint8_t* tile(uint32_t count) const {
    return tiles + count % TILES_AHEAD * PromptMemory<D>::TILE;
  }
  __device__ __forceinline__ uint64_t* is_full(uint32_t count) const { return barriers + count % TILES_AHEAD; }
  __device__ __forceinline__ uint64_t* is_free(uint32_t count) const {
    return barriers + TILES_AHEAD + count % TILES_AHEAD;
  }
  // Until tile `count` has come.
  __device__ __forceinline__ void wait_full(uint32_t count) const {
    wait_barrier(is_full(count), count / TILES_AHEAD % 2);
  }
  // Until the tile that was in the place of tile `count` is no longer needed.
  __device__ __forceinline__ void wait_free(uint32_t count) const {
    wait_barrier(is_free(count), (count / TILES_AHEAD + 1) % 2);
  }
  // A warp needs tile `count` no more.
  __device__ __forceinline__ void release(uint32_t count) const {
    if (threadIdx.x % 32 == 0) arrive(is_free(count));
  }
};

// The warp that brings the tiles.
template <typename T, int D>
__device__ __forceinline__ void bring_tiles(const TileRing<D>& ring, const T* kv, const PromptWork& work) {
  constexpr int PANELS = PromptMemory<D>::PANELS, PART = BLOCK_POSITIONS * 128;
  uint32_t lane = threadIdx.x % 32, panel = lane % PANELS, block_in_tile = lane / PANELS;
  uint32_t to_values = work.kv_heads * BLOCK_POSITIONS * D;
  uint32_t count = 0;
  for (uint32_t turn = 0, unit; (unit = unit_of(turn)) < work.units; turn++) {
    Item item = load_item(work.items + unit / work.kv_heads);
    uint32_t kv_head = unit % work.kv_heads;
    PromptTiles tiles(item, work.window);
    uint32_t column = tiles.begin / BLOCK_POSITIONS + block_in_tile;
    uint32_t columns = (tiles.end + BLOCK_POSITIONS - 1) / BLOCK_POSITIONS;
    bool copies = lane < PANELS * TILE_BLOCKS;
    uint32_t block = copies && column < columns ? block_of(work.tables, item, work.layer, column) : 0;
    for (uint32_t tile = 0; tile < tiles.count; tile++) {
      const T* from = kv + keys_at(block, kv_head, work.kv_heads, D) + panel * (BLOCK_POSITIONS * 64);
      bool is_there = copies && column < columns;
      uint32_t blocks = min((uint32_t)TILE_BLOCKS, columns - (column - block_in_tile));
      column += TILE_BLOCKS;
      if (copies && column < columns) block = block_of(work.tables, item, work.layer, column);
#pragma unroll
      for (int part = 0; part < 2; part++, count++) {
        ring.wait_free(count);
        if (lane == 0) arrive_expecting(ring.is_full(count), blocks * PANELS * PART);
        __syncwarp();
        uint8_t* to = ring.tile(count) + panel * PromptMemory<D>::PANEL + block_in_tile * PART;
        if (is_there) copy_bytes(to, from + part * to_values, PART, ring.is_full(count));
      }
    }
  }
}

// Until all threads of the warpgroup are here.
__device__ __forceinline__ void sync_group(uint32_t group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(GROUP_THREADS) : "memory");
}
// Until all threads of both are here.
__device__ __forceinline__ void sync_groups() { asm volatile("bar.sync 3, %0;" ::"n"(2 * GROUP_THREADS) : "memory"); }

// The warpgroup's queries to shared memory; zeros where the item has no such row.
template <typename T, int D>
__device__ __forceinline__ void stage_queries(uint8_t* to, const T* queries, const Item& item, uint32_t first_head,
                                              uint32_t per_kv_head, uint32_t heads) {
  constexpr int EIGHTS = D / 8;
  uint32_t group = threadIdx.x / GROUP_THREADS;
#pragma unroll 4
  for (uint32_t i = threadIdx.x % GROUP_THREADS; i < 64 * EIGHTS; i += GROUP_THREADS) {
    uint32_t tile_row = group * 64 + i / EIGHTS, eight = i % EIGHTS, row = tile_row / per_kv_head;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (row < item.rows) {
      size_t head = (size_t)(item.row + row) * heads + first_head + tile_row % per_kv_head;
      words = *reinterpret_cast<const uint4*>(queries + head * D + eight * 8);
    }
    uint32_t at = (eight / 8 * PROMPT_ROWS + tile_row) * 128 + (eight ^ tile_row) % 8 * 16;
    *reinterpret_cast<uint4*>(to + at) = words;
  }
  show_to_copies();
  sync_group(group);
}

// Starts scores = q kᵀ of a tile.
template <typename T, int D>
__device__ __forceinline__ void start_scores(float (&scores)[16][4], const uint8_t* queries, const uint8_t* keys) {
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint64_t a = describe(queries + k / 4 * PROMPT_ROWS * 128 + k % 4 * 32);
    uint64_t b = describe(keys + k / 4 * PromptMemory<D>::PANEL + k % 4 * 32);
    multiply<T, PROMPT_POSITIONS>(reinterpret_cast<float(&)[64]>(scores), a, b, k > 0);
  }
  commit_products();
}

// Starts sums += weights · values of a tile.
template <typename T, int D>
__device__ __forceinline__ void start_values(float (&sums)[D / 8][4], const uint32_t (&weights)[8][4],
                                             const uint8_t* values) {
#pragma unroll
  for (int k = 0; k < PROMPT_POSITIONS / 16; k++)
    add_product(sums, weights[k], describe_summed(values + k * 16 * 128, PromptMemory<D>::PANEL), T());
  commit_products();
}

template <typename T>
__device__ __forceinline__ void pack_weights(uint32_t (&packed)[8][4], const float (&weights)[16][4]) {
#pragma unroll
  for (int k = 0; k < 8; k++) {
    packed[k][0] = pack(weights[2 * k][0], weights[2 * k][1], T());
    packed[k][1] = pack(weights[2 * k][2], weights[2 * k][3], T());
    packed[k][2] = pack(weights[2 * k + 1][0], weights[2 * k + 1][1], T());
    packed[k][3] = pack(weights[2 * k + 1][2], weights[2 * k + 1][3], T());
  }
}

// Zeros a tile's values from row `first` on: nobody has written them, and zero times them must be zero.
template <int D> __device__ __forceinline__ void clear_rows(uint8_t* tile, uint32_t first) {
  for (uint32_t i = threadIdx.x; i < (PROMPT_POSITIONS - first) * (D / 8); i += 2 * GROUP_THREADS) {
    uint32_t row = first + i / (D / 8), eight = i % (D / 8);
    uint32_t at = eight / 8 * PromptMemory<D>::PANEL + row * 128 + eight % 8 * 16;
    *reinterpret_cast<uint4*>(tile + at) = make_uint4(0, 0, 0, 0);
  }
  show_to_copies();
  sync_groups();
}

// One unit's tiles, of which the ring's tile `count` has the first keys. `shared`: of the thread block.
template <typename T, int D>
__device__ __forceinline__ void attend_prompt(const TileRing<D>& ring, uint32_t& count, uint8_t* shared,
                                              const Item& item, uint32_t kv_head, const T* queries, T* out,
                                              const PromptWork& work) {
  uint32_t per_kv_head = work.heads / work.kv_heads, first_head = kv_head * per_kv_head;
  uint32_t group = uniform(threadIdx.x / GROUP_THREADS), lane = threadIdx.x % 32;
  uint32_t first_row = threadIdx.x / 32 * 16 + lane / 4;
  PromptTiles tiles(item, work.window);
  stage_queries<T, D>(shared + PromptMemory<D>::QUERIES, queries, item, first_head, per_kv_head, work.heads);
  const uint8_t* q = shared + PromptMemory<D>::QUERIES + group * 64 * 128;

  uint32_t begin[2], end[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t row = (first_row + 8 * half) / per_kv_head;
    begin[half] = first_seen(item.position + row, work.window);
    end[half] = row < item.rows ? item.position + row + 1 : 0;
  }
  // The rows of the whole item see what lies between.
  uint32_t all_begin = uniform(first_seen(item.position + item.rows - 1, work.window));
  uint32_t all_end = uniform(item.position + 1);
  float scores[16][4], sums[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
  uint32_t weights[8][4];
  auto weigh_tile = [&](uint32_t first) {
    if (first < all_begin || first + PROMPT_POSITIONS > all_end) hide(scores, first, begin, end);
    weigh(scores, largest, sum, shrink, work.scale);
  };

  ring.wait_full(count);
  fence_products();
  start_scores<T, D>(scores, q, ring.tile(count));
  wait_products<0>();
  settle(scores);
  ring.release(count);
  weigh_tile(tiles.begin);
  pack_weights<T>(weights, scores);
#pragma unroll 1
  for (uint32_t tile = 1; tile < tiles.count; tile++, count += 2) {
    ring.wait_full(count + 2);
    fence_products();
    start_scores<T, D>(scores, q, ring.tile(count + 2));
    ring.wait_full(count + 1);
    fence_products();
    start_values<T, D>(sums, weights, ring.tile(count + 1));
    wait_products<1>();
    settle(scores);
    ring.release(count + 2);
    weigh_tile(tiles.begin + tile * PROMPT_POSITIONS);
    wait_products<0>();
    settle(sums);
    settle(scores);
    ring.release(count + 1);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][j] *= shrink[j / 2];
    pack_weights<T>(weights, scores);
  }
  ring.wait_full(count + 1);
  uint32_t rest = (tiles.end - tiles.begin) % PROMPT_POSITIONS;
  if (rest) clear_rows<D>(ring.tile(count + 1), rest);
  fence_products();
  start_values<T, D>(sums, weights, ring.tile(count + 1));
  wait_products<0>();
  settle(sums);
  ring.release(count + 1);
  count += 2;

#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t tile_row = first_row + 8 * half, row = tile_row / per_kv_head;
    float part = 1.f / row_sum(sum[half]);
    size_t head = (size_t)(item.row + row) * work.heads + first_head + tile_row % per_kv_head;
    uint32_t* to = reinterpret_cast<uint32_t*>(out + head * D) + lane % 4;
    if (row < item.rows)
#pragma unroll
      for (int i = 0; i < D / 8; i++)
        to[4 * i] = pack(sums[i][2 * half] * part, sums[i][2 * half + 1] * part, T());
  }
}

// Arguments as in attention.cuh. Grid: any; shared memory: PromptMemory<D>::BYTES.
template <typename T, int D>
__device__ __forceinline__ void prompt(const T* queries, const T* kv, T* out, const uint32_t* step, uint32_t layer,
                                       uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t window,
                                       float scale) {
  extern __shared__ __align__(1024) uint8_t shared[];
  TileRing<D> ring = {shared, reinterpret_cast<uint64_t*>(shared + PromptMemory<D>::BARRIERS)};
  let_next_start();
  if (threadIdx.x < TILES_AHEAD) {
    init_barrier(ring.is_full(threadIdx.x), 1);
    init_barrier(ring.is_free(threadIdx.x), 2 * GROUP_THREADS / 32);
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  PromptWork work = {part_of<Item>(step, PROMPTS), part_of<uint32_t>(step, TABLES),
                     uniform(work_of(step, tail_layer).prompts * kv_heads), layer, heads, kv_heads, window, scale};
  uint32_t warp = uniform(threadIdx.x / 32);
  if (warp >= 2 * GROUP_THREADS / 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
    if (warp == 2 * GROUP_THREADS / 32) bring_tiles<T, D>(ring, kv, work);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(PRODUCT_REGISTERS));
    uint32_t count = 0;
    for (uint32_t turn = 0, unit; (unit = unit_of(turn)) < work.units; turn++) {
      Item item = load_item(work.items + unit / kv_heads);
      // Nobody reads the queries before any more.
      sync_group(threadIdx.x / GROUP_THREADS);
      attend_prompt<T, D>(ring, count, shared, item, unit % kv_heads, queries, out, work);
    }
  }
}
#endif

#define PROMPT(T, NAME, D)                                                                                     \
  extern "C" __global__ void __launch_bounds__(PROMPT_THREADS, 1) attend_prompt_##NAME##_##D(                  \
      const T* q, const T* kv, T* out, const uint32_t* step, uint32_t layer, uint32_t tail_layer,              \
      uint32_t heads, uint32_t kv_heads, uint32_t window, float scale) {                                       \
    PROMPT_BODY(T, D)                                                                                          \
  }
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PROMPT_BODY(T, D) prompt<T, D>(q, kv, out, step, layer, tail_layer, heads, kv_heads, window, scale);
#else
#define PROMPT_BODY(T, D)
#endif
PROMPT(__nv_bfloat16, bf16, 64) PROMPT(__nv_bfloat16, bf16, 128)
PROMPT(__half, f16, 64) PROMPT(__half, f16, 128)
#undef PROMPT_BODY
#undef PROMPT
