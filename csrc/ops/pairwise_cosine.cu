#include "team/launch_cuda.cuh"

#include "ops/pairwise_cosine.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

constexpr int kLanesPerGroup = 256;

// Unlike the operations on rows: always a block, of fewer lanes, each with the registers that a tile of sums takes.
template <class Real>
__global__ void __launch_bounds__(kLanesPerGroup) block_a_group(const __grid_constant__ PairwiseCosine<Real> args) {
  run_row(CudaTeam<BlockTeam>{}, args, int64_t(blockIdx.x), int64_t(blockIdx.x));
}

template <class Real>
void launch_groups_cuda(const PairwiseCosine<Real>& args, int device, void* stream) {
  if (args.rows == 0) return;
  const OnDevice guard(device);
  SPARRING_LAUNCH(block_a_group<Real>, unsigned(args.rows), kLanesPerGroup, stream, args);
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE

namespace sparring {

void launch_cuda(const PairwiseCosine<float>& args, int device, void* stream);
void launch_cuda(const PairwiseCosine<double>& args, int device, void* stream);
void launch_cuda(const PairwiseCosine<float>& args, int device, void* stream) {
  SPARRING_ISA_NAMESPACE::launch_groups_cuda(args, device, stream);
}
void launch_cuda(const PairwiseCosine<double>& args, int device, void* stream) {
  SPARRING_ISA_NAMESPACE::launch_groups_cuda(args, device, stream);
}

}  // namespace sparring
