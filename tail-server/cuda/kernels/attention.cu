// Attention over paged keys and values.
#include "attention.cuh"
#include "attention_merge.cuh"
