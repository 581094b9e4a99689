// Runs an op's run_row for every row, one thread a row.
#pragma once

#include "core/parallel.h"
#include "team/cpu_team.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

// Waking a sleeping thread takes as long as this many entries; a chunk is never less work.
constexpr int64_t kEntriesPerChunk = 16384;

template <class Args>
void launch_rows(const Args& args, int threads) {
  const auto body = [](const void* context, int64_t begin, int64_t end, int slot) {
    const Args& a = *static_cast<const Args*>(context);
    for (int64_t row = begin; row < end; ++row) run_row(CpuTeam{}, a, row, slot);
  };
  const int64_t chunk = args.n > 0 ? (kEntriesPerChunk + args.n - 1) / args.n : args.rows;
  parallel_rows(args.rows, chunk, threads, body, &args);
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE

/// Defines an op's entries for the instruction set that its file is compiled for.
#define SPARRING_CPU_ENTRIES(Op)                                                   \
  namespace sparring::SPARRING_ISA_NAMESPACE {                                     \
  void launch(const Op<float>& args, int threads);                                 \
  void launch(const Op<double>& args, int threads);                                \
  void launch(const Op<float>& args, int threads) { launch_rows(args, threads); }  \
  void launch(const Op<double>& args, int threads) { launch_rows(args, threads); } \
  }
