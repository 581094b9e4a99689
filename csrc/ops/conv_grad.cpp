#include "ops/conv_grad.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(Col2im)
