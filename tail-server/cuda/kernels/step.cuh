// What the host says about a step, in one array of 32-bit words that is copied to the device once a step.
// `step.rs` writes it. Kernels find everything from the header, so that their arguments are the same in
// every step.
#pragma once
#include <stdint.h>

// Positions of a KV block, as in the model crate.
constexpr uint32_t BLOCK_POSITIONS = 32;

// Words of the header: where each part begins.
enum StepPart { ROWS, TABLES, ITEMS, PROMPTS, MERGES, WANTED, LAYERS };
// Behind the parts' words: the number of rows, and of wanted ones.
constexpr int ALL_ROWS = 7, ALL_WANTED = 8;

// One row of the batch.
struct Row {
  uint32_t position;
  uint32_t table;        // where the row's table begins in TABLES: [column, layer]
  uint32_t table_layers; // layers of that table
  uint32_t first_layer;  // the table's first layer
  uint32_t source;       // a token id with the top bit set, a row of what comes in, or IN_PLACE
  uint32_t unused[3];
};
constexpr uint32_t TOKEN_ID = 0x80000000u;
// The row stands in the residual stream already: the stage before has brought it.
constexpr uint32_t IN_PLACE = 0x7fffffffu;

// Positions [begin, end) that one thread block attends to, for neighbouring rows of one session. A row sees those
// up to its own. `begin` is a multiple of BLOCK_POSITIONS, and so is `end` unless it is behind the last row.
struct __align__(16) Item {
  uint32_t row; // the first one
  uint32_t rows;
  uint32_t position; // of the first row
  uint32_t begin;
  uint32_t end;
  uint32_t table; // as in Row
  uint32_t table_layers;
  uint32_t first_layer;
  uint32_t first_slot; // of all items of these rows: [item, row]
  uint32_t index;      // among them
  uint32_t items;      // of these rows; where there is one, its result is the rows'
  uint32_t unused;
};

// What there is for a layer to do. The rows that a layer computes are the first ones of the batch.
struct LayerWork {
  uint32_t rows;
  uint32_t items;
  uint32_t prompts;     // items of PROMPTS
  uint32_t rows_before; // rows of the layer before
  uint32_t merges;      // first items of rows that have several
  uint32_t unused[3];
};

// Which rows a norm reads.
enum NormRows {
  BEFORE_LAYER, // rows that join at this layer have no product yet
  WITHIN_LAYER,
  WANTED_ROWS,
};

template <typename Part>
__device__ __forceinline__ const Part* part_of(const uint32_t* step, StepPart part) {
  return reinterpret_cast<const Part*>(step + step[part]);
}

__device__ __forceinline__ uint32_t all_rows(const uint32_t* step) { return step[ALL_ROWS]; }
__device__ __forceinline__ uint32_t all_wanted(const uint32_t* step) { return step[ALL_WANTED]; }

// `layer`: counted from the tail's first one; one past the last stands for what follows the layers.
__device__ __forceinline__ LayerWork work_of(const uint32_t* step, uint32_t layer) {
  return part_of<LayerWork>(step, LAYERS)[layer];
}

__device__ __forceinline__ Item load_item(const Item* from) {
  Item item;
  const uint4* words = reinterpret_cast<const uint4*>(from);
#pragma unroll
  for (int i = 0; i < int(sizeof(Item) / sizeof(uint4)); i++) reinterpret_cast<uint4*>(&item)[i] = words[i];
  return item;
}

// The block in `column` of a session's table, in `layer` of the model. `Of`: Row or Item.
template <typename Of>
__device__ __forceinline__ uint32_t block_of(const uint32_t* tables, const Of& of, uint32_t layer, uint32_t column) {
  return tables[of.table + column * of.table_layers + (layer - of.first_layer)];
}

// The first element of a block's keys in the KV memory, [block, keys or values, kv_head, 32 · head_dim]. The values
// are `kv_heads * BLOCK_POSITIONS * head_dim` further on.
__device__ __forceinline__ size_t keys_at(uint32_t block, uint32_t kv_head, uint32_t kv_heads, uint32_t head_dim) {
  return ((size_t)block * 2 * kv_heads + kv_head) * BLOCK_POSITIONS * head_dim;
}

// Where an element of a position lies among a block's keys or values. Eight neighbours stay together.
//
// Where head_dim is a multiple of 64: [panel of 64 elements, position, eight of them], and the eights of a position
// are exchanged by its number. Of 2-byte elements this is what wgmma calls 128-byte swizzled, so that a copy to
// shared memory is read without bank conflicts. Otherwise: [position, head_dim].
__device__ __forceinline__ uint32_t element_at(uint32_t position, uint32_t element, uint32_t head_dim) {
  uint32_t within = position % BLOCK_POSITIONS;
  if (head_dim % 64) return within * head_dim + element;
  uint32_t eight = (element / 8 ^ within) % 8;
  return (element / 64 * BLOCK_POSITIONS + within) * 64 + eight * 8 + element % 8;
}
