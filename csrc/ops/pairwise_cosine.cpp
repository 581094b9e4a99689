#include "ops/pairwise_cosine.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(PairwiseCosine)
