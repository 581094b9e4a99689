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

  /// How far x may move in the direction of d; at least 0.
  SPARRING_FN Real room(Real x, Real d) const {
    const Real to_face = d < 0 ? x - lo : hi - x;
    return to_face > 0 ? to_face : Real(0);
  }

  /// The same, rounded towards zero: x plus or minus it stays inside in exact arithmetic.
  SPARRING_FN Real room_inside(Real x, Real d) const {
    const Real p = d < 0 ? x : hi, q = d < 0 ? lo : x;
    const Real difference = p - q;
    const Real back = difference - p;
    const Real error = (p - (difference - back)) - (q + back);  // p - q = difference + error, exactly (Knuth's TwoSum)
    const Real inside = error < 0 ? towards_zero(difference) : difference;
    return difference > 0 ? inside : Real(0);
  }
};

/// The largest Real that is at most v >= 0.
template <class Real>
SPARRING_FN Real round_down(double v) {
  const Real nearest = Real(v);
  return double(nearest) > v ? towards_zero(nearest) : nearest;
}

/// The threshold is anchor - shift: an entry keeps clip((m - anchor) + shift, 0, room). The difference from the anchor, a
/// magnitude near the threshold, is exact where it matters, so the shift resolves eps however small it is beside m.
struct Threshold {
  double anchor, shift;
};

/// Finds t with mass(t) ~ eps to working precision, mass falling from mass(0) > eps to mass(largest) = 0. Newton inside a
/// bracket; a step that leaves the bracket is replaced by halving it in the order of the floating-point numbers.
template <class Team, class Real>
SPARRING_FN Real newton_in_bracket(Team team, int64_t n, const Real* x, const Real* delta, double eps, Box<Real> box, Real start,
                                   Real largest) {
  constexpr double near_enough = 1e-4;  // relative to eps; refine() finishes in double
  Real below = 0, above = largest;
  Real t = (start > below) & (start < above) ? start : from_bits<Real>(bits(above) / 2);
  for (;;) {
    const Real at = t;
    const auto [mass, active] = team.sum2(n, [=](int64_t i) {
      const Real d = delta[i], over = magnitude(d) - at, room = box.room(x[i], d);
      const Real kept = over > 0 ? (over < room ? over : room) : Real(0);
      return Pair<Real>{kept, (over > 0) & (over < room) ? Real(1) : Real(0)};
    });
    const double excess = mass - eps;
    if (magnitude(excess) <= near_enough * eps) return t;
    if (excess > 0) below = t;
    if (excess < 0) above = t;
    if (bits(above) - bits(below) <= 1) return above;
    const Real next = Real(double(t) + excess / active);
    t = (next > below) & (next < above) ? next : from_bits<Real>(bits(below) + (bits(above) - bits(below)) / 2);
  }
}

/// The same search in double, for the shift below an anchor, until the sum is `target` to within `tolerance`.
template <class Team, class Real>
SPARRING_FN Threshold refine(Team team, int64_t n, const Real* x, const Real* delta, double target, double tolerance, Box<Real> box,
                             Threshold t) {
  double low = -1, high = t.anchor;  // shifts known to keep at most target (once low_known), at least target
  bool low_known = false;
  double reach = target / double(n);
  for (int step = 0; step < 200; ++step) {
    const Threshold at = t;
    const auto [mass, active] = team.sum2(n, [=](int64_t i) {
      const Real d = delta[i];
      const double over = (double(magnitude(d)) - at.anchor) + at.shift, room = box.room(x[i], d);
      const double kept = over > 0 ? (over < room ? over : room) : 0.0;
      return Pair<double>{kept, (over >= 0) & (over < room) ? 1.0 : 0.0};
    });
    const double excess = mass - target;
    if (magnitude(excess) <= tolerance) return t;
    if (excess > 0) {
      high = t.shift < high ? t.shift : high;
    } else {
      low = t.shift;
      low_known = true;
    }
    double next = t.shift - excess / active;
    const bool usable = (active > 0) & (next < high) & (!low_known | (next > low));
    if (!usable) {
      next = low_known ? low + (high - low) / 2 : high - reach;
      reach *= 4;
    }
    if (next == t.shift) return t;
    t.shift = next;
  }
  return Threshold{t.anchor, low_known ? low : t.shift};
}

template <class Team, class Real>
SPARRING_FN double write_kept(Team team, int64_t n, const Real* x, const Real* delta, Box<Real> box, Threshold t, Real* out) {
  return team.sum(n, [=](int64_t i) {
    const Real d = delta[i];
    const double over = (double(magnitude(d)) - t.anchor) + t.shift;
    const Real kept = round_down<Real>(over > 0 ? over : 0.0), room = box.room_inside(x[i], d);
    const Real v = kept < room ? kept : room;
    out[i] = v > 0 ? (d < 0 ? -v : v) : Real(0);
    return double(v);
  });
}

/// One row. Returns false, and writes NaN, if x or delta has an entry that is not finite.
template <class Team, class Real>
SPARRING_FN bool project_l1_box(Team team, int64_t n, const Real* x, const Real* delta, double eps, Box<Real> box, Real* out) {
  const auto whole = team.survey(n, [=](int64_t i) {
    const Real d = delta[i], m = magnitude(d), room = box.room(x[i], d);
    return Survey<Real>{m < room ? m : room, is_finite(d) & is_finite(x[i]) ? Real(0) : Real(1), m};
  });
  if (whole.count > 0) {
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  // Sums of n terms in float64 in any order err by at most n half units in the last place: leave that much below eps.
  const double target = n == 1 ? eps : eps * (1 - double(n + 2) * 0x1p-52);
  constexpr double doubt = 1e-4;  // the survey adds in Real
  Threshold t = {0, 0};
  if (target <= 0) {
    t.anchor = whole.largest;
  } else if (!(whole.sum * (1 + doubt) <= target)) {
    if (whole.sum * (1 - doubt) > target) {
      const double start = (whole.sum - eps) / double(n);  // t is at least this: it takes at most n t away (Michelot 1986)
      t.anchor = newton_in_bracket(team, n, x, delta, eps, box, Real(start), Real(whole.largest));
    }
    t = refine(team, n, x, delta, target, 1e-9 * eps, box, t);
  }
  // The threshold is right up to its own rounding; should what is written still exceed eps, lower the shift and write again.
  double margin = 0x1p-52 * eps;
  double written = write_kept(team, n, x, delta, box, t, out);
  while (written > target) {
    t.shift -= (written - target) / double(n) + margin;
    margin *= 2;
    written = write_kept(team, n, x, delta, box, t, out);
  }
  return true;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ProjectL1Box<Real>& a, int64_t row, int64_t /*slot*/) {
  const Box<Real> box = {a.lo, a.hi};
  if (!project_l1_box(team, a.n, a.x[row], a.delta[row], a.eps[row], box, a.out[row])) team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
