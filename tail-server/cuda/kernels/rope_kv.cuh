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

// What is done to the q, k and v products of a layer, and where the results go.
struct Rope {
  const float* qkv; // f32 [plane, row, heads + 2 kv_heads, head_dim]; planes are added in their order
  uint32_t planes;
  uint64_t plane_stride;
  void* q;  // [row, heads, head_dim]
  void* kv; // blocks
  const float2* angles; // [row, head_dim / 2]
  const uint32_t* step;
  const float* bias; // may be null, like the next two
  const float* q_norm;
  const float* k_norm;
  uint32_t layer; // of the model
  uint32_t heads, kv_heads, head_dim, interleaved;
  float eps;

  __device__ __forceinline__ uint32_t all_heads() const { return heads + 2 * kv_heads; }
  __device__ __forceinline__ const float* norm_of(uint32_t head) const {
    return head < heads ? q_norm : head < heads + kv_heads ? k_norm : nullptr;
  }
};

// What a lane needs of a head that does not depend on the products.
struct HeadVectors {
  Pairs bias, norm;
};

__device__ __forceinline__ HeadVectors load_vectors(const Rope& rope, uint32_t head, uint32_t pair) {
  HeadVectors vectors = {};
  uint32_t half = rope.head_dim / 2;
  if (pair >= half || head >= rope.all_heads()) return vectors;
  if (rope.bias) vectors.bias = load_pairs(rope.bias + head * rope.head_dim, pair, half, rope.interleaved);
  if (const float* norm = rope.norm_of(head)) vectors.norm = load_pairs(norm, pair, half, rope.interleaved);
  return vectors;
}

// One head of one row by LANES threads, four pairs each, from `pair` on: head_dim is at most 8 · LANES. q goes to `q`, k
// and v to the row's block.
template <typename T, int LANES>
__device__ __forceinline__ void rotate(const Rope& rope, uint32_t row_index, uint32_t head, uint32_t pair,
                                       const HeadVectors& vectors) {
  uint32_t half = rope.head_dim / 2, heads = rope.heads, kv_heads = rope.kv_heads, head_dim = rope.head_dim;
  bool is_query = head < heads, is_value = head >= heads + kv_heads, holds = pair < half && head < rope.all_heads();
  // The bias comes after the planes.
  Pairs sum = {}, x = vectors.bias;
  float4 turn[2] = {make_float4(1, 0, 1, 0), make_float4(1, 0, 1, 0)};
  if (holds) {
    const float* from = rope.qkv + ((size_t)row_index * rope.all_heads() + head) * head_dim;
    const float4* angle = reinterpret_cast<const float4*>(rope.angles + (size_t)row_index * half + pair);
    if (!is_value) turn[0] = angle[0], turn[1] = angle[1];
#pragma unroll 4
    for (uint32_t plane = 0; plane < rope.planes; plane++) {
      Pairs more = load_pairs(from + plane * rope.plane_stride, pair, half, rope.interleaved);
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
  if (rope.q_norm || rope.k_norm) {
#pragma unroll
    for (int offset = LANES / 2; offset; offset >>= 1) squares += __shfl_xor_sync(~0u, squares, offset);
    float scale = 1.f / sqrtf(squares / (float)head_dim + rope.eps);
    if (rope.norm_of(head))
#pragma unroll
      for (int i = 0; i < 4; i++) x.first[i] *= scale * vectors.norm.first[i], x.second[i] *= scale * vectors.norm.second[i];
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
  if (rope.interleaved) {
    low = make_float4(first[0], second[0], first[1], second[1]);
    high = make_float4(first[2], second[2], first[3], second[3]);
    low_at = 2 * pair, high_at = 2 * pair + 4;
  }
  T* to = static_cast<T*>(rope.q) + ((size_t)row_index * heads + head) * head_dim;
  if (!is_query) {
    Row row = part_of<Row>(rope.step, ROWS)[row_index];
    uint32_t block = block_of(part_of<uint32_t>(rope.step, TABLES), row, rope.layer, row.position / BLOCK_POSITIONS);
    uint32_t kv_head = is_value ? head - heads - kv_heads : head - heads;
    to = static_cast<T*>(rope.kv) + keys_at(block, kv_head, kv_heads, head_dim);
    if (is_value) to += (size_t)kv_heads * BLOCK_POSITIONS * head_dim;
    low_at = element_at(row.position, low_at, head_dim);
    high_at = element_at(row.position, high_at, head_dim);
  }
  store_four(to + low_at, low);
  store_four(to + high_at, high);
}

// `tail_layer`: counted from the tail's first. Grid: rows, heads of all three kinds over ROPE_THREADS / LANES.
template <typename T, int LANES>
__device__ __forceinline__ void rope_kv(const Rope& rope, uint32_t tail_layer) {
  uint32_t pair = threadIdx.x % LANES * 4, head = blockIdx.y * (ROPE_THREADS / LANES) + threadIdx.x / LANES;
  let_next_start();
  HeadVectors vectors = load_vectors(rope, head, pair);
  wait_for_previous();
  if (blockIdx.x >= work_of(rope.step, tail_layer).rows) return;
  rotate<T, LANES>(rope, blockIdx.x, head, pair, vectors);
}
