// From what came in to rows of the residual stream, and the norm before each matrix.
#pragma once
#include "element.cuh"
#include "overlap.cuh"
#include "step.cuh"

// x[row] = the row's hidden states, which lie in a row of `incoming`, or its token's embedding; as it is where it is in
// place. Grid: rows.
template <typename T>
__device__ __forceinline__ void assemble(float* x, const T* embedding, const float* incoming, const uint32_t* step,
                                         uint32_t hidden_size) {
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.x;
  if (row >= all_rows(step)) return;
  uint32_t source = part_of<Row>(step, ROWS)[row].source;
  if (source == IN_PLACE) return;
  float* to = x + (size_t)row * hidden_size;
  if (source & TOKEN_ID) {
    const T* from = embedding + (size_t)(source & ~TOKEN_ID) * hidden_size;
    for (uint32_t i = threadIdx.x; i < hidden_size; i += blockDim.x) to[i] = to_float(from[i]);
  } else {
    const float* from = incoming + (size_t)source * hidden_size;
    for (uint32_t i = threadIdx.x; i < hidden_size; i += blockDim.x) to[i] = from[i];
  }
}

// Cosine and sine of each row's angles, [row, half]. The angle is rounded to f32 and only its cosine is exact,
// as in the model crate. Grid: rows.
extern "C" __global__ void angles(float2* out, const float* inverse_frequencies, const uint32_t* step,
                                  uint32_t half, float factor) {
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.x;
  if (row >= all_rows(step)) return;
  float position = (float)part_of<Row>(step, ROWS)[row].position;
  for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
    double sine, cosine;
    sincos((double)__fmul_rn(position, inverse_frequencies[i]), &sine, &cosine);
    out[(size_t)row * half + i] = make_float2((float)cosine * factor, (float)sine * factor);
  }
}

// The residual stream's rows with a product added, and their norm: out[i] = x[row i] / sqrt(mean(x²) + eps) · weight.
//
// The product is a sum of planes, f32 [plane, row, hidden_size], added in their order. Grid: rows, or the wanted ones
// from `first_wanted` on, whose x is left as it is. Says in `stamps` when a layer begins, and when the layers have
// ended. hidden_size is a multiple of 4, at most 16,384.
constexpr int NORM_THREADS = 512;
constexpr int NORM_TURNS = 8;
template <typename T>
__device__ __forceinline__ void add_norm(float* x, const float* planes, uint32_t plane_count, uint64_t plane_stride,
                                         const float* weight, T* out, const uint32_t* step, uint32_t layer,
                                         uint32_t hidden_size, float eps, uint32_t rows, uint32_t first_wanted,
                                         uint64_t* stamps) {
  __shared__ float sums[NORM_THREADS / 32];
  let_next_start();
  float4 weights[NORM_TURNS], values[NORM_TURNS];
#pragma unroll
  for (int turn = 0; turn < NORM_TURNS; turn++) {
    uint32_t i = (turn * NORM_THREADS + threadIdx.x) * 4;
    if (i < hidden_size) weights[turn] = *reinterpret_cast<const float4*>(weight + i);
  }
  wait_for_previous();
  if (rows != WITHIN_LAYER && first_wanted == 0 && blockIdx.x == 0 && threadIdx.x == 0) stamps[layer] = now_ns();
  LayerWork work = work_of(step, layer);
  uint32_t row = blockIdx.x;
  if (rows == WANTED_ROWS) row = part_of<uint32_t>(step, WANTED)[first_wanted + row];
  else if (row >= work.rows) return;
  bool has_product = row < (rows == WITHIN_LAYER ? work.rows : work.rows_before);
  x += (size_t)row * hidden_size;
  planes += (size_t)row * hidden_size;
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < NORM_TURNS; turn++) {
    uint32_t i = (turn * NORM_THREADS + threadIdx.x) * 4;
    if (i >= hidden_size) break;
    float4 value = *reinterpret_cast<const float4*>(x + i);
    if (has_product) {
      value = add_planes(value, planes + i, plane_count, plane_stride);
      if (rows != WANTED_ROWS) *reinterpret_cast<float4*>(x + i) = value;
    }
    sum = add_squares(sum, value);
    values[turn] = value;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < NORM_THREADS / 32; i++) sum += sums[i];
  float scale = 1.f / sqrtf(sum / (float)hidden_size + eps);
  out += (size_t)blockIdx.x * hidden_size;
#pragma unroll
  for (int turn = 0; turn < NORM_TURNS; turn++) {
    uint32_t i = (turn * NORM_THREADS + threadIdx.x) * 4;
    if (i >= hidden_size) break;
    out[i] = from_float<T>(values[turn].x * scale * weights[turn].x);
    out[i + 1] = from_float<T>(values[turn].y * scale * weights[turn].y);
    out[i + 2] = from_float<T>(values[turn].z * scale * weights[turn].z);
    out[i + 3] = from_float<T>(values[turn].w * scale * weights[turn].w);
  }
}

// The residual stream's rows with the last layer's product added, as `add_norm` adds it: what the next stage begins
// with. `layer`: one past the last. Grid: rows.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    add_product(float* x, const float* planes, uint32_t plane_count, uint64_t plane_stride, const uint32_t* step,
                uint32_t layer, uint32_t hidden_size) {
  let_next_start();
  wait_for_previous();
  uint32_t row = blockIdx.x;
  if (row >= work_of(step, layer).rows_before) return;
  x += (size_t)row * hidden_size;
  planes += (size_t)row * hidden_size;
  for (uint32_t i = threadIdx.x * 4; i < hidden_size; i += blockDim.x * 4) {
    float4* value = reinterpret_cast<float4*>(x + i);
    *value = add_planes(*value, planes + i, plane_count, plane_stride);
  }
}

// Says when all kernels before are done.
extern "C" __global__ void stamp(uint64_t* to) {
  let_next_start();
  wait_for_previous();
  *to = now_ns();
}

#define DEFINE(T, NAME)                                                                                       \
  extern "C" __global__ void assemble_##NAME(float* x, const T* embedding, const float* incoming,             \
                                             const uint32_t* step, uint32_t hidden_size) {                    \
    assemble<T>(x, embedding, incoming, step, hidden_size);                                                   \
  }                                                                                                           \
  extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                                  \
      add_norm_##NAME(float* x, const float* planes, uint32_t plane_count, uint64_t plane_stride,             \
                      const float* weight, T* out, const uint32_t* step, uint32_t layer,                      \
                      uint32_t hidden_size, float eps, uint32_t rows, uint32_t first_wanted,                  \
                      uint64_t* stamps) {                                                                     \
    add_norm<T>(x, planes, plane_count, plane_stride, weight, out, step, layer, hidden_size, eps, rows,       \
                first_wanted, stamps);                                                                        \
  }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
