// Of every two members of an ensemble, on how many examples both are right: counts_ij = sum popcount(bits_i & bits_j).
//
// PackBits makes one word of 64 answers, example 64 w + e in bit e of word w, and zeros at the end. A row is a member.
// AgreementCounts: a row is a member i; its words are compared with those of all members j >= i, and both halves of counts written.
// There are no numbers in either, so the two number types are the same.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct PackBits {
  int64_t rows, n;              // members; examples
  Rows<const uint8_t> answers;  // 0 or 1
  Rows<uint64_t> bits;          // ceil(n / 64)
};

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

/// Eight bytes, 0 or 1, as the bits of one. The products land side by side in the highest byte, and nothing is carried into it.
SPARRING_FN uint64_t bits_of_bytes(const uint8_t* bytes) {
  uint64_t eight;
  __builtin_memcpy(&eight, bytes, sizeof(eight));
  return (eight * 0x0102040810204080u) >> 56;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const PackBits<Real>& a, int64_t row, int64_t /*slot*/) {
  const int64_t n = a.n, whole = n / 64;
  const uint8_t* const answers = a.answers[row];
  uint64_t* const bits = a.bits[row];
  team.each((n + 63) / 64, [=](int64_t w) {
    uint64_t word = 0;
    if (w < whole)
      for (int64_t byte = 0; byte < 8; ++byte) word |= bits_of_bytes(answers + 64 * w + 8 * byte) << (8 * byte);
    else
      for (int64_t e = 64 * w; e < n; ++e) word |= uint64_t(answers[e]) << (e - 64 * w);
    bits[w] = word;
  });
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
