// The second half of a step of L-BFGS in a box, for many problems at once: which point to try next.
//
// Minimises f(z) = weight penalty(z - x) - loss(z), lo <= z <= hi (ops/penalised.h), from z with the gradient of the loss there and
// the pairs that ops/lbfgs_accept.h stored. Entries that are at an end and would leave are held; among the others, with g the
// gradient of f and every vector restricted to them,
//
//   d = -H g,  H by the two loops over the pairs (s, y + curvature s), newest first, then oldest first (Nocedal, "Updating
//   quasi-Newton matrices with limited storage", Math. Comp. 35, 1980), from H = s.y / y.y of the newest pair,
//
// as in projected quasi-Newton methods (Schmidt, Kim & Sra, "Projected Newton-type methods", 2011, section 11.4). Pairs without
// curvature among the free entries are passed over. trial = the nearest point of the box to z + t d, with t = 1, 1/4, 1/16, ...
// until that is a direction of descent, then along -g. Without a pair, d has a root mean square of `first_step` at most.
// Where nothing can fall, trial = z. Rows that are not `wanted` are left as they are.
#pragma once

#include "core/tensor_view.h"
#include "ops/penalised.h"

namespace sparring {

template <class Real>
struct LbfgsDirection {
  static constexpr int64_t kEntryWork = 16;
  static constexpr int64_t kMostPairs = 16;

  int64_t rows, n;
  Penalty penalty;
  Rows<const Real> x, z, grad;
  const double *weight, *distance;  // distance: penalty_sum at z
  const uint8_t* wanted;
  int64_t history;
  const Real *s, *y;
  const int64_t* pairs;
  double first_step;
  Real lo, hi;
  Rows<Real> trial;
  Rows<Real> scratch;  // n numbers a slot
};

namespace SPARRING_ISA_NAMESPACE {

template <Penalty penalty, class Team, class Real>
SPARRING_FN void lbfgs_direction(Team team, const LbfgsDirection<Real>& a, int64_t row, Real* free) {
  const int64_t n = a.n, history = a.history, stored = a.pairs[row];
  const int64_t count = stored < history ? stored : history;
  const Real *const z = a.z[row], *const s_row = a.s + row * history * n, *const y_row = a.y + row * history * n;
  Real* const d = a.trial[row];  // minus the direction, until the end
  const auto f = penalised<penalty>(team, n, a.x[row], z, a.grad[row], a.weight[row], a.distance[row], a.lo, a.hi);
  const Real curvature = f.curvature;

  const double steepness = team.sum(n, [=](int64_t i) {
    const Real g = f.gradient(i);
    free[i] = f.held(i, g) ? Real(0) : Real(1);
    d[i] = free[i] * g;
    return double(d[i]) * double(d[i]);
  });
  const auto descend = [=](double step) {
    // Slope of the segment from z to where the step ends.
    const Real t = Real(step);
    return team.sum(n, [=](int64_t i) {
      const Real g = f.gradient(i);
      return g * (f.moved(i, g, -t * d[i]) - z[i]);
    });
  };

  double share[LbfgsDirection<Real>::kMostPairs], bend[LbfgsDirection<Real>::kMostPairs], scale = 0;
  for (int64_t back = 1; back <= count; ++back) {
    const int64_t at = (stored - back) % history;
    const Real *const s = s_row + at * n, *const y = y_row + at * n;
    const auto sums = team.sum2(n, [=](int64_t i) {
      const Real change = free[i] * (y[i] + curvature * s[i]);
      return Pair<Real>{s[i] * change, s[i] * d[i]};
    });
    bend[at] = sums.first;
    share[at] = sums.second / sums.first;
    if (!((bend[at] > 0) & is_finite(share[at]))) {
      bend[at] = 0;
      continue;
    }
    if (scale == 0) {
      scale = sums.first / team.sum(n, [=](int64_t i) {
        const Real change = free[i] * (y[i] + curvature * s[i]);
        return change * change;
      });
      scale = is_finite(scale) ? scale : 0;
    }
    const Real part = Real(share[at]);
    team.each(n, [=](int64_t i) { d[i] -= part * free[i] * (y[i] + curvature * s[i]); });
  }
  // Without curvature: as far as the penalty's own allows, or as `first_step` does.
  const double first = a.first_step * square_root(double(n) / (steepness > 0 ? steepness : 1));
  const double plain = first * double(curvature) > 1 ? 1 / double(curvature) : first;
  if (scale > 0) {
    const Real by = Real(scale);
    team.each(n, [=](int64_t i) { d[i] *= by; });
    for (int64_t back = count; back >= 1; --back) {
      const int64_t at = (stored - back) % history;
      if (bend[at] == 0) continue;
      const Real *const s = s_row + at * n, *const y = y_row + at * n;
      const double along = team.sum(n, [=](int64_t i) { return d[i] * (y[i] + curvature * s[i]); });
      const Real part = Real(share[at] - along / bend[at]);
      team.each(n, [=](int64_t i) { d[i] += part * free[i] * s[i]; });
    }
  }
  double step = scale > 0 ? 1 : plain;
  for (int tries = 0; !(descend(step) < 0); ++tries) {
    step /= 4;
    if (tries < 4) continue;
    team.each(n, [=](int64_t i) { d[i] = free[i] * f.gradient(i); });
    step = plain;
    break;
  }
  const Real t = Real(step);
  team.each(n, [=](int64_t i) { d[i] = f.moved(i, f.gradient(i), -t * d[i]); });
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const LbfgsDirection<Real>& a, int64_t row, int64_t slot) {
  if (a.wanted[row] == 0) return;
  switch (a.penalty) {
    case Penalty::squared_l2:
      return lbfgs_direction<Penalty::squared_l2>(team, a, row, a.scratch[slot]);
    case Penalty::l2:
      return lbfgs_direction<Penalty::l2>(team, a, row, a.scratch[slot]);
    case Penalty::l1:
      return lbfgs_direction<Penalty::l1>(team, a, row, a.scratch[slot]);
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
