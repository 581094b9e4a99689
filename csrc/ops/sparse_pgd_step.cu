#include "team/launch_cuda.cuh"

#include "ops/sparse_pgd_step.h"

SPARRING_CUDA_ENTRIES(SparsePgdStep)
