// All kernels of the tail, as one translation unit. See the files for what they do and how they are launched.
#include "attention.cuh"
#include "mlp.cuh"
#include "rope_kv.cuh"
#include "rows.cuh"
