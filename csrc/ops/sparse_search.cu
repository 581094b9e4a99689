#include "team/launch_cuda.cuh"

#include "ops/sparse_search.h"

SPARRING_CUDA_ENTRIES(SparseSearch)
