// The instructions of Hopper's asynchronous tensor cores, copies and barriers that products are made of. The PTX
// manual has them under wgmma, cp.async.bulk.tensor and mbarrier.
#pragma once
#include "element.cuh"

// A tensor's place and shape for the copy engine, as the driver encodes it.
struct alignas(64) TensorMap { uint64_t words[16]; };

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return (uint32_t)__cvta_generic_to_shared(pointer);
}

__device__ __forceinline__ void init_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and announces `bytes` that copies will bring.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Until the barrier's phase with this parity is over.
__device__ __forceinline__ void wait_barrier(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\n"
      "DONE:\n}\n" ::"r"(shared_address(barrier)), "r"(parity)
      : "memory");
}

// What is read once leaves the L2 cache first.
constexpr uint64_t READ_ONCE = 0x12F0000000000000ull;
constexpr uint64_t READ_AGAIN = 0x14F0000000000000ull;

// Starts the copy of a box of a two-dimensional tensor. `column` counts the fastest dimension.
__device__ __forceinline__ void copy_box(void* to, const TensorMap* from, uint64_t* barrier, int column, int row,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(from), "r"(shared_address(barrier)), "r"(column), "r"(row), "l"(policy)
      : "memory");
}

// As `copy_box`, of four dimensions, at 0 in the second and the third.
__device__ __forceinline__ void copy_box_4d(void* to, const TensorMap* from, uint64_t* barrier, int column, int group,
                                            uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %5, %5, %4}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(from), "r"(shared_address(barrier)), "r"(column), "r"(group), "r"(0), "l"(policy)
      : "memory");
}

// Starts the copy of `bytes` bytes, a multiple of 16.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, uint64_t* barrier, uint32_t bytes,
                                           uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// Describes a matrix in shared memory to the tensor cores: rows of 64 16-bit values, 128 bytes, swizzled by the copy
// engine in atoms of 8 rows. `at` lies in such an atom's first row, at a multiple of 32 bytes.
__device__ __forceinline__ uint64_t describe(const void* at) {
  uint64_t address = (shared_address(at) & 0x3FFFF) >> 4;
  return address | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// Registers that an asynchronous product uses are settled.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most PENDING committed groups are not done.
template <int PENDING> __device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define WGMMA_8(TYPE)                                                                   \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"                                     \
      "wgmma.mma_async.sync.aligned.m64n8k16.f32." TYPE "." TYPE " {"                      \
      "%0, %1, %2, %3"                                                                    \
      "}, %4, %5, p, 1, 1, 0, 0;\n}\n"                                             \
      :                                                                                   \
      "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                      \
      : "l"(a), "l"(b), "r"(add))

#define WGMMA_16(TYPE)                                                                   \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"                                     \
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." TYPE "." TYPE " {"                      \
      "%0, %1, %2, %3, %4, %5, %6, %7"                                                    \
      "}, %8, %9, p, 1, 1, 0, 0;\n}\n"                                             \
      :                                                                                   \
      "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])\
      : "l"(a), "l"(b), "r"(add))

#define WGMMA_32(TYPE)                                                                   \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"                                     \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." TYPE "." TYPE " {"                      \
      "%0, %1, %2, %3, %4, %5, %6, %7, "                                                  \
      "%8, %9, %10, %11, %12, %13, %14, %15"                                              \
      "}, %16, %17, p, 1, 1, 0, 0;\n}\n"                                             \
      :                                                                                   \
      "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),\
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])\
      : "l"(a), "l"(b), "r"(add))

#define WGMMA_64(TYPE)                                                                   \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                     \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                      \
      "%0, %1, %2, %3, %4, %5, %6, %7, "                                                  \
      "%8, %9, %10, %11, %12, %13, %14, %15, "                                            \
      "%16, %17, %18, %19, %20, %21, %22, %23, "                                          \
      "%24, %25, %26, %27, %28, %29, %30, %31"                                            \
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"                                             \
      :                                                                                   \
      "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),\
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),\
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),\
      "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])\
      : "l"(a), "l"(b), "r"(add))

#define WGMMA_128(TYPE)                                                                   \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                     \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                      \
      "%0, %1, %2, %3, %4, %5, %6, %7, "                                                  \
      "%8, %9, %10, %11, %12, %13, %14, %15, "                                            \
      "%16, %17, %18, %19, %20, %21, %22, %23, "                                          \
      "%24, %25, %26, %27, %28, %29, %30, %31, "                                          \
      "%32, %33, %34, %35, %36, %37, %38, %39, "                                          \
      "%40, %41, %42, %43, %44, %45, %46, %47, "                                          \
      "%48, %49, %50, %51, %52, %53, %54, %55, "                                          \
      "%56, %57, %58, %59, %60, %61, %62, %63"                                            \
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"                                             \
      :                                                                                   \
      "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),\
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),\
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),\
      "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),\
      "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),\
      "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),\
      "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),\
      "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])\
      : "l"(a), "l"(b), "r"(add))

// d (+)= a bᵀ, [64, N] f32, of 16 columns of both. Thread i of the warp group has rows i / 4 % 8 + 16 (i / 32) and 8
// more of columns 8 j + 2 (i % 4) and 1 more, in d[4 j], d[4 j + 1] and d[4 j + 2], d[4 j + 3]. Without `add`, d is 0.
template <typename A, typename B> constexpr bool is_same = false;
template <typename A> constexpr bool is_same<A, A> = true;

template <typename T, int N>
__device__ __forceinline__ void multiply(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (is_same<T, __nv_bfloat16>) {
      if constexpr (N == 8) WGMMA_8("bf16");
      if constexpr (N == 16) WGMMA_16("bf16");
      if constexpr (N == 32) WGMMA_32("bf16");
      if constexpr (N == 64) WGMMA_64("bf16");
      if constexpr (N == 128) WGMMA_128("bf16");
    }
    if constexpr (is_same<T, __half>) {
      if constexpr (N == 8) WGMMA_8("f16");
      if constexpr (N == 16) WGMMA_16("f16");
      if constexpr (N == 32) WGMMA_32("f16");
      if constexpr (N == 64) WGMMA_64("f16");
      if constexpr (N == 128) WGMMA_128("f16");
    }
  }
}
