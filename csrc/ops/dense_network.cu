#include "team/launch_cuda.cuh"

#include "ops/dense_network.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

constexpr int kLanesPerTile = 256;

// Unlike the operations on rows: always a block, and memory that its lanes share.
template <class Real>
__global__ void __launch_bounds__(kLanesPerTile) block_a_tile(const __grid_constant__ DenseNetwork<Real> args) {
  __shared__ Real memory[kTileBytes / sizeof(Real)];
  run_row(CudaTeam<BlockTeam>{}, args, int64_t(blockIdx.x), memory);
}

template <class Real>
void launch_tiles_cuda(const DenseNetwork<Real>& args, int device, void* stream) {
  if (args.rows == 0) return;
  const OnDevice guard(device);
  SPARRING_LAUNCH(block_a_tile<Real>, unsigned(args.rows), kLanesPerTile, stream, args);
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE

namespace sparring {

void launch_cuda(const DenseNetwork<float>& args, int device, void* stream);
void launch_cuda(const DenseNetwork<double>& args, int device, void* stream);
void launch_cuda(const DenseNetwork<float>& args, int device, void* stream) {
  SPARRING_ISA_NAMESPACE::launch_tiles_cuda(args, device, stream);
}
void launch_cuda(const DenseNetwork<double>& args, int device, void* stream) {
  SPARRING_ISA_NAMESPACE::launch_tiles_cuda(args, device, stream);
}

}  // namespace sparring
