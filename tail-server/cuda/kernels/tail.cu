// What lies between products and attention.
#include "mlp.cuh"
#include "rows.cuh"
