#include "ops/loss_grad.h"

#include "team/launch_cpu.h"

SPARRING_CPU_ENTRIES(LossGrad)
