// Of every two members of an ensemble, the cosine of their gradients, summed over the examples; and its square.
//
// With the gradient g_mb of member m at example b, cos_ijb = (g_ib / |g_ib|) . (g_jb / |g_jb|). A row is a group of examples, whose sums
// over b of cos_ijb and of its square, for i < j, are added to what mean and square hold; so (M, M) numbers a group are all that is
// kept. The caller gives the inverse norms, 0 where a gradient is zero, which makes its cosines 0. Where `scaled`, terms are divided by the
// norms before they are multiplied, so that gradients of 1e-25 do not underflow. Products are summed in Real in blocks of 4096, blocks and examples in double.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct PairwiseCosine {
  static constexpr int64_t kEntryWork = 1;
  int64_t rows, n;  // groups; entries that one looks at
  int64_t members, examples, features;
  const Real* grads;  // features contiguous
  int64_t member_stride, example_stride;
  bool scaled;
  const Real* inverse;  // (members, examples)
  double* sum;          // (rows, members, members), above the diagonal
  double* square;
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const PairwiseCosine<Real>& a, int64_t row, int64_t /*slot*/) {
  constexpr int kTogether = 4;
  constexpr int64_t block = 4096;
  const int64_t members = a.members, features = a.features;
  double* const sum = a.sum + row * members * members;
  double* const square = a.square + row * members * members;
  for (int64_t b = row * a.examples / a.rows; b < (row + 1) * a.examples / a.rows; ++b) {
    const Real* const grads = a.grads + b * a.example_stride;
    const auto inverse = [&a, b](int64_t m) { return a.inverse[m * a.examples + b]; };
    team.split(members, [=, &a](auto part, int64_t i) {
      const Real* const mine = grads + i * a.member_stride;
      const Real scale = inverse(i);
      for (int64_t first = i + 1; first < members; first += kTogether) {
        const Real* others[kTogether];
        Real scales[kTogether];
        for (int s = 0; s < kTogether; ++s) {
          const int64_t j = first + s < members ? first + s : members - 1;
          others[s] = grads + j * a.member_stride;
          scales[s] = inverse(j);
        }
        double so_far[kTogether] = {};
        for (int64_t begin = 0; begin < features; begin += block) {
          const int64_t count = features - begin < block ? features - begin : block;
          const bool last = begin + count == features;
          const auto keep = [&](int s, Real of_block) {  // always on the same lane for the same s
            so_far[s] += double(of_block);
            if (!last || first + s >= members) return;
            const double cosine = a.scaled ? so_far[s] : so_far[s] * double(scale) * double(scales[s]);
            sum[i * members + first + s] += cosine;
            square[i * members + first + s] += cosine * cosine;
          };
          const Real* const x = mine + begin;
          const auto product = [&](int64_t k, int s) { return x[k] * others[s][begin + k]; };
          const auto quotient = [&](int64_t k, int s) { return (x[k] * scale) * (others[s][begin + k] * scales[s]); };
          if (a.scaled)
            part.template sums<kTogether, Real>(count, quotient, keep);
          else
            part.template sums<kTogether, Real>(count, product, keep);
        }
      }
    });
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
