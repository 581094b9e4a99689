#include "ops/top_eigenpair.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(TopEigenpair)
