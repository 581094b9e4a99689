// Whether the Cholesky factorisation of every one of many matrices c I - G runs to its end in floating point: the computation on
// which rests a proof that no eigenvalue of G is much above c.
//
//   a_jj = fl(c - g_jj),  a_ij = -g_ij;  s_ij = a_ij - sum over k < j of l_ik l_jk;  l_jj = sqrt(s_jj),  l_ij = s_ij (1 / l_jj)
//
// for i > j, all in floating point; it runs to its end if every s_jj is finite and > 0. What may then be relied on, with the unit
// u, the smallest subnormal number eta, and gamma_k = k u / (1 - k u) (Higham, "Accuracy and Stability of Numerical Algorithms",
// 2002, section 10.1; Rump, "Verification of positive definiteness", BIT 46, 2006):
//
//   A + E = L L^T,   |E| <= gamma_(m+1) |L| |L|^T + eta (m + max l_jj)   entry by entry, hence
//   lambda_max(G) <= c + u max |c - g_jj| + gamma_(m+1) / (1 - gamma_(m+1)) trace A + m eta (m + max l_jj)
//
// Proof. s_ij is a sum of a_ij and j - 1 products, in some order, so that s_ij = (1 + d) (a_ij - sum l_ik l_jk (1 + d_k)) with at
// most j - 1 roundings in d and j in each d_k (Higham, Lemma 8.4). l_ij l_jj is s_ij with two roundings more, those of the
// reciprocal and of the product by it, where textbooks have one of a quotient; l_jj^2 is s_jj with two. So no factor has more than
// j + 1 of them, and j <= m. A fused multiplication and addition (CUDA) rounds once instead of twice. A product that underflows is
// wrong by eta / 2 at most, and l_ij by as much, which counts l_jj times: half of what is stated. Sums cannot underflow; l_jj,
// between 2^-537 and 2^512 (in float, 2^-75 and 2^64), and its reciprocal are normal numbers. Last, L L^T is semidefinite, and the
// norm of |L| |L|^T at most the trace of L L^T, which is trace A + trace E.
//
// Of the symmetric G only the entries on and above the diagonal are read. NaN and inf there make it false, as does a c that is NaN
// or inf.
//
// Left-looking, in tiles of four columns of L and a strip of rows: each a sum in registers over all columns before. Columns go in
// panels: a strip passes through all columns of a panel while it is near; the strips on the diagonal go first. L lies in strips: of
// the rows i in [w I, w I + w), w the width of a strip, w numbers for every column up to the last of them, with 1 / l_jj in place
// of l_jj. What it holds right of the diagonal, and in rows past the last, is never used.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct PositiveDefinite {
  static constexpr int64_t kEntryWork = 8;

  int64_t rows, n;  // matrices; entries of one
  int64_t size;
  const Real* matrices;  // (rows, size, size)
  const Real* shift;     // (rows)
  uint8_t* definite;     // (rows), written
  Rows<Real> scratch;    // padded (padded + 32) / 2 numbers a slot, padded: size rounded up to 32
};

namespace SPARRING_ISA_NAMESPACE {

constexpr int kPanel = 32, kTile = 4;  // columns

/// What all tiles of one matrix share.
template <class Real>
struct Factor {
  int64_t size;
  const Real* matrix;
  Real shift;
  Real* strips;

  template <int64_t width>
  SPARRING_FN Real* strip(int64_t index) const {
    return strips + width * width * (index * (index + 1) / 2);
  }
};

/// Four columns of a strip of rows. Returns whether the pivots among them, if there are any, allow to go on.
template <class Part, class Real>
SPARRING_FN bool factor_tile(Part part, const Factor<Real>& a, int64_t row_strip, int64_t column) {
  using Strip = typename Part::template Strip<Real, 2>;
  constexpr int width = Strip::width;
  static_assert(kPanel % width == 0 && width % kTile == 0);
  const int64_t row = row_strip * width, diagonal = column - row, columns = a.size - column;
  const bool on_diagonal = diagonal >= 0;
  Real* const mine = a.template strip<width>(row_strip);
  const Real* const other = a.template strip<width>(column / width) + column % width;

  const auto entries = [&](int c) {
    return c < columns ? Strip::load(a.matrix + (column + c) * a.size + row, a.size - row) : Strip{};
  };
  Strip sum[kTile];
  SPARRING_UNROLL
  for (int c = 0; c < kTile; ++c) {
    sum[c] = Strip{};
    if (!on_diagonal) sum[c].subtract(entries(c));
  }
  for (int64_t k = 0; k < column; ++k) {
    const Strip factor = Strip::load(mine + k * width);
    SPARRING_UNROLL
    for (int c = 0; c < kTile; ++c) sum[c].subtract_product(factor, other[k * width + c]);
  }

  // Of the rows on the diagonal: R^T below it, and the reciprocals of the roots on it.
  Real corner[kTile][kTile];
  bool definite = true;
  if (on_diagonal) {
    SPARRING_UNROLL
    for (int c = 0; c < kTile; ++c) sum[c].store(mine + (column + c) * width);
    part.sync();
    SPARRING_UNROLL
    for (int c = 0; c < kTile; ++c)
      for (int e = c; e < kTile; ++e) corner[e][c] = other[(column + c) * width + e];
    part.sync();
    for (int c = 0; c < kTile && c < columns; ++c) {
      const Real* const line = a.matrix + (column + c) * a.size + column;
      corner[c][c] += a.shift - line[c];
      for (int e = c + 1; e < kTile && e < columns; ++e) corner[e][c] -= line[e];
      for (int e = c; e < kTile; ++e)
        for (int k = 0; k < c; ++k) corner[e][c] -= corner[e][k] * corner[c][k];
      definite &= corner[c][c] > 0 && corner[c][c] <= Float<Real>::largest;
      corner[c][c] = 1 / square_root(corner[c][c]);
      for (int e = c + 1; e < kTile; ++e) corner[e][c] *= corner[c][c];
    }
    if (columns <= kTile) return definite;  // no rows below
    SPARRING_UNROLL
    for (int c = 0; c < kTile; ++c) sum[c].subtract(entries(c));
  } else {
    SPARRING_UNROLL
    for (int c = 0; c < kTile; ++c)
      for (int e = c; e < kTile; ++e) corner[e][c] = other[(column + c) * width + e];
  }
  SPARRING_UNROLL
  for (int c = 0; c < kTile; ++c) {
    for (int k = 0; k < c; ++k) sum[c].subtract_product(sum[k], corner[c][k]);
    sum[c].scale(corner[c][c]);
    sum[c].store(mine + (column + c) * width);
    if (on_diagonal) Strip::store_one(mine + (column + c) * width, diagonal + c, corner[c][c]);
  }
  part.sync();
  return definite;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const PositiveDefinite<Real>& a, int64_t row, int64_t slot) {
  constexpr int width = Team::template Strip<Real, 2>::width;
  const Factor<Real> factor = {a.size, a.matrices + row * a.n, a.shift[row], a.scratch[slot]};
  uint8_t* const definite = a.definite + row;
  const int64_t strips = (a.size + width - 1) / width;
  const auto pass = [=](auto part, int64_t strip, int64_t begin, int64_t end) {
    bool passed = true;
    for (int64_t column = begin; passed && column < end; column += kTile) passed = factor_tile(part, factor, strip, column);
    return passed;
  };
  bool good = true;
  for (int64_t begin = 0; good && begin < a.size; begin += kPanel) {
    const int64_t end = smaller(begin + kPanel, a.size), last = (end + width - 1) / width;
    team.split(1, [=](auto part, int64_t) {
      bool passed = true;
      for (int64_t strip = begin / width; passed && strip < last; ++strip)
        passed = pass(part, strip, begin, smaller((strip + 1) * width, end));
      part.each(1, [=](int64_t) { *definite = passed ? 1 : 0; });
    });
    good = *definite != 0;
    if (good) team.split(strips - last, [=](auto part, int64_t strip) { pass(part, last + strip, begin, end); });
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
