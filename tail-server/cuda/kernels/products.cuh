// y = x Wᵀ on Hopper for few rows: W streams through shared memory once, and x with it.
//
// The tensor cores take 64 outputs at a time as the rows of their result, so that a thread block has TILE outputs
// and up to ROWS rows of x. One warp has the copies made, STAGES deep; two warp groups multiply. A tile's columns may be
// shared by several thread blocks (`splits`), each of which writes its own plane of sums: the reader adds the planes
// in order. Which columns make a plane depends on the matrix alone, so a row's sums are the same in any batch.
#pragma once
#include "hopper.cuh"
#include "overlap.cuh"

constexpr int TILE = 128;
// Columns of a stage: 128 bytes.
constexpr int CHUNK = 64;
constexpr int MULTIPLYING_WARPS = 8;
constexpr int PRODUCT_THREADS = 32 * (MULTIPLYING_WARPS + 1);

// What becomes of the sums.
enum Into {
  PLANES, // f32 [plane, row, output]
  GATED,  // outputs come in pairs, gate and up: silu(gate) · up in the weights' type, [row, output / 2]
};

struct ProductShape {
  uint32_t rows;    // that are written
  uint32_t outputs; // of W; of W's gate half where gated
  uint32_t chunks;  // of CHUNK columns
  uint32_t splits;
};

// Goes through the chunks of a thread block's items.
struct Walk {
  ProductShape shape;
  uint32_t item, items, row_tiles;
  uint32_t tile, split, row_tile, chunk, begin, end;

  __device__ __forceinline__ Walk(ProductShape shape, uint32_t tiles, uint32_t row_tiles)
      : shape(shape), item(blockIdx.x), items(tiles * shape.splits * row_tiles), row_tiles(row_tiles) {
    enter();
  }
  __device__ __forceinline__ bool has_item() const { return item < items; }
  __device__ __forceinline__ void enter() {
    row_tile = item % row_tiles;
    split = item / row_tiles % shape.splits;
    tile = item / row_tiles / shape.splits;
    begin = chunk = shape.chunks * split / shape.splits;
    end = shape.chunks * (split + 1) / shape.splits;
  }
  __device__ __forceinline__ void next_item() {
    item += gridDim.x;
    enter();
  }
  __device__ __forceinline__ void next_chunk() {
    if (++chunk == end) next_item();
  }
};

// Writes a thread's sums of a tile to a plane, [row, outputs]; `multiply` says which it has.
template <int N>
__device__ __forceinline__ void write_plane(float* plane, const float (&sums)[N / 2], uint32_t outputs, uint32_t tile,
                                            uint32_t first_row, uint32_t rows) {
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t output = tile * TILE + warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t row = first_row + 8 * j + 2 * (lane % 4) + i;
      if (row >= rows) continue;
      float* to = plane + (size_t)row * outputs;
      if (output < outputs) to[output] = sums[4 * j + i];
      if (output + 8 < outputs) to[output + 8] = sums[4 * j + 2 + i];
    }
  }
}

// Writes silu(gate) · up of a tile, [row, outputs]: a thread has a gate and its up, eight rows of the tile below.
template <typename T, int N>
__device__ __forceinline__ void write_gated(T* out, const float (&sums)[N / 2], uint32_t outputs, uint32_t tile,
                                            uint32_t first_row, uint32_t rows) {
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t output = tile * (TILE / 2) + warp * 8 + lane / 4;
  if (output >= outputs) return;
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t row = first_row + 8 * j + 2 * (lane % 4) + i;
      float gate = sums[4 * j + i], up = sums[4 * j + 2 + i];
      if (row < rows) out[(size_t)row * outputs + output] = from_float<T>(gate / (1.f + expf(-gate)) * up);
    }
  }
}

// W: [outputs, columns], x: [rows, columns], both as tensor maps with boxes of [TILE, CHUNK] and [ROWS, CHUNK].
// Grid: at most one thread block for each item; an item is ROWS rows of a split of a tile.
template <typename T, int ROWS, int STAGES, Into INTO>
__device__ __forceinline__ void product(const TensorMap* weights, const TensorMap* x, void* out, uint64_t plane_stride,
                                        ProductShape shape) {
  constexpr int N = ROWS < 128 ? ROWS : 128, REPEATS = ROWS / N;
  constexpr int WEIGHTS = TILE * CHUNK * 2, STAGE = WEIGHTS + ROWS * CHUNK * 2;
  constexpr uint32_t OUTPUTS = INTO == GATED ? TILE / 2 : TILE;
  extern __shared__ uint8_t unaligned[];
  uint8_t* stages = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  __shared__ uint64_t full[STAGES], empty[STAGES];

  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; stage++) {
      init_barrier(&full[stage], 1);
      init_barrier(&empty[stage], MULTIPLYING_WARPS);
    }
    publish_barriers();
  }
  __syncthreads();
  Walk walk(shape, (shape.outputs + OUTPUTS - 1) / OUTPUTS, (shape.rows + ROWS - 1) / ROWS);

  if (warp == MULTIPLYING_WARPS) {
    if (lane != 0) {
      wait_for_previous();
      return;
    }
    auto copy_weights = [&](const Walk& of, uint32_t stage) {
      arrive_expecting(&full[stage], STAGE);
      uint8_t* to = stages + stage * STAGE;
      if constexpr (INTO == GATED)
        copy_box_4d(to, weights, &full[stage], of.chunk * CHUNK, of.tile * (TILE / 16), READ_ONCE);
      else
        copy_box(to, weights, &full[stage], of.chunk * CHUNK, of.tile * TILE, READ_ONCE);
    };
    // The weights do not depend on the kernels before, x does.
    Walk ahead = walk;
    for (uint32_t stage = 0; stage < STAGES && ahead.has_item(); stage++, ahead.next_chunk()) copy_weights(ahead, stage);
    bool is_last = false;
    wait_for_previous();
    for (uint32_t index = 0; walk.has_item(); index++, walk.next_chunk()) {
      // Soon memory has nothing more to bring to this kernel: the next one starts, and asks for its weights. Earlier,
      // they would be there too soon, and memory would have nothing to do when this kernel ends.
      if (!is_last && !ahead.has_item()) {
        let_next_start();
        is_last = true;
      }
      if (ahead.has_item()) ahead.next_chunk();
      uint32_t stage = index % STAGES;
      if (index >= STAGES) {
        wait_barrier(&empty[stage], (index / STAGES - 1) % 2);
        copy_weights(walk, stage);
      }
      copy_box(stages + stage * STAGE + WEIGHTS, x, &full[stage], walk.chunk * CHUNK, walk.row_tile * ROWS, READ_AGAIN);
    }
    return;
  }

  wait_for_previous();
  uint32_t group = warp / 4;
  for (uint32_t index = 0; walk.has_item(); walk.next_item()) {
    float sums[REPEATS][N / 2];
    for (uint32_t chunk = walk.begin; chunk < walk.end; chunk++, index++) {
      uint32_t stage = index % STAGES;
      wait_barrier(&full[stage], index / STAGES % 2);
      const uint8_t* w = stages + stage * STAGE + group * (TILE / 2) * CHUNK * 2;
      const uint8_t* rows = stages + stage * STAGE + WEIGHTS;
      fence_products();
#pragma unroll
      for (int k = 0; k < CHUNK / 16; k++)
#pragma unroll
        for (int repeat = 0; repeat < REPEATS; repeat++)
          multiply<T, N>(sums[repeat], describe(w + 32 * k), describe(rows + repeat * N * CHUNK * 2 + 32 * k),
                         chunk > walk.begin || k > 0);
      commit_products();
      // The stage before this one has been read.
      if (chunk > walk.begin) {
        wait_products<1>();
        if (lane == 0) arrive(&empty[(index - 1) % STAGES]);
      }
    }
    wait_products<0>();
    if (lane == 0) arrive(&empty[(index - 1) % STAGES]);

#pragma unroll
    for (int repeat = 0; repeat < REPEATS; repeat++) {
      uint32_t first_row = walk.row_tile * ROWS + repeat * N;
      if constexpr (INTO == GATED)
        write_gated<T, N>(static_cast<T*>(out), sums[repeat], shape.outputs, walk.tile, first_row, shape.rows);
      else
        write_plane<N>(static_cast<float*>(out) + walk.split * plane_stride, sums[repeat], shape.outputs, walk.tile,
                       first_row, shape.rows);
    }
  }
}
