#include "team/launch_cuda.cuh"

#include "ops/project_l0_box.h"

SPARRING_CUDA_ENTRIES(ProjectL0Box)
