#include "team/launch_cuda.cuh"

#include "ops/top_eigenpair.h"

SPARRING_CUDA_ENTRIES(TopEigenpair)
