// Attention over paged keys and values.
#include "attention.cuh"
