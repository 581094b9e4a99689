#include "ops/sparse_search.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(SparseSearch)
