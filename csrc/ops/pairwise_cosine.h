// Of every two members of an ensemble, the cosine of their gradients, summed over the examples; and its square.
//
// With the gradient g_mb of member m at example b, cos_ijb = g_ib . g_jb / (|g_ib| |g_jb|), and 0 where a norm is 0. A row is a
// group of examples: the sums over its b of cos_ijb and of its square, for i < j, are added to what sum and square hold, so that
// (M, M) numbers a group are all that is kept. The norms are kept for the caller, who tells by them which gradients are zero, and
// which have NaN or inf: their norm is NaN or inf, and so are the sums that they enter.
//
// Products are summed in Real in blocks of 4096, blocks and examples in double. An example whose norms are such that products of
// Real would overflow or vanish is summed as quotients by the norms, in double; so size does not matter, down to subnormals.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct PairwiseCosine {
  int64_t rows, n;  // groups; entries of all members at one example
  int64_t members, examples, features;
  const Real* grads;  // features contiguous
  int64_t member_stride, example_stride;
  double* norms;  // (examples, members), written
  double* sum;    // (rows, members, members), above the diagonal
  double* square;
};

namespace SPARRING_ISA_NAMESPACE {

/// Norms between which the products of two gradients are exact enough in Real.
template <class Real>
struct PlainNorms;
template <>
struct PlainNorms<float> {
  static constexpr double least = 1e-15, most = 1e15;
};
template <>
struct PlainNorms<double> {
  static constexpr double least = 1e-140, most = 1e140;
};

/// The Euclidean norm of a row; squares that would overflow or vanish are taken of shares of its largest entry.
template <class Team, class Real>
SPARRING_FN double norm(Team team, int64_t n, const Real* row) {
  const double squares = team.sum(n, [=](int64_t k) { return double(row[k]) * double(row[k]); });
  if (squares >= 1e-280 && squares <= Float<double>::largest) return square_root(squares);
  const auto top = team.max(n, [=](int64_t k) { return bits(magnitude(row[k])); });  // inf and NaN come after all numbers
  const double largest = double(from_bits<Real>(top));
  if (!(largest > 0 && largest <= Float<double>::largest)) return largest;
  return largest * square_root(team.sum(n, [=](int64_t k) {
           const double share = double(row[k]) / largest;
           return share * share;
         }));
}

/// Adds the cosines of the members i and i + 1 with j to j + 3, as far as they are above the diagonal: eight sums of products of six
/// rows. cosine(sum, i, j) makes one of a sum of terms.
template <class Sum, class Team, class Real, class Term, class Cosine>
SPARRING_FN void add_cosines(Team team, const PairwiseCosine<Real>& a, const Real* grads, int64_t i, int64_t j, double* sum,
                             double* square, Term term, Cosine cosine) {
  constexpr int kAcross = 4, kPairs = 2 * kAcross;
  constexpr int64_t block = 4096;
  const int64_t members = a.members;
  const auto nth = [=](int64_t m) { return m < members ? m : members - 1; };
  const Real* const x0 = grads + i * a.member_stride;
  const Real* const x1 = grads + nth(i + 1) * a.member_stride;
  const Real* const y[kAcross] = {grads + j * a.member_stride, grads + nth(j + 1) * a.member_stride,
                                  grads + nth(j + 2) * a.member_stride, grads + nth(j + 3) * a.member_stride};
  double so_far[kPairs] = {};
  for (int64_t begin = 0; begin < a.features; begin += block) {
    const int64_t left = a.features - begin, count = left < block ? left : block;
    const auto of_pair = [&](int64_t k, int s) {
      const int64_t at = begin + k;
      return term(s < kAcross ? x0[at] : x1[at], nth(i + s / kAcross), y[s % kAcross][at], nth(j + s % kAcross));
    };
    const auto keep = [&](int s, Sum of_block) {  // always on the same lane for the same s
      so_far[s] += double(of_block);
      const int64_t one = i + s / kAcross, other = j + s % kAcross;
      if (left > block || one >= other || other >= members) return;
      const double c = cosine(so_far[s], one, other);
      sum[one * members + other] += c;
      square[one * members + other] += c * c;
    };
    team.template sums<kPairs, Sum>(count, of_pair, keep);
  }
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const PairwiseCosine<Real>& a, int64_t row, int64_t /*slot*/) {
  using Plain = PlainNorms<Real>;
  const int64_t members = a.members, pairs = (members + 1) / 2, fours = (members + 3) / 4;
  double* const sum = a.sum + row * members * members;
  double* const square = a.square + row * members * members;
  for (int64_t b = row * a.examples / a.rows; b < (row + 1) * a.examples / a.rows; ++b) {
    const Real* const grads = a.grads + b * a.example_stride;
    double* const norms = a.norms + b * members;
    team.split(members, [=, &a](auto part, int64_t m) {
      const double size = norm(part, a.features, grads + m * a.member_stride);
      part.each(1, [=](int64_t) { norms[m] = size; });
    });
    const auto extreme = team.max(members, [=](int64_t m) {
      const double size = norms[m];
      return (size != 0) & !((size >= Plain::least) & (size <= Plain::most)) ? 1u : 0u;
    });
    // The four stay in the nearest cache while the pairs pass by.
    team.split(fours * pairs, [=, &a](auto part, int64_t tile) {
      const int64_t i = tile % pairs * 2, j = tile / pairs * 4;
      if (i >= j + 3) return;
      const auto size = [=](int64_t m) { return norms[m] == 0 ? 1 : norms[m]; };  // of nothing, any will do
      if (extreme == 0)
        add_cosines<Real>(
            part, a, grads, i, j, sum, square, [](Real x, int64_t, Real y, int64_t) { return x * y; },
            [=](double products, int64_t m, int64_t n) { return products / (size(m) * size(n)); });
      else
        add_cosines<double>(
            part, a, grads, i, j, sum, square,
            [=](Real x, int64_t m, Real y, int64_t n) { return (double(x) / size(m)) * (double(y) / size(n)); },
            [](double cosine, int64_t, int64_t) { return cosine; });
    });
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
