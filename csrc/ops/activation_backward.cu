#include "team/launch_cuda.cuh"

#include "ops/activation_backward.h"

SPARRING_CUDA_ENTRIES(ActivationBackward)
