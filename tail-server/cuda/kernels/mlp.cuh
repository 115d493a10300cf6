// Between the two products of the gated MLP; and values for measurements.
#pragma once
#include "element.cuh"
#include "overlap.cuh"

// out = silu(gate) · up. `gate_up`: [row, 2, size], `out`: [row, size]. Grid: rows, size over the threads.
template <typename T>
__device__ __forceinline__ void silu_mul(const T* gate_up, T* out, uint32_t size) {
  let_next_start();
  wait_for_previous();
  uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= size) return;
  size_t row = blockIdx.x;
  float gate = to_float(gate_up[2 * row * size + i]), up = to_float(gate_up[(2 * row + 1) * size + i]);
  out[row * size + i] = from_float<T>(gate / (1.f + expf(-gate)) * up);
}

// Uniform pseudo-random values in (-scale, scale), which depend on `seed` and the index alone.
template <typename T>
__device__ __forceinline__ void fill_random(T* out, uint64_t count, float scale, uint32_t seed) {
  wait_for_previous();
  uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
  for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    // SplitMix64.
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    out[i] = from_float<T>(((float)(uint32_t)(z >> 40) / 8388608.f - 1.f) * scale);
  }
}

#define DEFINE(T, NAME)                                                                                       \
  extern "C" __global__ void silu_mul_##NAME(const T* gate_up, T* out, uint32_t size) {                       \
    silu_mul<T>(gate_up, out, size);                                                                          \
  }                                                                                                           \
  extern "C" __global__ void fill_random_##NAME(T* out, uint64_t count, float scale, uint32_t seed) {         \
    fill_random<T>(out, count, scale, seed);                                                                  \
  }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
