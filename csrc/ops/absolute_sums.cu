#include "team/launch_cuda.cuh"

#include "ops/absolute_sums.h"

SPARRING_CUDA_ENTRIES(AbsoluteSums)
