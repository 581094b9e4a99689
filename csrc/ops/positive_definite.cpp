#include "ops/positive_definite.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(PositiveDefinite)
