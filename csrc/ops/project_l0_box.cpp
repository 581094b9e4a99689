#include "ops/project_l0_box.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(ProjectL0Box)
