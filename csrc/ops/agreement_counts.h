// Of every two members of an ensemble, on how many examples both are right: counts_ij = sum popcount(bits_i & bits_j).
//
// A row is a member i; its answers, one a bit, are compared with those of all members j >= i, and both halves of counts written.
// There are no numbers in it, so the two number types are the same.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct AgreementCounts {
  int64_t rows, n;  // members; words that one has
  const uint64_t* bits;
  int64_t* counts;  // (rows, rows)
};

namespace SPARRING_ISA_NAMESPACE {

SPARRING_FN int bits_set(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const AgreementCounts<Real>& a, int64_t row, int64_t /*slot*/) {
  const uint64_t* const mine = a.bits + row * a.n;
  for (int64_t j = row; j < a.rows; ++j) {
    const uint64_t* const other = a.bits + j * a.n;
    const auto both = int64_t(team.sum(a.n, [=](int64_t k) { return bits_set(mine[k] & other[k]); }));
    team.each(1, [=](int64_t) { a.counts[row * a.rows + j] = a.counts[j * a.rows + row] = both; });
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
