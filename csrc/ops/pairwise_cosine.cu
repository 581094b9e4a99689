#include "team/launch_cuda.cuh"

#include "ops/pairwise_cosine.h"

SPARRING_CUDA_ENTRIES(PairwiseCosine)
