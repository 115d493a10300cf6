// The products between one attention and the next as one kernel: output, gate and up, down, and q, k and v of the next
// layer, with the norms between them.
//
// A decoding step takes as long as memory takes to bring the weights, if memory always has something to bring. Between
// two kernels it has not: the second one's x is there only microseconds after the first one's weights. Here each thread
// block has one ring of weights for all products, which a warp of its own keeps full whatever the products wait for.
// Thread blocks tell each other by counters in device memory what is done; all of them are resident, one for each
// multiprocessor. Sums are those of `product`: a row's are the same in any batch.
#pragma once
#include "hopper.cuh"
#include "overlap.cuh"
#include "products.cuh"
#include "rope_kv.cuh"
#include "step.cuh"

constexpr int CHAIN_PRODUCTS = 4;
constexpr int MULTIPLYING_THREADS = 32 * MULTIPLYING_WARPS;
// And a warp that brings weights, and one that brings x.
constexpr int CHAIN_THREADS = MULTIPLYING_THREADS + 64;

// What stands before a product: the residual stream's rows with the last product added, and their norm.
struct ChainNorm {
  const float* weight; // null where the product reads something else
  uint32_t rows;       // NormRows
};

// One product: of all rows of `layer`, as in `product`. Its x is what the map says.
struct ChainProduct {
  ChainNorm norm;
  void* out;
  uint32_t outputs; // of W; of W's gate half where gated
  uint32_t chunks;
  uint32_t splits;
  uint32_t gated;
  uint32_t layer; // counted from the tail's first one
  uint32_t shift; // from a thread block's number to its first item's
  // Of weights in fewer bits, for the kernels of packed_chain.cuh; there, a chunk is one of the format.
  uint32_t format;
  const uint8_t* packed;   // [tile, chunk]
  const float* row_scales; // [row of all tiles]
};

struct Chain {
  TensorMap weights[CHAIN_PRODUCTS];
  TensorMap x[CHAIN_PRODUCTS];
  ChainProduct products[CHAIN_PRODUCTS];
  uint32_t count;
  // Of a plane.
  uint32_t rows;
  uint32_t hidden_size;
  float eps;
  float* residual;      // [row, hidden_size]
  const float* planes;  // of the product before the first norm, where no product of this chain is before it
  uint32_t plane_count;
  // Copies of weights that a thread block waits for at a time, at most: what waits for counters waits behind them.
  uint32_t in_flight;
  void* normed;         // [row, hidden_size]
  const uint32_t* step;
  uint64_t* stamps;
  // Of thread blocks, two for each product: rows normed for it, and blocks that are done with it. 0 at the start.
  uint32_t* counters;
  // What is done to the last product, where it is that of q, k and v.
  Rope rope;
  uint32_t has_rope;
};

// How many rows a product has.
__device__ __forceinline__ uint32_t rows_of(const Chain& chain, const ChainProduct& product) {
  if (product.norm.weight && product.norm.rows == WANTED_ROWS) return all_wanted(chain.step);
  return work_of(chain.step, product.layer).rows;
}

// Goes through the chunks of a thread block's items of one product.
struct ChainWalk {
  uint32_t item, items, chunks, splits, tile, split, chunk, begin, end;

  __device__ __forceinline__ explicit ChainWalk(const ChainProduct& product)
      : chunks(product.chunks), splits(product.splits) {
    items = chain_items(product);
    item = (blockIdx.x + product.shift) % gridDim.x;
    enter();
  }
  static __device__ __forceinline__ uint32_t chain_items(const ChainProduct& product) {
    uint32_t outputs = product.gated ? TILE / 2 : TILE;
    return (product.outputs + outputs - 1) / outputs * product.splits;
  }
  __device__ __forceinline__ bool has_item() const { return item < items; }
  __device__ __forceinline__ void enter() {
    split = item % splits;
    tile = item / splits;
    begin = chunk = chunks * split / splits;
    end = chunks * (split + 1) / splits;
  }
  __device__ __forceinline__ void next_item() {
    item += gridDim.x;
    enter();
  }
  __device__ __forceinline__ void next_chunk() {
    if (++chunk == end) next_item();
  }
};

// Until the counter has come so far. What was written before it was raised is visible then, also to the copy engine.
__device__ __forceinline__ void wait_counter(const uint32_t* counter, uint32_t count) {
  uint32_t now;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  while (now < count);
  asm volatile("fence.proxy.async;" ::: "memory");
}

// Raises the counter by one, after all that the multiplying threads have written. All of them call it.
__device__ __forceinline__ void raise_counter(uint32_t* counter) {
  asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING_THREADS) : "memory");
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// How many blocks are done with a product when it is done.
__device__ __forceinline__ uint32_t blocks_of(const ChainProduct& product) {
  return min(ChainWalk::chain_items(product), gridDim.x);
}

// Values of a row that a thread has in registers at a time, in fours.
constexpr int NORM_FOURS = 4;
// Values of a row that the multiplying threads have in registers at a time.
constexpr uint32_t NORM_PASS = MULTIPLYING_THREADS * NORM_FOURS * 4;

// Four times four values of a row, in fours, from `from` on; zeros past its end.
__device__ __forceinline__ void load_fours(float4 (&fours)[NORM_FOURS], const float* from, uint32_t left) {
#pragma unroll
  for (int k = 0; k < NORM_FOURS; k++) {
    uint32_t i = (k * MULTIPLYING_THREADS + threadIdx.x) * 4;
    fours[k] = i < left ? *reinterpret_cast<const float4*>(from + i) : make_float4(0, 0, 0, 0);
  }
}

// The norms of this block's rows for product `index`. Everybody waits for them: all loads of a pass are in flight at
// once, and those that depend on nothing are before the wait.
template <typename T>
__device__ __forceinline__ void chain_norm(const Chain& chain, uint32_t index) {
  // Of every other four values, then of the others: the order of `add_norm`, which has twice as many threads.
  __shared__ float sums[2 * MULTIPLYING_WARPS];
  const ChainProduct& product = chain.products[index];
  bool is_wanted = product.norm.rows == WANTED_ROWS;
  LayerWork work = work_of(chain.step, product.layer);
  uint32_t rows = rows_of(chain, product);
  uint32_t with_product = product.norm.rows == WITHIN_LAYER ? work.rows : work.rows_before;
  const uint32_t* wanted = part_of<uint32_t>(chain.step, WANTED);
  auto row_of = [&](uint32_t index) { return is_wanted ? wanted[index] : index; };
  if (blockIdx.x >= rows) return;
  uint32_t size = chain.hidden_size;
  uint64_t stride = (uint64_t)chain.rows * size;
  const float* planes = chain.planes;
  uint32_t plane_count = chain.plane_count;
  float4 weights[NORM_FOURS], values[NORM_FOURS];
  load_fours(weights, product.norm.weight, size);
  // Only this block writes these rows, but for the wanted ones.
  if (!is_wanted) load_fours(values, chain.residual + (size_t)blockIdx.x * size, size);
  if (index > 0) {
    const ChainProduct& before = chain.products[index - 1];
    planes = static_cast<const float*>(before.out);
    plane_count = before.splits;
    if (threadIdx.x == 0) wait_counter(&chain.counters[2 * index - 1], blocks_of(before));
    asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING_THREADS) : "memory");
  }
  if (product.norm.rows != WITHIN_LAYER && blockIdx.x == 0 && threadIdx.x == 0) chain.stamps[product.layer] = now_ns();

  for (uint32_t index_of_row = blockIdx.x; index_of_row < rows; index_of_row += gridDim.x) {
    uint32_t row = row_of(index_of_row);
    float* x = chain.residual + (size_t)row * size;
    float even = 0, odd = 0;
    for (uint32_t first = 0; first < size; first += NORM_PASS) {
      if (is_wanted || first > 0 || index_of_row > blockIdx.x) load_fours(values, x + first, size - first);
      if (row < with_product) {
        const float* from = planes + (size_t)row * size + first;
        float4 added[NORM_FOURS];
        load_fours(added, from, plane_count ? size - first : 0);
        // Four planes are in flight at a time.
        for (uint32_t plane = 1; plane < plane_count; plane += 3) {
          float4 more[3][NORM_FOURS];
#pragma unroll
          for (uint32_t i = 0; i < 3; i++)
            load_fours(more[i], from + (plane + i) * stride, plane + i < plane_count ? size - first : 0);
#pragma unroll
          for (int i = 0; i < 3; i++)
#pragma unroll
            for (int k = 0; k < NORM_FOURS; k++) added[k] = add(added[k], more[i][k]);
        }
#pragma unroll
        for (int k = 0; k < NORM_FOURS; k++) {
          values[k] = add(values[k], added[k]);
          uint32_t i = first + (k * MULTIPLYING_THREADS + threadIdx.x) * 4;
          if (i < size && !is_wanted) *reinterpret_cast<float4*>(x + i) = values[k];
        }
      }
#pragma unroll
      for (int k = 0; k < NORM_FOURS; k += 2) {
        even = add_squares(even, values[k]);
        odd = add_squares(odd, values[k + 1]);
      }
    }
    even = warp_sum(even), odd = warp_sum(odd);
    if (threadIdx.x % 32 == 0) {
      sums[threadIdx.x / 32] = even;
      sums[MULTIPLYING_WARPS + threadIdx.x / 32] = odd;
    }
    asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING_THREADS) : "memory");
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2 * MULTIPLYING_WARPS; i++) sum += sums[i];
    float scale = 1.f / sqrtf(sum / (float)size + chain.eps);
    T* out = static_cast<T*>(chain.normed) + (size_t)index_of_row * size;
    for (uint32_t first = 0; first < size; first += NORM_PASS) {
      if (size > NORM_PASS) {
        load_fours(values, x + first, size - first);
        if (is_wanted && row < with_product) {
          for (int k = 0; k < NORM_FOURS; k++) {
            uint32_t i = first + (k * MULTIPLYING_THREADS + threadIdx.x) * 4;
            if (i < size) values[k] = add_planes(values[k], planes + (size_t)row * size + i, plane_count, stride);
          }
        }
        load_fours(weights, product.norm.weight + first, size - first);
      }
#pragma unroll
      for (int k = 0; k < NORM_FOURS; k++) {
        uint32_t i = first + (k * MULTIPLYING_THREADS + threadIdx.x) * 4;
        if (i >= size) continue;
        alignas(8) T four[4] = {from_float<T>(values[k].x * scale * weights[k].x),
                                from_float<T>(values[k].y * scale * weights[k].y),
                                from_float<T>(values[k].z * scale * weights[k].z),
                                from_float<T>(values[k].w * scale * weights[k].w)};
        *reinterpret_cast<uint2*>(out + i) = *reinterpret_cast<const uint2*>(four);
      }
    }
    raise_counter(&chain.counters[2 * index]);
  }
}

// Rotation, and the write of keys and values, after the last product: a warp for each row and head.
template <typename T> __device__ __forceinline__ void chain_rope(const Chain& chain) {
  uint32_t last = chain.count - 1, warp = threadIdx.x / 32, pair = threadIdx.x % 32 * 4;
  const ChainProduct& product = chain.products[last];
  uint32_t all_heads = chain.rope.all_heads();
  uint32_t units = work_of(chain.step, product.layer).rows * all_heads;
  if (blockIdx.x >= units) return;
  uint32_t unit = blockIdx.x + warp * gridDim.x;
  HeadVectors vectors = load_vectors(chain.rope, unit < units ? unit % all_heads : all_heads, pair);
  if (threadIdx.x == 0) wait_counter(&chain.counters[2 * last + 1], blocks_of(product));
  asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING_THREADS) : "memory");
  for (; unit < units; unit += MULTIPLYING_WARPS * gridDim.x) {
    if (unit >= MULTIPLYING_WARPS * gridDim.x) vectors = load_vectors(chain.rope, unit % all_heads, pair);
    rotate<T, 32>(chain.rope, unit / all_heads, unit % all_heads, pair, vectors);
  }
}

// Grid: one thread block for each multiprocessor.
template <typename T, int ROWS, int WEIGHT_STAGES, int X_STAGES>
__device__ __forceinline__ void run_chain(const Chain& chain) {
  constexpr int WEIGHTS = TILE * CHUNK * 2, X = ROWS * CHUNK * 2;
  extern __shared__ uint8_t unaligned[];
  uint8_t* weight_ring = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  uint8_t* x_ring = weight_ring + WEIGHT_STAGES * WEIGHTS;
  __shared__ uint64_t full_weights[WEIGHT_STAGES], empty_weights[WEIGHT_STAGES], full_x[X_STAGES], empty_x[X_STAGES];
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < WEIGHT_STAGES; stage++) {
      init_barrier(&full_weights[stage], 1);
      init_barrier(&empty_weights[stage], MULTIPLYING_WARPS);
    }
    for (int stage = 0; stage < X_STAGES; stage++) {
      init_barrier(&full_x[stage], 1);
      init_barrier(&empty_x[stage], MULTIPLYING_WARPS);
    }
    publish_barriers();
  }
  __syncthreads();

  if (warp == MULTIPLYING_WARPS) {
    if (lane == 0) {
      uint32_t index = 0;
      for (uint32_t p = 0; p < chain.count; p++) {
        const ChainProduct& product = chain.products[p];
        for (ChainWalk walk(product); walk.has_item(); index++, walk.next_chunk()) {
          uint32_t stage = index % WEIGHT_STAGES;
          if (index >= WEIGHT_STAGES) wait_barrier(&empty_weights[stage], (index / WEIGHT_STAGES - 1) % 2);
          if (index >= chain.in_flight) {
            uint32_t landed = index - chain.in_flight;
            wait_barrier(&full_weights[landed % WEIGHT_STAGES], landed / WEIGHT_STAGES % 2);
          }
          arrive_expecting(&full_weights[stage], WEIGHTS);
          uint8_t* to = weight_ring + stage * WEIGHTS;
          const TensorMap* from = &chain.weights[p];
          if (product.gated)
            copy_box_4d(to, from, &full_weights[stage], walk.chunk * CHUNK, walk.tile * (TILE / 16), READ_ONCE);
          else
            copy_box(to, from, &full_weights[stage], walk.chunk * CHUNK, walk.tile * TILE, READ_ONCE);
        }
      }
      let_next_start();
    }
    wait_for_previous();
    return;
  }

  wait_for_previous();
  if (warp == MULTIPLYING_WARPS + 1) {
    if (lane != 0) return;
    uint32_t index = 0;
    for (uint32_t p = 0; p < chain.count; p++) {
      const ChainProduct& product = chain.products[p];
      ChainWalk walk(product);
      if (!walk.has_item()) continue;
      if (product.norm.weight)
        wait_counter(&chain.counters[2 * p], rows_of(chain, product));
      else if (p > 0)
        wait_counter(&chain.counters[2 * p - 1], blocks_of(chain.products[p - 1]));
      for (; walk.has_item(); index++, walk.next_chunk()) {
        uint32_t stage = index % X_STAGES;
        if (index >= X_STAGES) wait_barrier(&empty_x[stage], (index / X_STAGES - 1) % 2);
        arrive_expecting(&full_x[stage], X);
        copy_box(x_ring + stage * X, &chain.x[p], &full_x[stage], walk.chunk * CHUNK, 0, READ_AGAIN);
      }
    }
    return;
  }

  uint32_t group = warp / 4, index = 0;
  auto release = [&](uint32_t index) {
    if (lane == 0) {
      arrive(&empty_weights[index % WEIGHT_STAGES]);
      arrive(&empty_x[index % X_STAGES]);
    }
  };
  for (uint32_t p = 0; p < chain.count; p++) {
    const ChainProduct& product = chain.products[p];
    if (product.norm.weight) chain_norm<T>(chain, p);
    ChainWalk walk(product);
    if (!walk.has_item()) continue;
    uint32_t rows = rows_of(chain, product);
    for (; walk.has_item(); walk.next_item()) {
      float sums[ROWS / 2];
      for (uint32_t chunk = walk.begin; chunk < walk.end; chunk++, index++) {
        wait_barrier(&full_weights[index % WEIGHT_STAGES], index / WEIGHT_STAGES % 2);
        wait_barrier(&full_x[index % X_STAGES], index / X_STAGES % 2);
        const uint8_t* w = weight_ring + index % WEIGHT_STAGES * WEIGHTS + group * (TILE / 2) * CHUNK * 2;
        const uint8_t* x = x_ring + index % X_STAGES * X;
        fence_products();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
          multiply<T, ROWS>(sums, describe(w + 32 * k), describe(x + 32 * k), chunk > walk.begin || k > 0);
        commit_products();
        if (chunk > walk.begin) {
          wait_products<1>();
          release(index - 1);
        }
      }
      wait_products<0>();
      release(index - 1);
      if (product.gated)
        write_gated<T, ROWS>(static_cast<T*>(product.out), sums, product.outputs, walk.tile, 0, rows);
      else
        write_plane<ROWS>(static_cast<float*>(product.out) + (size_t)walk.split * chain.rows * product.outputs, sums,
                          product.outputs, walk.tile, 0, rows);
    }
    raise_counter(&chain.counters[2 * p + 1]);
  }
  if (chain.has_rope) chain_rope<T>(chain);
}
