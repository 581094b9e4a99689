#include "team/launch_cuda.cuh"

#include "ops/project_l1_box.h"

SPARRING_CUDA_ENTRIES(ProjectL1Box)
