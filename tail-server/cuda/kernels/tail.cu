// What lies between products and attention.
#include "mlp.cuh"
#include "rope_kv.cuh"
#include "rows.cuh"
