// Whether the Cholesky factorisation of every one of many matrices c I - G runs to its end in floating point: the computation on which a
// proof rests that no eigenvalue of G is much above c.
//
// A = fl(c I - G): the diagonal c - g_ii is rounded once, the rest is exact. With R_jj = fl(sqrt(s_jj)), rho_j = fl(1 / R_jj),
// R_ji = fl(s_ji rho_j), where s_ji is a_ji - sum over k < j of r_kj r_ki as computed; "runs to its end" means that every s_jj, from which a
// root is taken, is finite and > 0.
//
// What may be relied on (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, Lemma 8.4 and Theorem 10.3; Rump, "Verification of
// positive definiteness", BIT 46, 2006): if it does, then A + E = R^T R with |E| <= gamma_(m+3) |R|^T |R| entry by entry, apart from
// underflow. Every s_ji is a sum of j terms a_ji, r_kj r_ki that starts at a_ji, so that s_ji = a_ji - sum r_kj r_ki (1 + d_k) divided by
// 1 + d, with at most j roundings in each; the product by rho_j instead of a quotient makes it r_ji R_jj = s_ji (1 + d)(1 + d'), one
// rounding more than a quotient does, and a root r_jj^2 = s_jj (1 + d)^2 likewise. So |E_ji| <= gamma_(j+2) (|R|^T |R|)_ji. Fused
// multiplications and additions (CUDA) only save roundings. A product that underflows adds the smallest subnormal number, and one with
// rho_j that times R_jj: as in Rump's terms. Neither roots nor their reciprocals can under- or overflow.
//
// Of the symmetric matrix the entries above the diagonal and on it are read. NaN and inf there end it, as does a c that is NaN or inf.
//
// Left-looking, in tiles of a strip of entries of four columns of R^T, each a sum in registers over all columns before. Columns go in
// panels: a strip passes through all columns of a panel while it is near, its predecessors in the panel having gone first. R^T lies in
// strips: of rows i in [w I, w I + w), w the width of a strip, w numbers for every column up to the last of these rows, with 1 / R_jj in
// place of R_jj. Rows and columns past the last are those of a unit matrix.
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

  template <int width>
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
  const int64_t row = row_strip * width, diagonal = column - row, real_rows = a.size - row;
  const bool on_diagonal = diagonal >= 0;
  Real* const mine = a.template strip<width>(row_strip);
  const Real* const other = a.template strip<width>(column / width) + column % width;

  Strip sum[kTile];
  for (int c = 0; c < kTile; ++c) {
    const bool real = column + c < a.size;
    sum[c] = real ? Strip::load(a.matrix + (column + c) * a.size + row, real_rows) : Strip{};
    sum[c].scale(-1);
    if (on_diagonal) sum[c].add_to_one(diagonal + c, real ? a.shift : Real(1));
  }
  for (int64_t k = 0; k < column; ++k) {
    const Strip factor = Strip::load(mine + k * width);
    for (int c = 0; c < kTile; ++c) sum[c].subtract_product(factor, other[k * width + c]);
  }

  // Of the rows on the diagonal: R^T below it, and the reciprocals of the roots on it.
  Real corner[kTile][kTile];
  bool definite = true;
  if (on_diagonal) {
    for (int c = 0; c < kTile; ++c) sum[c].store(mine + (column + c) * width);
    part.sync();
    for (int c = 0; c < kTile; ++c)
      for (int e = c; e < kTile; ++e) corner[e][c] = other[(column + c) * width + e];
    part.sync();
    for (int c = 0; c < kTile; ++c) {
      for (int e = c; e < kTile; ++e)
        for (int k = 0; k < c; ++k) corner[e][c] -= corner[e][k] * corner[c][k];
      definite &= corner[c][c] > 0 && corner[c][c] <= Float<Real>::largest;
      corner[c][c] = 1 / square_root(corner[c][c]);
      for (int e = c + 1; e < kTile; ++e) corner[e][c] *= corner[c][c];
    }
  } else {
    for (int c = 0; c < kTile; ++c)
      for (int e = c; e < kTile; ++e) corner[e][c] = other[(column + c) * width + e];
  }
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
    bool good = true;
    for (int64_t column = begin; good && column < end; column += kTile) good = factor_tile(part, factor, strip, column);
    return good;
  };
  bool good = true;
  for (int64_t begin = 0; good && begin < a.size; begin += kPanel) {
    const int64_t first = begin / width, last = (begin + kPanel) / width < strips ? (begin + kPanel) / width : strips;
    team.split(1, [=](auto part, int64_t) {
      bool passed = true;
      for (int64_t strip = first; passed && strip < last; ++strip) passed = pass(part, strip, begin, (strip + 1) * width);
      part.each(1, [=](int64_t) { *definite = passed ? 1 : 0; });
    });
    good = *definite != 0;
    if (good) team.split(strips - last, [=](auto part, int64_t s) { pass(part, last + s, begin, begin + kPanel); });
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
