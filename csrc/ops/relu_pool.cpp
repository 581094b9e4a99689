#include "ops/relu_pool.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(ReluPool)
SPARRING_CPU_ENTRIES(ReluPoolBackward)
