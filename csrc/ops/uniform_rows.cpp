#include "ops/uniform_rows.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(UniformRows)
