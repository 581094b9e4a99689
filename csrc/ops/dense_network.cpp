#include "ops/dense_network.h"

#include "team/launch_cpu.h"

namespace sparring::SPARRING_ISA_NAMESPACE {
namespace {

template <class Real>
void launch_tiles(const DenseNetwork<Real>& args, int threads) {
  const auto body = [](const void* context, int64_t begin, int64_t end, int /*slot*/) {
    alignas(64) Real memory[kTileBytes / sizeof(Real)];
    for (int64_t row = begin; row < end; ++row) run_row(CpuTeam{}, *static_cast<const DenseNetwork<Real>*>(context), row, memory);
  };
  parallel_rows(args.rows, 1 + kEntriesPerChunk / (1 + args.n), threads, body, &args);
}

}  // namespace

void launch(const DenseNetwork<float>& args, int threads);
void launch(const DenseNetwork<double>& args, int threads);
void launch(const DenseNetwork<float>& args, int threads) { launch_tiles(args, threads); }
void launch(const DenseNetwork<double>& args, int threads) { launch_tiles(args, threads); }

}  // namespace sparring::SPARRING_ISA_NAMESPACE
