// Attention of few rows over many positions.
#include "attention_decode.cuh"
