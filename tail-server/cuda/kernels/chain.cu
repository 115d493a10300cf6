// Chains of products on Hopper; see chain.cuh.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#include "chain.cuh"

#define CHAIN(T, NAME, ROWS, WEIGHT_STAGES, X_STAGES)                                                         \
  extern "C" __global__ void __launch_bounds__(CHAIN_THREADS, 1)                                              \
      chain_##NAME##_##ROWS(const __grid_constant__ Chain chain) {                                            \
    run_chain<T, ROWS, WEIGHT_STAGES, X_STAGES>(chain);                                                       \
  }
#define CHAINS(T, NAME)                                                                                       \
  CHAIN(T, NAME, 8, 12, 12) CHAIN(T, NAME, 16, 12, 8) CHAIN(T, NAME, 32, 11, 8) CHAIN(T, NAME, 64, 11, 5)
CHAINS(__nv_bfloat16, bf16)
CHAINS(__half, f16)
#endif
