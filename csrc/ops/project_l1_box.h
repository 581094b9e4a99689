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

template <class Real>
SPARRING_FN Real kept_of(Real x, Real d, Box<Real> box, Threshold<Real> t) {
  const Real v = t.kept(magnitude(d), box.room_inside(x, d));
  return d < 0 ? Real(0) - v : v;
}

/// Most entries end as 0. Copies out those above a threshold that is probably too low; if they do keep too much there, the others
/// keep nothing, and all that is left to do passes over a few numbers. Returns false, and writes nothing, where that does not hold.
template <class Team, class Real>
SPARRING_FN bool project_few(Team team, int64_t n, Entries<Real> entries, Start<Real> start, Real largest, Window window,
                             Real* out) {
  constexpr int64_t capacity = 8192;
  Real x[capacity], delta[capacity];
  int32_t index[capacity];
  const Real low = Real(0.85 * start.step(window.most));
  if (!(low > 0 && low < largest)) return false;
  const int64_t few = team.copy_above(n, entries.x, entries.delta, low, capacity, x, delta, index);
  if (few <= 0) return false;
  const Entries<Real> copied = {x, delta, entries.box};
  const auto kept = team.sum2(few, [=](int64_t i) {
    const Real over = copied.size(i) - low, here = larger(smaller(over, copied.room(i)), Real(0));
    return Pair<double>{double(here), here == over ? 1.0 : 0.0};
  });
  if (!(kept.first > window.most)) return false;
  const auto t = find_threshold(team, few, copied, Start<Real>{low, kept.first, kept.second}, largest, window);
  team.each(n, [=](int64_t i) { out[i] = 0; });
  const int32_t* const to = index;
  team.each(few, [=](int64_t i) { out[to[i]] = kept_of(copied.x[i], copied.delta[i], copied.box, t); });
  return true;
}

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
    if constexpr (Team::copies)
      if (team.worth_copying(n) && project_few(team, n, entries, start, Real(whole.largest), window, out)) return true;
    t = find_threshold(team, n, entries, start, Real(whole.largest), window);
  }
  team.each(n, [=](int64_t i) { out[i] = kept_of(x[i], delta[i], box, t); });
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
