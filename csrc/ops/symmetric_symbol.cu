#include "team/launch_cuda.cuh"

#include "ops/symmetric_symbol.h"

SPARRING_CUDA_ENTRIES(SymmetricSymbol)
