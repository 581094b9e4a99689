#include "team/launch_cuda.cuh"

#include "ops/bias_activation.h"

SPARRING_CUDA_ENTRIES(BiasActivation)
