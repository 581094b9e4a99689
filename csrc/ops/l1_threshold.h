// The threshold of the projection onto an L1 ball cut by a box: t such that sum clip(m_i - t, 0, room_i) = eps, without a sort.
// That sum, the mass, falls piecewise linearly in t. Part of ops/project_l1_box.h, which says what the letters mean.
#pragma once

#include <type_traits>

#include "core/portable.h"
#include "team/results.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

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

/// The entries of a row, as the search sees them: how large they are, and how far they may go.
template <class Real>
struct Entries {
  const Real* x;
  const Real* delta;
  Box<Real> box;

  SPARRING_FN Real size(int64_t i) const { return magnitude(delta[i]); }
  SPARRING_FN Real room(int64_t i) const { return box.room(x[i], delta[i]); }
};

/// The sum that is wanted.
struct Window {
  double least, most;
};

/// A threshold at which more than eps is kept: how much, and by how many entries that are neither 0 nor at their room.
template <class Real>
struct Start {
  Real t;
  double mass, active;

  /// The mean of two Newton steps towards eps, on the mass (convex but for the box: too short) and on its logarithm (concave for
  /// tails lighter than exponential: too long); their errors are of second order and of opposite sign.
  SPARRING_FN double step(double eps) const { return ((mass - eps) + mass * __builtin_log(mass / eps)) / (2 * active); }
};

/// t with mass(t) ~ eps, by Newton steps inside a bracket. It stops near eps, and what is left of the step becomes the shift; if
/// exact, it sums in double, goes on until the bracket is closed, and returns the end that keeps at most eps.
template <bool exact, class Team, class Real>
SPARRING_FN Threshold<Real> newton_in_bracket(Team team, int64_t n, Entries<Real> entries, double eps, Start<Real> at,
                                              Real largest) {
  using Sum = std::conditional_t<exact, double, Real>;
  constexpr double near_enough = 1e-3;  // the last step is then good to its square
  Bracket<Real> bracket = {at.t, largest};
  const double at_least = double(at.t) + (at.mass - eps) / double(n);  // t takes at most n t away (Michelot 1986)
  typename Float<Real>::Bits last_width = 0;
  for (;;) {
    const double aim = double(at.t) + at.step(eps);
    const Real next = Real(aim > at_least ? aim : at_least);
    // Steps far below a unit in the last place of the magnitudes change nothing: after one that did not halve the bracket, halve it.
    const auto width = bracket.width();
    const bool creeps = exact && last_width != 0 && width > last_width / 2;
    last_width = width;
    const Real t = bracket.holds(next) && !creeps ? next : bracket.middle();
    const auto found = team.sum2(n, [=](int64_t i) {
      const Real over = entries.size(i) - t, kept = larger(smaller(over, entries.room(i)), Real(0));
      return Pair<Sum>{kept, kept == over ? Real(1) : Real(0)};
    });
    at = {t, found.first, found.second};
    (at.mass > eps ? bracket.below : bracket.above) = t;
    if (!exact && at.active > 0 && magnitude(at.mass - eps) <= near_enough * eps) return {t, -Real(at.step(eps))};
    if (bracket.width() <= 1) return {bracket.above, 0};
  }
}

/// Moves t.shift, but not to a threshold below `lowest`, until what is kept sums, in double, to within the window. False if that
/// cannot be reached from this anchor; the shift then keeps at most window.most if any that was tried does.
template <class Team, class Real>
SPARRING_FN bool settle(Team team, int64_t n, Entries<Real> entries, Window window, Real lowest, Threshold<Real>& t) {
  const double aim = window.least + (window.most - window.least) / 2;
  Bracket<Real> shift = {-t.anchor, t.anchor - lowest};
  bool feasible = false;
  for (int step = 0; step < 100; ++step) {
    const Threshold<Real> at = t;
    const double mass = team.sum(n, [=](int64_t i) { return double(at.kept(entries.size(i), entries.room(i))); });
    if ((mass >= window.least) & (mass <= window.most)) return true;
    (mass > window.most ? shift.above : shift.below) = t.shift;
    feasible = feasible || mass <= window.most;
    const int64_t active = team.count(n, [=](int64_t i) {
      const Real over = at.over(entries.size(i));
      return (over >= 0) & (over < entries.room(i));
    });
    const Real next = Real(double(t.shift) - (mass - aim) / double(active)), middle = shift.below + (shift.above - shift.below) / 2;
    t.shift = (active > 0) & shift.holds(next) ? next : middle;
    if (!shift.holds(t.shift) || (active == 0 && !feasible)) break;  // the shift's own resolution, or nothing near to move
  }
  t.shift = shift.below;
  return false;
}

/// The threshold at which what is kept sums to within the window; `start` keeps more.
template <class Team, class Real>
SPARRING_FN Threshold<Real> find_threshold(Team team, int64_t n, Entries<Real> entries, Start<Real> start, Real largest,
                                           Window window) {
  Threshold<Real> t = newton_in_bracket<false>(team, n, entries, window.most, start, largest);
  if (!settle(team, n, entries, window, start.t, t)) {
    // Where the mass is flat, or falls within one unit in the last place, the search has to be exact.
    t = newton_in_bracket<true>(team, n, entries, window.most, start, largest);
    settle(team, n, entries, window, start.t, t);
  }
  return t;
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE
