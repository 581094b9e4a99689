// The Hermitian matrix of a convolution at many frequencies, from its lags, written as real symmetric matrices.
//
//   G_f = sum over l of [[cos_fl P_l, -sin_fl Q_l], [sin_fl Q_l, cos_fl P_l]],   P_l symmetric, Q_l antisymmetric, n x n
//
// which is the complex matrix sum_l (cos_fl P_l + i sin_fl Q_l) with every z = x + iy as [[x, -y], [y, x]]: the same eigenvalues,
// each twice. A convolution's Gram matrix at a frequency theta_f is R_0 + sum_(l > 0) (e^(i <theta_f, d_l>) R_l + its Hermitian
// transpose), R_l the kernel's autocorrelation at lag d_l; so P_l = R_l + R_l^T, Q_l = R_l - R_l^T, but P_0 = R_0 and Q_0 = 0.
// (Sedghi, Gupta & Long, "The singular values of convolutional layers", 2019, for the symbol; Horn & Johnson, "Matrix analysis",
// section 1.3, for the real form.)
//
// Every entry is summed on its own, l rising, from 0: its error is at most gamma_(L+1) times the sum of |cos_fl| |P_l| (or |sin_fl|
// |Q_l|), whatever the batch. So G_f is symmetric to the bit if P_l and -Q_l equal their transposes to the bit. Products that
// underflow add the smallest subnormal number each. NaN and inf are carried into the entries that they enter.
//
// A row is a group of entries of the matrices, whichever their lines, at a few frequencies. The entries of a group lie together for
// all lags, so that they stay in a near cache while the frequencies pass, which come first in the order of the rows.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

constexpr int kFrequenciesPerRow = 2;

template <class Real>
struct SymmetricSymbol {
  int64_t rows, n;  // groups of entries times groups of frequencies; entries of P of a group, a multiple of 32
  int64_t frequencies, size, lags;
  const Real* lag;      // (groups of entries, lags, 2, n): P and Q, anything after the last of their size^2 entries
  const Real* twiddle;  // (frequencies, lags, 2): cos and sin
  Real* out;            // (frequencies, 2 size, 2 size)
};

namespace SPARRING_ISA_NAMESPACE {

/// A strip of entries from `entry` on, whose first lag is at `lag`.
template <class Part, class Real>
SPARRING_FN void symbol_strip(Part, const SymmetricSymbol<Real>& a, int64_t frequency, const Real* lag, int64_t entry) {
  using Strip = typename Part::template Strip<Real, 2>;
  constexpr int kFew = kFrequenciesPerRow;
  const int64_t n = a.size, last = a.frequencies - 1, left = n * n - entry;
  const Real* twiddle[kFew];
  Strip even[kFew], odd[kFew];
  SPARRING_UNROLL
  for (int f = 0; f < kFew; ++f) {
    even[f] = odd[f] = Strip{};
    twiddle[f] = a.twiddle + (frequency + f < last ? frequency + f : last) * a.lags * 2;
  }
  for (int64_t l = 0; l < 2 * a.lags; l += 2, lag += 2 * a.n) {
    const Strip p = Strip::load(lag), q = Strip::load(lag + a.n);
    SPARRING_UNROLL
    for (int f = 0; f < kFew; ++f) even[f].add_product(p, twiddle[f][l]);
    SPARRING_UNROLL
    for (int f = 0; f < kFew; ++f) odd[f].add_product(q, twiddle[f][l + 1]);
  }
  const Lines lines = {entry, left < Strip::width ? left : Strip::width, n, 2 * n};
  SPARRING_UNROLL
  for (int f = 0; f < kFew; ++f) {
    if (frequency + f > last) break;
    Real* const upper = a.out + (frequency + f) * 4 * n * n;
    Real* const lower = upper + 2 * n * n;
    even[f].store(upper, lines);
    odd[f].store(lower, lines);
    even[f].store(lower + n, lines);
    odd[f].scale(-1);
    odd[f].store(upper + n, lines);
  }
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const SymmetricSymbol<Real>& a, int64_t row, int64_t /*slot*/) {
  constexpr int64_t width = Team::template Strip<Real, 2>::width;
  const int64_t few = (a.frequencies + kFrequenciesPerRow - 1) / kFrequenciesPerRow, group = row / few, begin = group * a.n;
  const int64_t left = a.size * a.size - begin, entries = left < a.n ? left : a.n;
  const Real* const lag = a.lag + group * a.lags * 2 * a.n;
  team.split((entries + width - 1) / width, [=, &a](auto part, int64_t strip) {
    symbol_strip(part, a, (row - group * few) * kFrequenciesPerRow, lag + strip * width, begin + strip * width);
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
