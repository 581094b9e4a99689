#include "ops/bias_activation.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(BiasActivation)
