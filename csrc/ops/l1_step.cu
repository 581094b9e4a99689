#include "team/launch_cuda.cuh"

#include "ops/l1_step.h"

SPARRING_CUDA_ENTRIES(L1Step)
