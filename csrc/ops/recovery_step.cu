#include "team/launch_cuda.cuh"

#include "ops/recovery_step.h"

SPARRING_CUDA_ENTRIES(RecoveryStep)
