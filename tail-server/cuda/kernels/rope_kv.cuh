// What lies between the q, k and v products and attention: bias, norm of each head, rotation, and the write of
// keys and values to the KV memory.
#pragma once
#include "element.cuh"
#include "overlap.cuh"
#include "step.cuh"

constexpr int ROPE_WARPS = 4;

// One warp for each row and head. `qkv`: the sum of `planes` products f32 [plane, row, heads + 2 kv_heads, head_dim],
// added in their order. q goes to `q`, [row, heads, head_dim], k and v to the row's block. `bias`, `q_norm` and
// `k_norm` may be null. head_dim is at most 256. `layer`: of the model; `tail_layer`: counted from the tail's first.
// Grid: rows, heads of all three kinds over ROPE_WARPS.
template <typename T>
__device__ __forceinline__ void rope_kv(const float* qkv, uint32_t planes, uint64_t plane_stride, T* q, T* kv,
                                        const float2* angles, const uint32_t* step, const float* bias,
                                        const float* q_norm, const float* k_norm, uint32_t layer,
                                        uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,
                                        uint32_t interleaved, float eps) {
  uint32_t row_index = blockIdx.x, lane = threadIdx.x % 32;
  uint32_t head = blockIdx.y * ROPE_WARPS + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  if (head >= heads + 2 * kv_heads || row_index >= work_of(step, tail_layer).rows) return;
  Row row = part_of<Row>(step, ROWS)[row_index];
  const float* from = qkv + ((size_t)row_index * (heads + 2 * kv_heads) + head) * head_dim;
  if (bias) bias += head * head_dim;
  bool is_query = head < heads, is_value = head >= heads + kv_heads;
  uint32_t half = head_dim / 2;

  // Pair p is what is rotated together, in either layout.
  float first[4], second[4];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t pair = lane + 32 * i;
    first[i] = second[i] = 0;
    if (pair < half) {
      uint32_t a = interleaved ? 2 * pair : pair, b = interleaved ? 2 * pair + 1 : pair + half;
      for (uint32_t plane = 0; plane < planes; plane++) {
        first[i] += from[plane * plane_stride + a];
        second[i] += from[plane * plane_stride + b];
      }
      if (bias) first[i] += bias[a], second[i] += bias[b];
    }
    squares += first[i] * first[i] + second[i] * second[i];
  }
  const float* norm = is_query ? q_norm : k_norm;
  if (!is_value && norm) {
    float scale = 1.f / sqrtf(warp_sum(squares) / (float)head_dim + eps);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t pair = lane + 32 * i;
      if (pair < half) {
        first[i] *= scale * norm[interleaved ? 2 * pair : pair];
        second[i] *= scale * norm[interleaved ? 2 * pair + 1 : pair + half];
      }
    }
  }

  T* to = q + ((size_t)row_index * heads + head) * head_dim;
  if (!is_query) {
    uint32_t block = block_of(part_of<uint32_t>(step, TABLES), row, layer, row.position);
    uint32_t kv_head = is_value ? head - heads - kv_heads : head - heads;
    to = kv + key_at(block, row.position, kv_head, kv_heads, head_dim);
    if (is_value) to += (size_t)kv_heads * BLOCK_POSITIONS * head_dim;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t pair = lane + 32 * i;
    if (pair >= half) continue;
    float2 angle = is_value ? make_float2(1.f, 0.f) : angles[(size_t)row_index * half + pair];
    uint32_t a = interleaved ? 2 * pair : pair, b = interleaved ? 2 * pair + 1 : pair + half;
    to[a] = from_float<T>(first[i] * angle.x - second[i] * angle.y);
    to[b] = from_float<T>(second[i] * angle.x + first[i] * angle.y);
  }
}

#define DEFINE(T, NAME)                                                                                       \
  extern "C" __global__ void __launch_bounds__(32 * ROPE_WARPS)                                               \
      rope_kv_##NAME(const float* qkv, uint32_t planes, uint64_t plane_stride, T* q, T* kv,                   \
                     const float2* angles, const uint32_t* step, const float* bias, const float* q_norm,      \
                     const float* k_norm, uint32_t layer, uint32_t tail_layer, uint32_t heads,                \
                     uint32_t kv_heads, uint32_t head_dim, uint32_t interleaved, float eps) {                 \
    rope_kv<T>(qkv, planes, plane_stride, q, kv, angles, step, bias, q_norm, k_norm, layer, tail_layer,       \
               heads, kv_heads, head_dim, interleaved, eps);                                                  \
  }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
