// Nearest perturbation with at most k changed entries, or pixels, in the box.
//
// For one row of n = channels * places numbers, channel first (channel c of place p is entry c * places + p):
//
//   out = the v nearest to delta (in the Euclidean norm) with lo <= x + v <= hi that is not 0 in at most k places.
//
// Within the box alone the nearest point is u_i = sign(delta_i) min(|delta_i|, room_i), room_i = the way from x_i to the face that
// delta_i points at. To keep the entries of a place instead of 0 there brings the distance's square down by its
//
//   gain_p = sum over c of delta_i^2 - (delta_i - u_i)^2 = sum over c of |u_i| (2 |delta_i| - |u_i|),  i = c * places + p,
//
// so that v keeps the k places of largest gain (equal ones by index, lowest first), and is 0 elsewhere. Nothing is sorted
// (ops/selection.h).
//
// Promises: exactly that, gains in double, scaled by a power of two so that none overflows (places whose gain is less than 1e-300
// of the largest tie); x + v leaves the box by no rounding; k = 0, k >= places, infinite bounds. A row with NaN or inf in x or delta
// comes back as NaN throughout and is reported in bad_row. x outside the box counts as having no room on that side. out may be delta.
#pragma once

#include "ops/project_l1_box.h"
#include "ops/selection.h"

namespace sparring {

template <class Real>
struct ProjectL0Box {
  int64_t rows, n, channels;  // channels divide n
  Rows<const Real> delta, x;
  PerRow<int64_t> k;  // >= 0
  Real lo, hi;
  Rows<Real> out;
  Rows<double> scratch;  // a row of n / channels for each team that works at the same time
  int64_t* bad_row;
};

namespace SPARRING_ISA_NAMESPACE {

/// The power of two that brings a number >= 0 to about 1, as far as there is one.
SPARRING_FN double scale_to_one(double largest) {
  const uint64_t exponent = bits(largest) >> 52;  // biased by 1023
  const uint64_t inverse = exponent < 23 ? 2023 : 2046 - exponent;
  return from_bits<double>((inverse > 0 ? inverse : 1) << 52);
}

/// What it brings to keep an entry: the square of its distance from delta as 0, less that as nearest point of the box.
template <class Real>
SPARRING_FN double gain_of(Real x, Real d, Box<Real> box, double scale) {
  const double room = d < 0 ? double(x) - double(box.lo) : double(box.hi) - double(x), m = magnitude(double(d));
  const double size = m * scale, kept = smaller(m, room) * scale, gain = kept * (2 * size - kept);
  constexpr double kLeast = 0x1p-1022;  // what can be kept at all comes before what cannot
  return (m > 0) & (room > 0) ? larger(gain, kLeast) : 0.0;
}

/// One row. Returns false, and writes NaN, if an entry is not finite. `gains` is scratch.
template <class Team, class Real>
SPARRING_FN bool project_l0_box(Team team, int64_t n, int64_t channels, const Real* x, const Real* delta, int64_t k, Box<Real> box,
                                double* gains, Real* out) {
  using Key = typename Float<Real>::Bits;
  const Key largest = team.max(n, [=](int64_t i) { return is_finite(x[i]) ? bits(magnitude(delta[i])) : ~Key(0); });
  if (largest > bits(Float<Real>::largest)) {  // as the bits of inf and of NaN are
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  const double scale = scale_to_one(double(from_bits<Real>(largest)));
  const int64_t places = n / channels;
  const auto gain_in = [=](int64_t c, int64_t p) { return gain_of(x[c * places + p], delta[c * places + p], box, scale); };
  for (int64_t c = 1; c < channels; ++c)
    team.each(places, [=](int64_t p) { gains[p] = (c == 1 ? gain_in(0, p) : gains[p]) + gain_in(c, p); });
  const auto whole = team.survey(places, [=](int64_t p) {
    const double gain = channels == 1 ? gain_in(0, p) : gains[p];
    gains[p] = gain;
    return Survey<double>{gain, gain > 0 ? 1.0 : 0.0, gain};
  });
  const auto best = largest_of(team, places, gains, k, whole);
  for (int64_t c = 0; c < channels; ++c) {
    const Real *const d = delta + c * places, *const at = x + c * places;
    Real* const v = out + c * places;
    team.each(places, [=](int64_t p) {
      const Real kept = kept_of(at[p], d[p], box, Threshold<Real>{0, 0});
      v[p] = best.holds(gains[p], p) ? kept : Real(0);
    });
  }
  return true;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ProjectL0Box<Real>& a, int64_t row, int64_t slot) {
  const Box<Real> box = {a.lo, a.hi};
  if (!project_l0_box(team, a.n, a.channels, a.x[row], a.delta[row], a.k[row], box, a.scratch[slot], a.out[row]))
    team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
