#include "team/launch_cuda.cuh"

#include "ops/lbfgs_direction.h"

SPARRING_CUDA_ENTRIES(LbfgsDirection)
