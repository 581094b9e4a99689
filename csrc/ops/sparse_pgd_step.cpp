#include "ops/sparse_pgd_step.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(SparsePgdStep)
