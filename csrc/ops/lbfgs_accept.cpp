#include "ops/lbfgs_accept.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(LbfgsAccept)
