// The Hermitian matrix of a convolution at many frequencies, from its lags, written as real symmetric matrices.
//
//   G_f = sum over l of [[cos_fl P_l, -sin_fl Q_l], [sin_fl Q_l, cos_fl P_l]],   P_l symmetric, Q_l antisymmetric, n x n
//
// which is the complex matrix sum_l (cos_fl P_l + i sin_fl Q_l) with every z = x + iy as [[x, -y], [y, x]]: the same eigenvalues, each
// twice. A convolution's Gram matrix at a frequency theta_f is R_0 + sum_(l > 0) (e^(i <theta_f, d_l>) R_l + its Hermitian transpose),
// R_l the kernel's autocorrelation at lag d_l; so P_l = R_l + R_l^T, Q_l = R_l - R_l^T, but P_0 = R_0 and Q_0 = 0. (Sedghi, Gupta &
// Long 2019 for the symbol of a convolution; Horn & Johnson 2013, 1.3.P20 for the real form.)
//
// Every entry is summed on its own, l rising, from 0: its error is at most gamma_(L+1) times the sum of |cos_fl| |P_l| (or |sin_fl|
// |Q_l|), whatever the batch. So G_f is symmetric to the bit if P_l and -Q_l equal their transposes to the bit. Products that underflow
// add the smallest subnormal number each. NaN and inf are carried into the entries that they enter.
//
// A row is some lines of the matrices at four frequencies: the lags of so many lines should stay in a near cache while the frequencies
// pass, which come first in the order of the rows.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

constexpr int kFrequenciesPerRow = 4;

template <class Real>
struct SymmetricSymbol {
  int64_t rows, n;  // groups of frequencies times groups of lines; entries of P of a group of lines
  int64_t frequencies, size, lags, lines;
  const Real* lag;      // (lags, 2, size, size): P and Q
  const Real* twiddle;  // (frequencies, lags, 2): cos and sin
  Real* out;            // (frequencies, 2 size, 2 size)
};

namespace SPARRING_ISA_NAMESPACE {

/// Some entries of a line of P and Q, `width` or fewer, at four frequencies.
template <class Part, class Real>
SPARRING_FN void symbol_strip(Part, const SymmetricSymbol<Real>& a, int64_t frequency, int64_t line, int64_t column,
                              int64_t count) {
  using Strip = typename Part::template Strip<Real, 1>;
  constexpr int kFour = kFrequenciesPerRow;
  const int64_t n = a.size, last = a.frequencies - 1;
  const Real* p = a.lag + line * n + column;
  const Real* twiddle[kFour];
  Strip even[kFour] = {}, odd[kFour] = {};
  for (int f = 0; f < kFour; ++f) twiddle[f] = a.twiddle + (frequency + f < last ? frequency + f : last) * a.lags * 2;
  for (int64_t l = 0; l < a.lags; ++l, p += 2 * n * n) {
    const Strip of_p = Strip::load(p, count), of_q = Strip::load(p + n * n, count);
    for (int f = 0; f < kFour; ++f) even[f].add_product(of_p, twiddle[f][2 * l]);
    for (int f = 0; f < kFour; ++f) odd[f].add_product(of_q, twiddle[f][2 * l + 1]);
  }
  for (int f = 0; f < kFour && frequency + f <= last; ++f) {
    Real* const upper = a.out + ((frequency + f) * 2 * n + line) * 2 * n + column;
    Real* const lower = upper + 2 * n * n;
    even[f].store(upper, count);
    odd[f].store(lower, count);
    even[f].store(lower + n, count);
    odd[f].scale(-1);
    odd[f].store(upper + n, count);
  }
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const SymmetricSymbol<Real>& a, int64_t row, int64_t /*slot*/) {
  const int64_t groups = (a.frequencies + kFrequenciesPerRow - 1) / kFrequenciesPerRow, n = a.size;
  const int64_t frequency = row % groups * kFrequenciesPerRow, begin = row / groups * a.lines;
  const int64_t end = begin + a.lines < n ? begin + a.lines : n;
  constexpr int64_t width = Team::template Strip<Real, 1>::width;
  const int64_t strips = (n + width - 1) / width;
  team.split((end - begin) * strips, [=, &a](auto part, int64_t s) {
    // The last strip of a line overlaps the one before, and writes the same there.
    const int64_t wanted = s % strips * width, column = n < width ? 0 : wanted + width <= n ? wanted : n - width;
    symbol_strip(part, a, frequency, begin + s / strips, column, n < width ? n : width);
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
