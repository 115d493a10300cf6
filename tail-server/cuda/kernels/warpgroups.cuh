// Products of warpgroups: 64 rows, of which warp w holds rows 16 w to 16 w + 15 as tensor_cores.cuh has them, with
// operands in shared memory that is swizzled by 128 bytes.
#pragma once
#include "tensor_cores.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What registers hold is there for the next products.
__device__ __forceinline__ void show_to_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The products so far are a group.
__device__ __forceinline__ void end_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `LEFT` groups are not done.
template <int LEFT> __device__ __forceinline__ void wait_for_groups() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// The products that were waited for are in these registers: nothing that reads them may stand before.
template <int TILES> __device__ __forceinline__ void settle(float (&d)[TILES][4]) {
#pragma unroll
  for (int i = 0; i < TILES; i++)
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
}

// An operand in shared memory: panels of 64 elements, [panel, row, 64], swizzled; the address of the first element.
// Eight rows are 1,024 bytes. `panel_bytes` counts where rows are the summed dimension.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t panel_bytes) {
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(panel_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

// multiply_rows: d (+)= a bᵀ, of 128 rows of b. add_product: d += a b, of 16 rows of b and as many columns as d has.
#define FOUR(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define DEFINE(T, NAME)                                                                                         \
__device__ __forceinline__ void multiply_rows(float (&d)[16][4], uint64_t a, uint64_t b, bool adds, T) {        \
  asm volatile(                                                                                                 \
      "{\n.reg .pred more;\nsetp.ne.b32 more, %66, 0;\n"                                                        \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." #NAME "." #NAME " "                                        \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                       \
      "%64, %65, more, 1, 1, 0, 0;\n}\n"                                                                        \
      : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]),         \
        FOUR(d[8]), FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15])    \
      : "l"(a), "l"(b), "r"((int)adds));                                                                        \
}                                                                                                               \
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
