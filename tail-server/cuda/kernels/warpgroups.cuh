// Products of warpgroups whose left operand is in registers: 64 rows, of which warp w holds rows 16 w to 16 w + 15 as
// tensor_cores.cuh has them.
#pragma once
#include "tensor_cores.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// The products that were waited for are in these registers: nothing that reads them may stand before.
template <int TILES> __device__ __forceinline__ void settle(float (&d)[TILES][4]) {
#pragma unroll
  for (int i = 0; i < TILES; i++)
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
}

// As `describe`, of a matrix whose rows are the summed dimension, in panels of 64 columns.
__device__ __forceinline__ uint64_t describe_summed(const void* at, uint32_t panel_bytes) {
  return (describe(at) & ~((uint64_t)0x3FFF << 16)) | (uint64_t)(panel_bytes >> 4) << 16;
}

// d += a b, of 16 rows of b and as many columns as d has. a is in registers, as a tile of 64 rows.
#define FOUR(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define DEFINE(T, NAME)                                                                                         \
__device__ __forceinline__ void add_product(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, T) {         \
  asm volatile(                                                                                                 \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." #NAME "." #NAME " "                                        \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                       \
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                                                  \
      : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]),         \
        FOUR(d[8]), FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15])    \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                    \
}                                                                                                               \
__device__ __forceinline__ void add_product(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, T) {          \
  asm volatile(                                                                                                 \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." #NAME "." #NAME " "                                         \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                       \
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                                  \
      : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7])          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                    \
}
DEFINE(__nv_bfloat16, bf16)
DEFINE(__half, f16)
#undef DEFINE
#undef FOUR
#endif
