#include "ops/activation_backward.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(ActivationBackward)
