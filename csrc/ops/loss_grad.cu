#include "team/launch_cuda.cuh"

#include "ops/loss_grad.h"

SPARRING_CUDA_ENTRIES(LossGrad)
