// Programmatic dependent launch: a kernel starts while the one before it still runs, and does what does not depend
// on it. Every thread of every kernel calls `wait_for_previous` before it reads or writes what another kernel
// touches, and before it returns: only then is everything before that kernel done, too.
#pragma once

#include <stdint.h>

// The device's clock, in nanoseconds.
__device__ __forceinline__ uint64_t now_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// The next kernel's blocks may start where there is room.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until all kernels before this one are done and what they wrote is visible.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
