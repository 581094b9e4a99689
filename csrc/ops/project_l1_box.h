// Nearest point of the L1 ball cut by the box.
//
// For one row of n numbers: out = the v nearest to delta (in the Euclidean norm) with |v|_1 <= eps and lo <= x + v <= hi,
//
//   v_i = sign(delta_i) clip(m_i - t, 0, room_i),   m_i = |delta_i|,   room_i = the way from x_i to the face delta_i points at,
//
// with t = 0 if that fits into the ball, else t > 0 such that sum |v_i| = eps (Croce & Hein 2021, "Mind the box: L1-APGD for
// sparse adversarial attacks on image classifiers", appendix A; they sort the 2n break points, this code sorts nothing).
//
// Promises: the exact sum of |v_i| is at most eps, with room for whatever order of additions in float64 one checks it in;
// x + v leaves the box by no rounding; n = 1, eps = 0, eps = inf, infinite bounds, |delta| / eps from 1e-20 to 1e20.
// A row with NaN or inf in x or delta comes back as NaN throughout and is reported in bad_row.
// x outside the box counts as having no room on that side. out may be delta.
#pragma once

#include "core/portable.h"
#include "core/tensor_view.h"
#include "ops/l1_threshold.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct ProjectL1Box {
  int64_t rows, n;
  Rows<const Real> delta, x;
  PerRow<double> eps;  // >= 0
  Real lo, hi;
  Rows<Real> out;
  int64_t* bad_row;  // the lowest row with NaN or inf is written here if it is below what stands there
};

namespace SPARRING_ISA_NAMESPACE {

/// One row. Returns false, and writes NaN, if x or delta has an entry that is not finite. first(i) is called once for every entry,
/// before delta[i] is read, and returns it.
template <class Team, class Real, class First>
SPARRING_FN bool project_l1_box(Team team, int64_t n, const Real* x, First first, const Real* delta, double eps, Box<Real> box,
                                Real* out) {
  const auto whole = team.survey(n, [=](int64_t i) {
    const Real d = first(i), m = magnitude(d), kept = larger(smaller(m, box.room(x[i], d)), Real(0));
    return Survey<Real>{is_finite(d) & is_finite(x[i]) ? kept : not_a_number<Real>(), (m > 0) & (m == kept) ? Real(1) : Real(0), m};
  });
  if (whole.sum != whole.sum) {
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  // Sums of n terms in float64, in any order, err by at most n half units in the last place: stay that much below eps.
  const double most = n == 1 ? eps : eps * (1 - double(n + 2) * 0x1p-52);
  const double least = most - eps * (sizeof(Real) == 4 ? 0x1p-22 : double(n + 2) * 0x1p-51);
  const Window window = {least, most};
  const Entries<Real> entries = {x, delta, box};
  Start<Real> start = {0, whole.sum, whole.count};
  if (magnitude(start.mass - most) <= 1e-4 * most)  // a sum in Real cannot tell
    start.mass = team.sum(n, [=](int64_t i) { return double(larger(smaller(entries.size(i), entries.room(i)), Real(0))); });
  Threshold<Real> t = {0, 0};
  if (eps <= 0) {
    t.anchor = Real(whole.largest);
  } else if (start.mass > most) {
    t = find_threshold(team, n, entries, start, Real(whole.largest), window);
  }
  team.each(n, [=](int64_t i) {
    const Real d = delta[i], v = t.kept(magnitude(d), box.room_inside(x[i], d));
    out[i] = d < 0 ? Real(0) - v : v;
  });
  return true;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ProjectL1Box<Real>& a, int64_t row, int64_t /*slot*/) {
  const Box<Real> box = {a.lo, a.hi};
  const Real* const delta = a.delta[row];
  const auto as_given = [=](int64_t i) { return delta[i]; };
  if (!project_l1_box(team, a.n, a.x[row], as_given, delta, a.eps[row], box, a.out[row])) team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
