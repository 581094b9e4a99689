#include "ops/l1_step.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(L1Step)
