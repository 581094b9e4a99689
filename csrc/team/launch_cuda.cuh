// Runs an op's run_row for every row on CUDA: a warp a row where rows are short, a thread block a row otherwise.
#pragma once

#include "core/cuda_check.h"
#include "team/cuda_team.cuh"

namespace sparring::SPARRING_ISA_NAMESPACE {

constexpr int kWarpsPerBlock = 4, kLanesPerBlock = kWarpsPerBlock * kWarp;

template <class Args>
__global__ void __launch_bounds__(kLanesPerBlock) warp_a_row(Args args) {
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp < args.rows) run_row(CudaTeam<WarpTeam>{}, args, warp, warp);
}

template <class Args>
__global__ void __launch_bounds__(1024) block_a_row(Args args) {
  run_row(CudaTeam<BlockTeam>{}, args, int64_t(blockIdx.x), int64_t(blockIdx.x));
}

/// Lanes for a row of n: few entries a lane while the row is short, then as many lanes as a block has.
inline unsigned lanes_for(int64_t n) { return n <= 256 ? kWarp : n <= 2048 ? 128 : n <= 16384 ? 256 : 1024; }

template <class Args>
void launch_rows_cuda(const Args& args, int device, void* stream) {
  if (args.rows == 0) return;
  const OnDevice guard(device);
  const unsigned lanes = lanes_for(args.n);
  if (lanes == kWarp) {
    const unsigned blocks = unsigned((args.rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
    SPARRING_LAUNCH(warp_a_row<Args>, blocks, kLanesPerBlock, stream, args);
  } else {
    SPARRING_LAUNCH(block_a_row<Args>, unsigned(args.rows), lanes, stream, args);
  }
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE

/// Defines an op's entries for CUDA.
#define SPARRING_CUDA_ENTRIES(Op)                                      \
  namespace sparring {                                                 \
  void launch_cuda(const Op<float>& args, int device, void* stream);   \
  void launch_cuda(const Op<double>& args, int device, void* stream);  \
  void launch_cuda(const Op<float>& args, int device, void* stream) {  \
    SPARRING_ISA_NAMESPACE::launch_rows_cuda(args, device, stream);    \
  }                                                                    \
  void launch_cuda(const Op<double>& args, int device, void* stream) { \
    SPARRING_ISA_NAMESPACE::launch_rows_cuda(args, device, stream);    \
  }                                                                    \
  }
