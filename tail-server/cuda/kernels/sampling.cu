// What decides about the next token, from rows of logits.
#include "sampling.cuh"
