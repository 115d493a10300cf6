// Weights in fewer bits on Hopper; see packed.cuh. On other devices they are widened when they are loaded.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#include "packed_chain.cuh"
#include "packed_product.cuh"

#define PRODUCT(ROWS, WEIGHT_STAGES, X_STAGES, INTO, NAME)                                                    \
  extern "C" __global__ void __launch_bounds__(CHAIN_THREADS, 1) packed_##NAME##_##ROWS(                      \
      const uint8_t* chunks_of_tiles, const float* row_scales, uint32_t format,                               \
      const __grid_constant__ TensorMap x, void* out, uint64_t plane_stride, uint32_t rows, uint32_t outputs, \
      uint32_t chunks, uint32_t splits) {                                                                     \
    packed_product<ROWS, WEIGHT_STAGES, X_STAGES, INTO>({chunks_of_tiles, row_scales, format}, &x, out,       \
                                                        plane_stride, {rows, outputs, chunks, splits});       \
  }
#define CHAIN(ROWS, WEIGHT_STAGES, X_STAGES)                                                                  \
  extern "C" __global__ void __launch_bounds__(CHAIN_THREADS, 1)                                              \
      packed_chain_##ROWS(const __grid_constant__ Chain chain) {                                              \
    run_packed_chain<ROWS, WEIGHT_STAGES, X_STAGES>(chain);                                                   \
  }
#define FOR_ROWS(ROWS, WEIGHT_STAGES, X_STAGES)                                                               \
  PRODUCT(ROWS, WEIGHT_STAGES, X_STAGES, PLANES, planes)                                                      \
  PRODUCT(ROWS, WEIGHT_STAGES, X_STAGES, GATED, gated)                                                        \
  CHAIN(ROWS, WEIGHT_STAGES, X_STAGES)
FOR_ROWS(8, 10, 16)
FOR_ROWS(16, 10, 12)
FOR_ROWS(32, 9, 10)
FOR_ROWS(64, 8, 8)

#define WIDEN(FORMAT, NAME)                                                                                   \
  extern "C" __global__ void __launch_bounds__(32 * MULTIPLYING_WARPS) widen_##NAME(                          \
      const uint8_t* chunks_of_tiles, const float* row_scales, __nv_bfloat16* out, uint32_t first_tile,       \
      uint32_t columns, uint32_t gated) {                                                                     \
    widen_tiles<FORMAT>({chunks_of_tiles, row_scales, FORMAT}, out, first_tile, columns, gated != 0);         \
  }
WIDEN(FLOAT_8, float_8)
WIDEN(EIGHT_32, eight_32)
WIDEN(EIGHT_16, eight_16)
WIDEN(FOUR_32, four_32)
#endif
