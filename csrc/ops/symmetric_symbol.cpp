#include "ops/symmetric_symbol.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(SymmetricSymbol)
