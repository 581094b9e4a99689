#include "ops/lbfgs_direction.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(LbfgsDirection)
