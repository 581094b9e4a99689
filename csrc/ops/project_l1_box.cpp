#include "ops/project_l1_box.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(ProjectL1Box)
