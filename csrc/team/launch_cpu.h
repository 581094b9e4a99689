// Runs an op's run_row for every row, one thread a row.
#pragma once

#include <type_traits>

#include "core/parallel.h"
#include "team/cpu_team.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

// Waking a sleeping thread takes as long as this many simple entries; a chunk is never less work.
constexpr int64_t kEntriesPerChunk = 16384;

/// How many simple entries take as long as one of an op's, if it says so.
template <class Args, class = void>
constexpr int64_t kEntryWork = 1;
template <class Args>
constexpr int64_t kEntryWork<Args, std::void_t<decltype(Args::kEntryWork)>> = Args::kEntryWork;

template <class Args>
void launch_rows(const Args& args, int threads) {
  const auto body = [](const void* context, int64_t begin, int64_t end, int slot) {
    const Args& a = *static_cast<const Args*>(context);
    for (int64_t row = begin; row < end; ++row) run_row(CpuTeam{}, a, row, slot);
  };
  const int64_t work = args.n * kEntryWork<Args>;
  const int64_t chunk = work > 0 ? (kEntriesPerChunk + work - 1) / work : args.rows;
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
