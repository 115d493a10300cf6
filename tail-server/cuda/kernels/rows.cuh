// From what came in to rows of the residual stream, and the norm before each matrix.
#pragma once
#include "element.cuh"
#include "step.cuh"

// x[row] = the row's hidden states, or its token's embedding. Grid: rows.
template <typename T>
__device__ __forceinline__ void assemble(float* x, const T* embedding, const uint32_t* step,
                                         uint32_t hidden_size) {
  uint32_t row = blockIdx.x;
  uint32_t source = part_of<Row>(step, ROWS)[row].source;
  float* to = x + (size_t)row * hidden_size;
  if (source & TOKEN_ID) {
    const T* from = embedding + (size_t)(source & ~TOKEN_ID) * hidden_size;
    for (uint32_t i = threadIdx.x; i < hidden_size; i += blockDim.x) to[i] = to_float(from[i]);
  } else {
    const float* from = part_of<float>(step, HIDDEN_STATES) + (size_t)source * hidden_size;
    for (uint32_t i = threadIdx.x; i < hidden_size; i += blockDim.x) to[i] = from[i];
  }
}

// Cosine and sine of each row's angles, [row, half]. The angle is rounded to f32 and only its cosine is exact,
// as in the model crate. Grid: rows.
extern "C" __global__ void angles(float2* out, const float* inverse_frequencies, const uint32_t* step,
                                  uint32_t half, float factor) {
  uint32_t row = blockIdx.x;
  float position = (float)part_of<Row>(step, ROWS)[row].position;
  for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
    double sine, cosine;
    sincos((double)__fmul_rn(position, inverse_frequencies[i]), &sine, &cosine);
    out[(size_t)row * half + i] = make_float2((float)cosine * factor, (float)sine * factor);
  }
}

// out[i] = x[row i] / sqrt(mean(x²) + eps) · weight. Grid: rows. Row i is i itself, or entry `first_wanted + i` of
// WANTED where `gather` is set.
constexpr int NORM_THREADS = 512;
template <typename T>
__device__ __forceinline__ void rms_norm(const float* x, const float* weight, T* out, const uint32_t* step,
                                         uint32_t hidden_size, float eps, uint32_t gather,
                                         uint32_t first_wanted) {
  __shared__ float sums[NORM_THREADS / 32];
  uint32_t row = blockIdx.x;
  if (gather) row = part_of<uint32_t>(step, WANTED)[first_wanted + row];
  x += (size_t)row * hidden_size;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < hidden_size; i += NORM_THREADS) sum += x[i] * x[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < NORM_THREADS / 32; i++) sum += sums[i];
  float scale = 1.f / sqrtf(sum / (float)hidden_size + eps);
  out += (size_t)blockIdx.x * hidden_size;
  for (uint32_t i = threadIdx.x; i < hidden_size; i += NORM_THREADS)
    out[i] = from_float<T>(x[i] * scale * weight[i]);
}

#define DEFINE(T, NAME)                                                                                       \
  extern "C" __global__ void assemble_##NAME(float* x, const T* embedding, const uint32_t* step,              \
                                             uint32_t hidden_size) {                                          \
    assemble<T>(x, embedding, step, hidden_size);                                                             \
  }                                                                                                           \
  extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                                  \
      rms_norm_##NAME(const float* x, const float* weight, T* out, const uint32_t* step,                      \
                      uint32_t hidden_size, float eps, uint32_t gather, uint32_t first_wanted) {              \
    rms_norm<T>(x, weight, out, step, hidden_size, eps, gather, first_wanted);                                \
  }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
