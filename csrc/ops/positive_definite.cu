#include "team/launch_cuda.cuh"

#include "ops/positive_definite.h"

SPARRING_CUDA_ENTRIES(PositiveDefinite)
