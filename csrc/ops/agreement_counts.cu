#include "team/launch_cuda.cuh"

#include "ops/agreement_counts.h"

SPARRING_CUDA_ENTRIES(PackBits)
SPARRING_CUDA_ENTRIES(AgreementCounts)
