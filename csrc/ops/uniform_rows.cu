#include "team/launch_cuda.cuh"

#include "ops/uniform_rows.h"

SPARRING_CUDA_ENTRIES(UniformRows)
