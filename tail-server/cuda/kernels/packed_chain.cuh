// Chains of products of which some have weights in fewer bits; the others are bf16, as `run_chain` has them.
#pragma once
#include "chain.cuh"
#include "packed.cuh"

// Brings a chunk of product `p` to `to`.
__device__ __forceinline__ void copy_chunk(const Chain& chain, uint32_t p, const ChainWalk& walk, uint8_t* to,
                                           uint64_t* full) {
  const ChainProduct& product = chain.products[p];
  uint32_t bytes = bytes_of(product.format);
  arrive_expecting(full, bytes);
  if (product.format != DENSE)
    copy_bytes(to, product.packed + ((size_t)walk.tile * walk.chunks + walk.chunk) * bytes, full, bytes, READ_ONCE);
  else if (product.gated)
    copy_box_4d(to, &chain.weights[p], full, walk.chunk * CHUNK, walk.tile * (TILE / 16), READ_ONCE);
  else
    copy_box(to, &chain.weights[p], full, walk.chunk * CHUNK, walk.tile * TILE, READ_ONCE);
}

// Grid: one thread block for each multiprocessor.
template <int ROWS, int WEIGHT_STAGES, int X_STAGES>
__device__ __forceinline__ void run_packed_chain(const Chain& chain) {
  extern __shared__ uint8_t unaligned[];
  __shared__ uint64_t barriers[2 * (WEIGHT_STAGES + X_STAGES)];
  Rings<ROWS, WEIGHT_STAGES, X_STAGES> rings(unaligned, barriers);
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (warp == MULTIPLYING_WARPS) {
    if (lane == 0) {
      for (uint32_t p = 0; p < chain.count; p++) {
        for (ChainWalk walk(chain.products[p]); walk.has_item(); walk.next_chunk()) {
          if (rings.weights_index >= chain.in_flight) {
            uint32_t landed = rings.weights_index - chain.in_flight;
            wait_barrier(rings.full_weights(landed % WEIGHT_STAGES), landed / WEIGHT_STAGES % 2);
          }
          uint64_t* full;
          uint8_t* to = rings.next_weights(full);
          copy_chunk(chain, p, walk, to, full);
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
    for (uint32_t p = 0; p < chain.count; p++) {
      const ChainProduct& product = chain.products[p];
      ChainWalk walk(product);
      if (!walk.has_item()) continue;
      if (product.norm.weight)
        wait_counter(&chain.counters[2 * p], rows_of(chain, product));
      else if (p > 0)
        wait_counter(&chain.counters[2 * p - 1], blocks_of(chain.products[p - 1]));
      uint32_t steps = steps_of(product.format);
      for (; walk.has_item(); walk.next_chunk())
        for (uint32_t step = 0; step < steps; step++) rings.bring_x(&chain.x[p], walk.chunk * steps + step, 0);
    }
    return;
  }

  for (uint32_t p = 0; p < chain.count; p++) {
    const ChainProduct& product = chain.products[p];
    if (product.norm.weight) chain_norm<__nv_bfloat16>(chain, p);
    ChainWalk walk(product);
    if (!walk.has_item()) continue;
    uint32_t rows = rows_of(chain, product);
    for (; walk.has_item(); walk.next_item()) {
      rings.multiply_item(product.format, walk.end - walk.begin, [&](float(&sums)[ROWS / 2]) {
        if (product.format != DENSE) scale_rows(sums, product.row_scales, walk.tile);
        if (product.gated)
          write_gated<__nv_bfloat16, ROWS>(static_cast<__nv_bfloat16*>(product.out), sums, product.outputs, walk.tile,
                                           0, rows);
        else
          write_plane<ROWS>(static_cast<float*>(product.out) + (size_t)walk.split * chain.rows * product.outputs, sums,
                            product.outputs, walk.tile, 0, rows);
      });
    }
    raise_counter(&chain.counters[2 * p + 1]);
  }
  if (chain.has_rope) chain_rope<__nv_bfloat16>(chain);
}
