#include "ops/recovery_step.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(RecoveryStep)
