#include "team/launch_cuda.cuh"

#include "ops/relu_pool.h"

SPARRING_CUDA_ENTRIES(ReluPool)
SPARRING_CUDA_ENTRIES(ReluPoolBackward)
