// Weights in fewer bits on Hopper. They stay so in device memory and in shared memory; a warp group widens its part of a
// chunk to bf16 in registers, and these are the left operand of its products.
//
// A matrix lies in chunks, [tile, chunk], each one piece of memory: the values, then the scales. `packed.rs` writes them
// so that a lane's values of 32 columns of 8 bits, or 64 of 4 bits, are 16 bytes, and a warp reads 512 bytes in a row:
//   values: [warp of 16 rows][16 bytes of each lane, columns of a warp's read][lane]
//   scales: [warp of 16 rows][two groups][row r of 8]: first group of row r, of row r + 8; second group of both.
// Lane 4 r + c has of rows r and r + 8 the columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of each 16, as wgmma wants them.
#pragma once
#include "products.cuh"

// How a matrix is stored. The sums of a row are multiplied by the row's f32 scale at the end.
enum Format : uint32_t {
  DENSE,     // of two bytes, as `products.cuh` has it
  FLOAT_8,   // e4m3
  EIGHT_32,  // scale · value - minimum, values 0 to 255, both f16 for each 32 columns
  EIGHT_16,  // for each 16 columns
  FOUR_32,   // values 0 to 15
};

// What one chunk is made of.
template <Format FORMAT> struct Packed {
  static constexpr int BITS = FORMAT == FOUR_32 ? 4 : 8;
  static constexpr int GROUP = FORMAT == EIGHT_16 ? 16 : 32;
  // As many as 16 KiB hold.
  static constexpr int COLUMNS = 1024 / BITS;
  // Of CHUNK columns.
  static constexpr int STEPS = COLUMNS / CHUNK;
  static constexpr int WARP_VALUES = 16 * COLUMNS * BITS / 8;
  static constexpr int WARP_SCALES = FORMAT == FLOAT_8 ? 0 : 16 * COLUMNS / GROUP * 4;
  static constexpr int VALUES = MULTIPLYING_WARPS * WARP_VALUES;
  static constexpr int BYTES = VALUES + MULTIPLYING_WARPS * WARP_SCALES;
};
// The largest chunk.
constexpr int PACKED_STAGE = 20 * 1024;

// Steps of CHUNK columns that a chunk has, and its bytes.
__device__ __forceinline__ uint32_t steps_of(uint32_t format) {
  return format == DENSE ? 1 : format == FOUR_32 ? Packed<FOUR_32>::STEPS : Packed<EIGHT_32>::STEPS;
}
__device__ __forceinline__ uint32_t bytes_of(uint32_t format) {
  switch (format) {
  case FLOAT_8: return Packed<FLOAT_8>::BYTES;
  case EIGHT_32: return Packed<EIGHT_32>::BYTES;
  case EIGHT_16: return Packed<EIGHT_16>::BYTES;
  case FOUR_32: return Packed<FOUR_32>::BYTES;
  default: return TILE * CHUNK * 2;
  }
}

// Four times 16 columns of a warp's 16 rows, as wgmma has its left operand.
struct Fragments { uint32_t words[CHUNK / 16][4]; };

__device__ __forceinline__ uint32_t to_pair(float first, float second) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// Two e4m3 values, exactly.
__device__ __forceinline__ uint32_t widen_pair(uint16_t values) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(values));
  float2 pair = __half22float2(*reinterpret_cast<__half2*>(&halves));
  return to_pair(pair.x, pair.y);
}

// A group's scale and minimum.
struct Group {
  float scale, minimum;
  __device__ __forceinline__ explicit Group(uint32_t word) {
    float2 pair = __half22float2(*reinterpret_cast<__half2*>(&word));
    scale = pair.x, minimum = pair.y;
  }
};

// scale · value - minimum in one rounding: the value's bits stand in the fraction of a float between 1 and 2, which is
// 1 + value / unit. The constant, -(unit · scale + minimum), is exact unless the minimum is far below the scale.
template <int UNIT> struct Line {
  float slope, constant;
  __device__ __forceinline__ explicit Line(const Group& group) {
    slope = group.scale * (float)UNIT;
    constant = -(slope + group.minimum);
  }
  __device__ __forceinline__ float at(uint32_t bits) const { return fmaf(__uint_as_float(bits), slope, constant); }
};

constexpr uint32_t ONE = 0x3F800000;

// Byte I of a word behind the leading bits of 1: 1 + byte / 32768.
template <int I> __device__ __forceinline__ uint32_t place_byte(uint32_t word) {
  return __byte_perm(word, ONE, 0x7604 | I << 4);
}

// A row's four bytes of 16 columns.
__device__ __forceinline__ void widen_bytes(uint32_t word, const Line<32768>& line, uint32_t& low, uint32_t& high) {
  low = to_pair(line.at(place_byte<0>(word)), line.at(place_byte<1>(word)));
  high = to_pair(line.at(place_byte<2>(word)), line.at(place_byte<3>(word)));
}

// Bits 16 to 19 of a word behind the leading bits of 1: 1 + them / 128; and bits 12 to 15: 1 + them / 2048.
// In one instruction: the compiler takes two where both constants are known.
template <uint32_t MASK> __device__ __forceinline__ uint32_t place_bits(uint32_t word) {
  uint32_t placed;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(placed) : "r"(word), "n"(MASK), "r"(ONE));
  return placed;
}
__device__ __forceinline__ uint32_t place_upper(uint32_t word) { return place_bits<0xF0000>(word); }
__device__ __forceinline__ uint32_t place_lower(uint32_t word) { return place_bits<0xF000>(word); }

// A group's lines for four bits in either place.
struct FourBits {
  Line<128> upper;
  Line<2048> lower;
  __device__ __forceinline__ explicit FourBits(const Group& group) : upper(group), lower(group) {}
};

// One step's fragments of a warp. `values` and `scales`: the warp's, in shared or device memory.
template <Format FORMAT>
__device__ __forceinline__ Fragments widen(const uint8_t* values, const uint8_t* scales, int step, uint32_t lane) {
  Fragments out;
  const uint4* lanes = reinterpret_cast<const uint4*>(values) + lane;
  const uint4* groups = reinterpret_cast<const uint4*>(scales) + lane / 4;
  if constexpr (FORMAT == FOUR_32) {
    uint4 of_lane = lanes[32 * step], of_groups = groups[8 * step];
    uint32_t words[4] = {of_lane.x, of_lane.y, of_lane.z, of_lane.w};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      FourBits first(Group(half ? of_groups.z : of_groups.x)), second(Group(half ? of_groups.w : of_groups.y));
#pragma unroll
      for (int k = 2 * half; k < 2 * half + 2; k++) {
        uint32_t word = words[k];
        // Four bits of the first row's four columns, then of the second row's.
        out.words[k][0] = to_pair(first.upper.at(place_upper(word << 16)), first.lower.at(place_lower(word << 8)));
        out.words[k][2] = to_pair(first.upper.at(place_upper(word << 8)), first.lower.at(place_lower(word)));
        out.words[k][1] = to_pair(second.upper.at(place_upper(word)), second.lower.at(place_lower(word >> 8)));
        out.words[k][3] = to_pair(second.upper.at(place_upper(word >> 8)), second.lower.at(place_lower(word >> 16)));
      }
    }
  } else {
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      uint4 of_lane = lanes[32 * (2 * step + pair)];
      uint32_t(&even)[4] = out.words[2 * pair];
      uint32_t(&odd)[4] = out.words[2 * pair + 1];
      if constexpr (FORMAT == FLOAT_8) {
        even[0] = widen_pair((uint16_t)of_lane.x), even[2] = widen_pair((uint16_t)(of_lane.x >> 16));
        even[1] = widen_pair((uint16_t)of_lane.y), even[3] = widen_pair((uint16_t)(of_lane.y >> 16));
        odd[0] = widen_pair((uint16_t)of_lane.z), odd[2] = widen_pair((uint16_t)(of_lane.z >> 16));
        odd[1] = widen_pair((uint16_t)of_lane.w), odd[3] = widen_pair((uint16_t)(of_lane.w >> 16));
      } else {
        // Groups of 32 columns: the first or the second of the step's two; of 16: two for each read.
        uint4 of_groups = groups[8 * (FORMAT == EIGHT_16 ? 2 * step + pair : step)];
        bool is_second = FORMAT == EIGHT_32 && pair == 1;
        Line<32768> first(Group(is_second ? of_groups.z : of_groups.x));
        Line<32768> second(Group(is_second ? of_groups.w : of_groups.y));
        widen_bytes(of_lane.x, first, even[0], even[2]);
        widen_bytes(of_lane.y, second, even[1], even[3]);
        if constexpr (FORMAT == EIGHT_16) {
          first = Line<32768>(Group(of_groups.z));
          second = Line<32768>(Group(of_groups.w));
        }
        widen_bytes(of_lane.z, first, odd[0], odd[2]);
        widen_bytes(of_lane.w, second, odd[1], odd[3]);
      }
    }
  }
  return out;
}

// d (+)= a bᵀ as `multiply`, with the 64 rows of a in registers.
#define FOUR_AT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define EIGHT_AT(i) FOUR_AT(i), FOUR_AT(i + 4)
#define OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)

template <int N>
__device__ __forceinline__ void multiply_widened(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
  if constexpr (N == 8)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, {%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}\n"
        : FOUR_AT(0)
        : OPERANDS);
  if constexpr (N == 16)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}\n"
        : EIGHT_AT(0)
        : OPERANDS);
  if constexpr (N == 32)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
        : EIGHT_AT(0), EIGHT_AT(8)
        : OPERANDS);
  if constexpr (N == 64)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : EIGHT_AT(0), EIGHT_AT(8), EIGHT_AT(16), EIGHT_AT(24)
        : OPERANDS);
}
#undef FOUR_AT
#undef EIGHT_AT
#undef OPERANDS

// The products that were waited for are in these registers: nothing that reads them may stand before.
template <int COUNT> __device__ __forceinline__ void settle(float (&sums)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

// A thread block's rings of weights and of x in shared memory: a stage of weights is a chunk of any format, a stage of x
// is CHUNK columns of ROWS rows.
template <int ROWS, int WEIGHT_STAGES, int X_STAGES> struct Rings {
  static constexpr int X = ROWS * CHUNK * 2;
  uint8_t* weights;
  uint64_t* barriers;
  // How many stages were passed.
  uint32_t weights_index = 0, x_index = 0;

  // `barriers`: as many as there are stages, twice. Everybody calls it, and sees the barriers afterwards.
  __device__ __forceinline__ Rings(uint8_t* unaligned, uint64_t* barriers)
      : weights(unaligned + (1024 - shared_address(unaligned) % 1024) % 1024), barriers(barriers) {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < WEIGHT_STAGES; stage++) {
        init_barrier(full_weights(stage), 1);
        init_barrier(empty_weights(stage), MULTIPLYING_WARPS);
      }
      for (int stage = 0; stage < X_STAGES; stage++) {
        init_barrier(full_x(stage), 1);
        init_barrier(empty_x(stage), MULTIPLYING_WARPS);
      }
      publish_barriers();
    }
    __syncthreads();
  }

  __device__ __forceinline__ uint64_t* full_weights(uint32_t stage) const { return barriers + stage; }
  __device__ __forceinline__ uint64_t* empty_weights(uint32_t stage) const { return barriers + WEIGHT_STAGES + stage; }
  __device__ __forceinline__ uint64_t* full_x(uint32_t stage) const { return barriers + 2 * WEIGHT_STAGES + stage; }
  __device__ __forceinline__ uint64_t* empty_x(uint32_t stage) const {
    return barriers + 2 * WEIGHT_STAGES + X_STAGES + stage;
  }
  __device__ __forceinline__ uint8_t* x_at(uint32_t stage) const {
    return weights + WEIGHT_STAGES * PACKED_STAGE + stage * X;
  }

  // The bringing threads: a stage that is free, and the barrier to announce its bytes at.
  __device__ __forceinline__ uint8_t* next_weights(uint64_t*& barrier) {
    uint32_t stage = weights_index % WEIGHT_STAGES;
    if (weights_index >= WEIGHT_STAGES) wait_barrier(empty_weights(stage), (weights_index / WEIGHT_STAGES - 1) % 2);
    weights_index++;
    barrier = full_weights(stage);
    return weights + stage * PACKED_STAGE;
  }
  __device__ __forceinline__ void bring_x(const TensorMap* from, uint32_t step, uint32_t row) {
    uint32_t stage = x_index % X_STAGES;
    if (x_index >= X_STAGES) wait_barrier(empty_x(stage), (x_index / X_STAGES - 1) % 2);
    x_index++;
    arrive_expecting(full_x(stage), X);
    copy_box(x_at(stage), from, full_x(stage), step * CHUNK, row, READ_AGAIN);
  }

  // The multiplying threads, as whole warps.
  __device__ __forceinline__ const uint8_t* wait_weights() const {
    wait_barrier(full_weights(weights_index % WEIGHT_STAGES), weights_index / WEIGHT_STAGES % 2);
    return weights + weights_index % WEIGHT_STAGES * PACKED_STAGE;
  }
  __device__ __forceinline__ const uint8_t* wait_x() const {
    wait_barrier(full_x(x_index % X_STAGES), x_index / X_STAGES % 2);
    return x_at(x_index % X_STAGES);
  }
  __device__ __forceinline__ void release_weights(uint32_t index) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty_weights(index % WEIGHT_STAGES));
  }
  __device__ __forceinline__ void release_x(uint32_t index) {
    if (threadIdx.x % 32 == 0) arrive(empty_x(index % X_STAGES));
  }

  // The sums of `chunks` chunks, for 16 rows a warp.
  template <Format FORMAT> __device__ __forceinline__ void multiply_chunks(float (&sums)[ROWS / 2], uint32_t chunks) {
    using Chunk = Packed<FORMAT>;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (uint32_t chunk = 0; chunk < chunks; chunk++, weights_index++) {
      const uint8_t* at = wait_weights();
      const uint8_t* values = at + warp * Chunk::WARP_VALUES;
      const uint8_t* scales = at + Chunk::VALUES + warp * Chunk::WARP_SCALES;
      // Neighbouring steps have registers of their own: a step's are read while the next step's are written.
#pragma unroll
      for (int step = 0; step < Chunk::STEPS; step++, x_index++) {
        Fragments fragments = widen<FORMAT>(values, scales, step, lane);
        if (step == Chunk::STEPS - 1) release_weights(weights_index);
        const uint8_t* x = wait_x();
        fence_products();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
          multiply_widened<ROWS>(sums, fragments.words[k], describe(x + 32 * k), chunk > 0 || step > 0 || k > 0);
        commit_products();
        wait_products<1>();
        if (chunk > 0 || step > 0) release_x(x_index - 1);
      }
    }
    wait_products<0>();
    settle(sums);
    release_x(x_index - 1);
  }

  // The same of bf16 weights, straight from shared memory.
  __device__ __forceinline__ void multiply_dense(float (&sums)[ROWS / 2], uint32_t chunks) {
    uint32_t group = threadIdx.x / 128;
    for (uint32_t chunk = 0; chunk < chunks; chunk++, weights_index++, x_index++) {
      const uint8_t* w = wait_weights() + group * (TILE / 2) * CHUNK * 2;
      const uint8_t* x = wait_x();
      fence_products();
#pragma unroll
      for (int k = 0; k < CHUNK / 16; k++)
        multiply<__nv_bfloat16, ROWS>(sums, describe(w + 32 * k), describe(x + 32 * k), chunk > 0 || k > 0);
      commit_products();
      wait_products<1>();
      if (chunk > 0) {
        release_weights(weights_index - 1);
        release_x(x_index - 1);
      }
    }
    wait_products<0>();
    settle(sums);
    release_weights(weights_index - 1);
    release_x(x_index - 1);
  }

  // The sums of an item, which `write` gets. Each format has sums of its own: the compiler would otherwise move them
  // from register to register between products.
  template <typename Write>
  __device__ __forceinline__ void multiply_item(uint32_t format, uint32_t chunks, const Write& write) {
    switch (format) {
    case FLOAT_8: return multiply_item_of<FLOAT_8>(chunks, write);
    case EIGHT_32: return multiply_item_of<EIGHT_32>(chunks, write);
    case EIGHT_16: return multiply_item_of<EIGHT_16>(chunks, write);
    case FOUR_32: return multiply_item_of<FOUR_32>(chunks, write);
    default: return multiply_item_of<DENSE>(chunks, write);
    }
  }
  template <Format FORMAT, typename Write>
  __device__ __forceinline__ void multiply_item_of(uint32_t chunks, const Write& write) {
    float sums[ROWS / 2];
    if constexpr (FORMAT == DENSE) multiply_dense(sums, chunks);
    else multiply_chunks<FORMAT>(sums, chunks);
    write(sums);
  }
};

// Multiplies a thread's sums of a tile by its two rows' scales, [row of all tiles].
template <int COUNT>
__device__ __forceinline__ void scale_rows(float (&sums)[COUNT], const float* row_scales, uint32_t tile) {
  uint32_t row = tile * TILE + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  float first = row_scales[row], second = row_scales[row + 8];
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    sums[i] *= first, sums[i + 1] *= first;
    sums[i + 2] *= second, sums[i + 3] *= second;
  }
}
