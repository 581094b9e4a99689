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

#include <type_traits>

#include "core/portable.h"
#include "core/tensor_view.h"
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
struct Box {
  Real lo, hi;

  /// How far x may move in the direction of d; negative where x lies outside.
  SPARRING_FN Real room(Real x, Real d) const { return d < 0 ? x - lo : hi - x; }

  /// The same, rounded down: x plus or minus it stays inside in exact arithmetic.
  SPARRING_FN Real room_inside(Real x, Real d) const {
    const Real p = d < 0 ? x : hi, q = d < 0 ? lo : x;
    const Real difference = p - q, back = difference - p;
    const Real error = (p - (difference - back)) - (q + back);  // p - q = difference + error, exactly (Knuth's TwoSum)
    return error < 0 ? towards_zero(difference) : difference;
  }
};

/// The threshold t = anchor - shift: an entry keeps clip((m - anchor) + shift, 0, room). The difference from the anchor, a
/// magnitude near t, is exact where it matters, so the shift resolves eps however small it is beside the magnitudes.
template <class Real>
struct Threshold {
  Real anchor, shift;

  SPARRING_FN Real over(Real m) const { return (m - anchor) + shift; }
  SPARRING_FN Real kept(Real m, Real room) const { return larger(smaller(over(m), room), Real(0)); }
};

template <class Real>
struct Bracket {
  Real below, above;  // mass(below) > eps >= mass(above); both >= 0

  SPARRING_FN bool holds(Real t) const { return (t > below) & (t < above); }
  /// How many floating-point numbers lie between the ends, plus one.
  SPARRING_FN typename Float<Real>::Bits width() const { return bits(above) - bits(below); }
  /// Halfway in the order of the floating-point numbers, so that no range of magnitudes is too wide.
  SPARRING_FN Real middle() const { return from_bits<Real>(bits(below) + width() / 2); }
};

/// t with mass(t) ~ eps, in a bracket. The mean of two Newton steps, on the mass (convex but for the box: too short) and on its
/// logarithm (concave for tails lighter than exponential: too long); their errors are of second order and of opposite sign.
/// `mass` and `active` are given for t = 0, where mass > eps. It stops near eps, and what is left of the step becomes the shift;
/// if exact, it sums in double, goes on until the bracket is closed, and returns the end that keeps at most eps.
template <bool exact, class Team, class Real>
SPARRING_FN Threshold<Real> newton_in_bracket(Team team, int64_t n, const Real* x, const Real* delta, double eps, Box<Real> box,
                                              double mass, double active, Real largest) {
  using Sum = std::conditional_t<exact, double, Real>;
  constexpr double near_enough = 1e-3;  // the last step is then good to its square
  Bracket<Real> bracket = {0, largest};
  const double at_least = (mass - eps) / double(n);  // t takes at most n t away (Michelot 1986)
  typename Float<Real>::Bits last_width = 0;
  Real t = 0;
  for (;;) {
    const double step = ((mass - eps) + mass * __builtin_log(mass / eps)) / (2 * active);
    if (!exact && active > 0 && t > 0 && magnitude(mass - eps) <= near_enough * eps) return {t, -Real(step)};
    const Real next = Real(double(t) + step > at_least ? double(t) + step : at_least);
    // Steps far below a unit in the last place of the magnitudes change nothing: after one that did not halve the bracket, halve it.
    const auto width = bracket.width();
    const bool creeps = exact && last_width != 0 && width > last_width / 2;
    last_width = width;
    t = bracket.holds(next) && !creeps ? next : bracket.middle();
    const Real at = t;
    const auto found = team.sum2(n, [=](int64_t i) {
      const Real d = delta[i], over = magnitude(d) - at, kept = larger(smaller(over, box.room(x[i], d)), Real(0));
      return Pair<Sum>{kept, kept == over ? Real(1) : Real(0)};
    });
    mass = found.first;
    active = found.second;
    (mass > eps ? bracket.below : bracket.above) = t;
    if (bracket.width() <= 1) return {bracket.above, 0};
  }
}

/// Moves t.shift until what is kept sums, in double, to within [least, most]. False if that cannot be reached from this anchor;
/// the shift then keeps at most `most` if any that was tried does.
template <class Team, class Real>
SPARRING_FN bool settle(Team team, int64_t n, const Real* x, const Real* delta, double least, double most, Box<Real> box,
                        Threshold<Real>& t) {
  const double aim = least + (most - least) / 2;
  Bracket<Real> shift = {-t.anchor, t.anchor};  // t >= 0: the shift is at most the anchor
  bool feasible = false;
  for (int step = 0; step < 100; ++step) {
    const Threshold<Real> at = t;
    const double mass = team.sum(n, [=](int64_t i) { return double(at.kept(magnitude(delta[i]), box.room(x[i], delta[i]))); });
    if ((mass >= least) & (mass <= most)) return true;
    (mass > most ? shift.above : shift.below) = t.shift;
    feasible = feasible || mass <= most;
    const int64_t active = team.count(n, [=](int64_t i) {
      const Real over = at.over(magnitude(delta[i]));
      return (over >= 0) & (over < box.room(x[i], delta[i]));
    });
    const Real next = Real(double(t.shift) - (mass - aim) / double(active)), middle = shift.below + (shift.above - shift.below) / 2;
    t.shift = (active > 0) & shift.holds(next) ? next : middle;
    if (!shift.holds(t.shift) || (active == 0 && !feasible)) break;  // the shift's own resolution, or nothing near to move
  }
  t.shift = shift.below;
  return false;
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
  Threshold<Real> t = {0, 0};
  const Real largest = Real(whole.largest);
  double mass = whole.sum;
  if (magnitude(mass - most) <= 1e-4 * most)  // a sum in Real cannot tell
    mass = team.sum(n, [=](int64_t i) { return double(t.kept(magnitude(delta[i]), box.room(x[i], delta[i]))); });
  if (eps <= 0) {
    t.anchor = largest;
  } else if (mass > most) {
    t = newton_in_bracket<false>(team, n, x, delta, eps, box, mass, whole.count, largest);
    if (!settle(team, n, x, delta, least, most, box, t)) {
      // Where the mass is flat, or falls within one unit in the last place, the search has to be exact.
      t = newton_in_bracket<true>(team, n, x, delta, most, box, mass, whole.count, largest);
      settle(team, n, x, delta, least, most, box, t);
    }
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
