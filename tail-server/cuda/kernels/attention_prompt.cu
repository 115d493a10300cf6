// Attention of many rows of one session.
#include "attention_prompt.cuh"
