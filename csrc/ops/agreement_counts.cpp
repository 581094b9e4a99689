#include "ops/agreement_counts.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(PackBits)
SPARRING_CPU_ENTRIES(AgreementCounts)
