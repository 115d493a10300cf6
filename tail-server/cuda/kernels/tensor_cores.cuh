// Tensor cores and asynchronous copies: the instructions as functions, and a tile's softmax. Types of two bytes.
#pragma once
#include "hopper.cuh"

// Below, a tile of 16 rows and 8 columns of f32 is held by a warp as the instructions have it: lane l has of row l / 4
// the columns 2 (l % 4) and the next one, then the same of row l / 4 + 8.

// Two values in one register, the first one in the lower half.
__device__ __forceinline__ uint32_t pack(float first, float second, __nv_bfloat16) {
  __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<uint32_t*>(&both);
}
__device__ __forceinline__ uint32_t pack(float first, float second, __half) {
  __half2 both = __floats2half2_rn(first, second);
  return *reinterpret_cast<uint32_t*>(&both);
}

__device__ __forceinline__ float power_of_two(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}

// Four 8×8 matrices; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// sum += a b, of 16 rows, 8 columns and 16 terms.
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                         __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Scores become weights, which are not yet divided by their sum: exp2(scale · (score - largest)). `largest` and
// `sum`: of the tiles before, of a lane's two rows, and afterwards of these too; each lane sums its own columns.
// What was weighted before is to be multiplied with `shrink`. A score of -infinity has no weight.
template <int TILES>
__device__ __forceinline__ void weigh(float (&scores)[TILES][4], float (&largest)[2], float (&sum)[2],
                                      float (&shrink)[2], float scale) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float most = largest[half];
#pragma unroll
    for (int i = 0; i < TILES; i++) most = fmaxf(most, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    // Where the largest score stays, what was weighted stays to the bit.
    float shown = most == -INFINITY ? 0.f : most, base = shown * scale;
    shrink[half] = power_of_two((largest[half] - shown) * scale);
    largest[half] = most;
    float more = 0;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 2 * half; j < 2 * half + 2; j++) {
        scores[i][j] = power_of_two(scores[i][j] * scale - base);
        more += scores[i][j];
      }
    sum[half] = sum[half] * shrink[half] + more;
  }
}

// Takes out what a lane's two rows do not see: positions from `end` on, and those before `begin`. `first`: the
// position of the tiles' first column.
template <int TILES>
__device__ __forceinline__ void hide(float (&scores)[TILES][4], uint32_t first, const uint32_t (&begin)[2],
                                     const uint32_t (&end)[2]) {
  first += threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      uint32_t position = first + 8 * i + j % 2;
      if (position < begin[j / 2] || position >= end[j / 2]) scores[i][j] = -INFINITY;
    }
}

// The sum over the four lanes that share rows.
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// What threads wrote to shared memory is there for copies and for wgmma.
__device__ __forceinline__ void show_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A multiple of 16 bytes from global to shared memory, which the barrier counts.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
#endif
