// The types in which weights, activations and the KV cache are held, and how kernels read and write them.
// All arithmetic is f32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <typename T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <> __device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

// Eight neighbours at a multiple of eight elements: 16 bytes, or 32 of f32, in whole 16-byte loads.
template <typename T> struct Eight { uint4 words[sizeof(T) / 2]; };

template <typename T> __device__ __forceinline__ Eight<T> load_eight(const T* from) {
  Eight<T> eight;
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 2); i++) eight.words[i] = reinterpret_cast<const uint4*>(from)[i];
  return eight;
}

template <typename T> __device__ __forceinline__ Eight<T> zero_eight() {
  Eight<T> eight;
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 2); i++) eight.words[i] = make_uint4(0, 0, 0, 0);
  return eight;
}

template <typename T> __device__ __forceinline__ void unpack(const Eight<T>& eight, float* out) {
  const T* values = reinterpret_cast<const T*>(&eight);
#pragma unroll
  for (int i = 0; i < 8; i++) out[i] = to_float(values[i]);
}

// Four neighbours at a multiple of four elements, in one store.
__device__ __forceinline__ void store_four(float* to, float4 values) { *reinterpret_cast<float4*>(to) = values; }
template <typename T> __device__ __forceinline__ void store_four(T* to, float4 values) {
  union {
    T four[4];
    uint2 words;
  };
  four[0] = from_float<T>(values.x), four[1] = from_float<T>(values.y);
  four[2] = from_float<T>(values.z), four[3] = from_float<T>(values.w);
  *reinterpret_cast<uint2*>(to) = words;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// The values' squares onto `sum`, in one order everywhere.
__device__ __forceinline__ float add_squares(float sum, float4 values) {
  return fmaf(values.w, values.w, fmaf(values.z, values.z, fmaf(values.y, values.y, fmaf(values.x, values.x, sum))));
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// value + (the first plane + the second + ...): four values of each.
__device__ __forceinline__ float4 add_planes(float4 value, const float* planes, uint32_t count, uint64_t stride) {
  float4 sum = make_float4(0, 0, 0, 0);
  for (uint32_t plane = 0; plane < count; plane++)
    sum = add(sum, *reinterpret_cast<const float4*>(planes + plane * stride));
  return add(value, sum);
}

// Defines NAME_f32, NAME_bf16 and NAME_f16: `BODY(T)` is the call of the template.
#define FOR_EACH_TYPE(DEFINE) DEFINE(float, f32) DEFINE(__nv_bfloat16, bf16) DEFINE(__half, f16)
