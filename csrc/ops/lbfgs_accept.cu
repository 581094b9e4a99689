#include "team/launch_cuda.cuh"

#include "ops/lbfgs_accept.h"

SPARRING_CUDA_ENTRIES(LbfgsAccept)
