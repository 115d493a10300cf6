// What lies between the q, k and v products and attention: bias, norm of each head, rotation, and the write of
// keys and values to the KV memory.
#pragma once
#include "element.cuh"
#include "overlap.cuh"
#include "step.cuh"

constexpr int ROPE_THREADS = 128;

// What a lane has of a head: pairs of elements that are rotated together, four neighbouring pairs.
struct Pairs {
  float first[4], second[4];
};

// The pairs from `pair` on, of the f32 elements `from`. Interleaved pairs are neighbours; otherwise the second elements
// are half a head behind the first.
__device__ __forceinline__ Pairs load_pairs(const float* from, uint32_t pair, uint32_t half, bool interleaved) {
  float4 low = *reinterpret_cast<const float4*>(from + (interleaved ? 2 * pair : pair));
  float4 high = *reinterpret_cast<const float4*>(from + (interleaved ? 2 * pair + 4 : pair + half));
  if (interleaved) return {{low.x, low.z, high.x, high.z}, {low.y, low.w, high.y, high.w}};
  return {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
}

// LANES threads for each row and head, four pairs each: head_dim is at most 8 · LANES. `qkv`: the sum of `planes`
// products f32 [plane, row, heads + 2 kv_heads, head_dim], added in their order. q goes to `q`, [row, heads, head_dim],
// k and v to the row's block. `bias`, `q_norm` and `k_norm` may be null. `angles`: [row, head_dim / 2].
// `layer`: of the model; `tail_layer`: counted from the tail's first.
// Grid: rows, heads of all three kinds over ROPE_THREADS / LANES.
template <typename T, int LANES>
__device__ __forceinline__ void rope_kv(const float* qkv, uint32_t planes, uint64_t plane_stride, T* q, T* kv,
                                        const float2* angles, const uint32_t* step, const float* bias,
                                        const float* q_norm, const float* k_norm, uint32_t layer,
                                        uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,
                                        uint32_t interleaved, float eps) {
  uint32_t row_index = blockIdx.x, half = head_dim / 2, pair = threadIdx.x % LANES * 4;
  uint32_t head = blockIdx.y * (ROPE_THREADS / LANES) + threadIdx.x / LANES, all_heads = heads + 2 * kv_heads;
  bool is_query = head < heads, is_value = head >= heads + kv_heads, holds = pair < half && head < all_heads;
  const float* norm = is_query ? q_norm : k_norm;
  bool has_norm = norm && !is_value;
  let_next_start();
  Pairs x = {}, norms = {};
  if (holds && bias) x = load_pairs(bias + head * head_dim, pair, half, interleaved);
  if (holds && has_norm) norms = load_pairs(norm, pair, half, interleaved);
  wait_for_previous();
  if (row_index >= work_of(step, tail_layer).rows) return;

  // The bias comes after the planes.
  Pairs sum = {};
  float4 turn[2] = {make_float4(1, 0, 1, 0), make_float4(1, 0, 1, 0)};
  if (holds) {
    const float* from = qkv + ((size_t)row_index * all_heads + head) * head_dim;
    const float4* angle = reinterpret_cast<const float4*>(angles + (size_t)row_index * half + pair);
    if (!is_value) turn[0] = angle[0], turn[1] = angle[1];
#pragma unroll 4
    for (uint32_t plane = 0; plane < planes; plane++) {
      Pairs more = load_pairs(from + plane * plane_stride, pair, half, interleaved);
#pragma unroll
      for (int i = 0; i < 4; i++) sum.first[i] += more.first[i], sum.second[i] += more.second[i];
    }
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    x.first[i] += sum.first[i], x.second[i] += sum.second[i];
    squares += x.first[i] * x.first[i] + x.second[i] * x.second[i];
  }
  if (q_norm || k_norm) {
#pragma unroll
    for (int offset = LANES / 2; offset; offset >>= 1) squares += __shfl_xor_sync(~0u, squares, offset);
    float scale = 1.f / sqrtf(squares / (float)head_dim + eps);
    if (has_norm)
#pragma unroll
      for (int i = 0; i < 4; i++) x.first[i] *= scale * norms.first[i], x.second[i] *= scale * norms.second[i];
  }
  if (!holds) return;

  float cosine[4] = {turn[0].x, turn[0].z, turn[1].x, turn[1].z};
  float sine[4] = {turn[0].y, turn[0].w, turn[1].y, turn[1].w};
  float first[4], second[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    first[i] = x.first[i] * cosine[i] - x.second[i] * sine[i];
    second[i] = x.second[i] * cosine[i] + x.first[i] * sine[i];
  }
  float4 low = make_float4(first[0], first[1], first[2], first[3]);
  float4 high = make_float4(second[0], second[1], second[2], second[3]);
  uint32_t low_at = pair, high_at = pair + half;
  if (interleaved) {
    low = make_float4(first[0], second[0], first[1], second[1]);
    high = make_float4(first[2], second[2], first[3], second[3]);
    low_at = 2 * pair, high_at = 2 * pair + 4;
  }
  T* to = q + ((size_t)row_index * heads + head) * head_dim;
  if (!is_query) {
    Row row = part_of<Row>(step, ROWS)[row_index];
    uint32_t block = block_of(part_of<uint32_t>(step, TABLES), row, layer, row.position / BLOCK_POSITIONS);
    uint32_t kv_head = is_value ? head - heads - kv_heads : head - heads;
    to = kv + keys_at(block, kv_head, kv_heads, head_dim);
    if (is_value) to += (size_t)kv_heads * BLOCK_POSITIONS * head_dim;
    low_at = element_at(row.position, low_at, head_dim);
    high_at = element_at(row.position, high_at, head_dim);
  }
  store_four(to + low_at, low);
  store_four(to + high_at, high);
}

#define ROPE(T, NAME, LANES)                                                                                  \
  extern "C" __global__ void __launch_bounds__(ROPE_THREADS)                                                  \
      rope_kv_##NAME##_##LANES(const float* qkv, uint32_t planes, uint64_t plane_stride, T* q, T* kv,         \
                               const float2* angles, const uint32_t* step, const float* bias,                 \
                               const float* q_norm, const float* k_norm, uint32_t layer,                      \
                               uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,     \
                               uint32_t interleaved, float eps) {                                             \
    rope_kv<T, LANES>(qkv, planes, plane_stride, q, kv, angles, step, bias, q_norm, k_norm, layer,            \
                      tail_layer, heads, kv_heads, head_dim, interleaved, eps);                               \
  }
#define DEFINE(T, NAME) ROPE(T, NAME, 8) ROPE(T, NAME, 16) ROPE(T, NAME, 32)
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
#undef ROPE
