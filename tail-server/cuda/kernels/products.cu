// Products on Hopper. On other devices there are none of these kernels, and cuBLAS does the products.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#include "products.cuh"

#define PRODUCT(T, NAME, ROWS, STAGES, INTO, INTO_NAME)                                                       \
  extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1) product_##NAME##_##INTO_NAME##_##ROWS(     \
      const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, void* out,              \
      uint64_t plane_stride, uint32_t rows, uint32_t outputs, uint32_t chunks, uint32_t splits) {             \
    product<T, ROWS, STAGES, INTO>(&weights, &x, out, plane_stride, {rows, outputs, chunks, splits});         \
  }
#define PRODUCTS(T, NAME, INTO, INTO_NAME)                                                                    \
  PRODUCT(T, NAME, 8, 6, INTO, INTO_NAME)                                                                     \
  PRODUCT(T, NAME, 16, 6, INTO, INTO_NAME)                                                                    \
  PRODUCT(T, NAME, 32, 5, INTO, INTO_NAME)                                                                    \
  PRODUCT(T, NAME, 64, 4, INTO, INTO_NAME)                                                                    \
  PRODUCT(T, NAME, 128, 6, INTO, INTO_NAME)                                                                   \
  PRODUCT(T, NAME, 256, 4, INTO, INTO_NAME)
PRODUCTS(__nv_bfloat16, bf16, PLANES, planes)
PRODUCTS(__nv_bfloat16, bf16, GATED, gated)
PRODUCTS(__half, f16, PLANES, planes)
PRODUCTS(__half, f16, GATED, gated)
#endif
