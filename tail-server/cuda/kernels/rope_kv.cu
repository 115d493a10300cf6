// Rotation, and the write of keys and values, as a kernel of its own.
#include "rope_kv.cuh"

#define ROPE(T, NAME, LANES)                                                                                  \
  extern "C" __global__ void __launch_bounds__(ROPE_THREADS)                                                  \
      rope_kv_##NAME##_##LANES(const float* qkv, uint32_t planes, uint64_t plane_stride, T* q, T* kv,         \
                               const float2* angles, const uint32_t* step, const float* bias,                 \
                               const float* q_norm, const float* k_norm, uint32_t layer,                      \
                               uint32_t tail_layer, uint32_t heads, uint32_t kv_heads, uint32_t head_dim,     \
                               uint32_t interleaved, float eps) {                                             \
    Rope rope = {qkv,    planes, plane_stride, q,     kv,       angles,   step,        bias,                  \
                 q_norm, k_norm, layer,        heads, kv_heads, head_dim, interleaved, eps};                  \
    rope_kv<T, LANES>(rope, tail_layer);                                                                      \
  }
#define DEFINE(T, NAME) ROPE(T, NAME, 8) ROPE(T, NAME, 16) ROPE(T, NAME, 32)
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
#undef ROPE
