// What the host says about a step, in one array of 32-bit words that is copied to the device once a step.
// `step.rs` writes it. Kernels find everything from the header, so that their arguments are the same in
// every step.
#pragma once
#include <stdint.h>

// Positions of a KV block, as in the model crate.
constexpr uint32_t BLOCK_POSITIONS = 32;

// Words of the header: where each part begins.
enum StepPart { ROWS, TABLES, ITEMS, MERGES, HIDDEN_STATES, WANTED, LAYERS };
// Behind the parts' words: the number of rows.
constexpr int ALL_ROWS = 7;

// One row of the batch.
struct Row {
  uint32_t position;
  uint32_t table;        // where the row's table begins in TABLES: [column, layer]
  uint32_t table_layers; // layers of that table
  uint32_t first_layer;  // the table's first layer
  uint32_t source;       // a token id with the top bit set, or a row of HIDDEN_STATES
  uint32_t unused[3];
};
constexpr uint32_t TOKEN_ID = 0x80000000u;

// Positions [begin, end) that one thread block attends to for one row.
struct Item {
  uint32_t row;
  uint32_t begin;
  uint32_t end;
  uint32_t slot; // where the partial result goes, or DIRECT where it is the result
};
constexpr uint32_t DIRECT = 0xffffffffu;

// The partial results of one row.
struct Merge {
  uint32_t row;
  uint32_t first_slot;
  uint32_t slots;
  uint32_t unused;
};

// What there is for a layer to do. The rows that a layer computes are the first ones of the batch.
struct LayerWork {
  uint32_t rows;
  uint32_t items;
  uint32_t merges;
  uint32_t rows_before; // rows of the layer before
};

template <typename Part>
__device__ __forceinline__ const Part* part_of(const uint32_t* step, StepPart part) {
  return reinterpret_cast<const Part*>(step + step[part]);
}

__device__ __forceinline__ uint32_t all_rows(const uint32_t* step) { return step[ALL_ROWS]; }

// `layer`: counted from the tail's first one; one past the last stands for what follows the layers.
__device__ __forceinline__ LayerWork work_of(const uint32_t* step, uint32_t layer) {
  return part_of<LayerWork>(step, LAYERS)[layer];
}

// The block that holds `position` of the row's session in `layer`.
__device__ __forceinline__ uint32_t block_of(const uint32_t* tables, const Row& row, uint32_t layer,
                                             uint32_t position) {
  uint32_t column = position / BLOCK_POSITIONS;
  return tables[row.table + column * row.table_layers + (layer - row.first_layer)];
}

// The first element of a key in the KV memory, [block, keys or values, kv_head, position, head_dim]. The value
// of the same position is `kv_heads * BLOCK_POSITIONS * head_dim` further on.
__device__ __forceinline__ size_t key_at(uint32_t block, uint32_t position, uint32_t kv_head,
                                         uint32_t kv_heads, uint32_t head_dim) {
  size_t head = (size_t)block * 2 * kv_heads + kv_head;
  return (head * BLOCK_POSITIONS + position % BLOCK_POSITIONS) * head_dim;
}
