#include "team/launch_cuda.cuh"

#include "ops/conv_grad.h"

SPARRING_CUDA_ENTRIES(Col2im)
