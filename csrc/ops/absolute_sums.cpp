#include "ops/absolute_sums.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(AbsoluteSums)
