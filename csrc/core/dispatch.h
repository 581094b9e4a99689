// From an op's arguments to the kernel compiled for this processor, or to CUDA.
#pragma once

#include "core/isa.h"
#include "ops/absolute_sums.h"
#include "ops/activation_backward.h"
#include "ops/agreement_counts.h"
#include "ops/bias_activation.h"
#include "ops/conv_grad.h"
#include "ops/dense_network.h"
#include "ops/l1_step.h"
#include "ops/lbfgs_accept.h"
#include "ops/lbfgs_direction.h"
#include "ops/loss_grad.h"
#include "ops/pairwise_cosine.h"
#include "ops/positive_definite.h"
#include "ops/project_l0_box.h"
#include "ops/project_l1_box.h"
#include "ops/recovery_step.h"
#include "ops/relu_pool.h"
#include "ops/sparse_pgd_step.h"
#include "ops/sparse_search.h"
#include "ops/symmetric_symbol.h"
#include "ops/top_eigenpair.h"
#include "ops/uniform_rows.h"

// An op adds one line here, and one at the end of its .cpp and .cu.
#define SPARRING_FOR_EACH_OP(declare)                                                                                            \
  declare(ProjectL1Box) declare(ProjectL0Box) declare(L1Step) declare(RecoveryStep) declare(BiasActivation)                      \
      declare(ActivationBackward) declare(LossGrad) declare(ReluPool) declare(ReluPoolBackward) declare(Col2im)                  \
          declare(DenseNetwork) declare(PairwiseCosine) declare(PackBits) declare(AgreementCounts) declare(SymmetricSymbol)      \
              declare(AbsoluteSums) declare(TopEigenpair) declare(PositiveDefinite) declare(LbfgsAccept) declare(LbfgsDirection) \
                  declare(SparseSearch) declare(SparsePgdStep) declare(UniformRows)

#if defined(SPARRING_X86_LEVELS)
#define SPARRING_DECLARE_LEVELS(Op)            \
  namespace v3 {                               \
  void launch(const Op<float>&, int threads);  \
  void launch(const Op<double>&, int threads); \
  }                                            \
  namespace v4 {                               \
  void launch(const Op<float>&, int threads);  \
  void launch(const Op<double>&, int threads); \
  }
#else
#define SPARRING_DECLARE_LEVELS(Op)
#endif

#define SPARRING_DECLARE(Op)                                    \
  SPARRING_DECLARE_LEVELS(Op)                                   \
  namespace baseline {                                          \
  void launch(const Op<float>&, int threads);                   \
  void launch(const Op<double>&, int threads);                  \
  }                                                             \
  void launch_cuda(const Op<float>&, int device, void* stream); \
  void launch_cuda(const Op<double>&, int device, void* stream);

namespace sparring {

SPARRING_FOR_EACH_OP(SPARRING_DECLARE)

template <class Args>
void launch_cpu(const Args& args, int threads) {
#if defined(SPARRING_X86_LEVELS)
  switch (active_isa()) {
    case Isa::v4:
      return v4::launch(args, threads);
    case Isa::v3:
      return v3::launch(args, threads);
    case Isa::baseline:
      break;
  }
#endif
  return baseline::launch(args, threads);
}

}  // namespace sparring
