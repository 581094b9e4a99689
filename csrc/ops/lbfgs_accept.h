// The first half of a step of L-BFGS in a box, for many problems at once: what becomes of the point that was tried.
//
// Minimises f(z) = weight penalty(z - x) - loss(z), lo <= z <= hi (ops/penalised.h). Given loss, gradient and margin at `trial`:
//
//   accepted    if f(trial) <= f(z) + 1e-4 g.(trial - z) + noise, with g the gradient of f at z and noise the rounding of the loss
//               (Armijo's rule along the segment; Nocedal & Wright, "Numerical optimization", 2006, section 3.1). Then trial becomes
//               z; s = trial - z and y = the change of -grad become the newest pair of the history, if s.y > 0.
//   rejected    else: trial moves back along the segment, to the minimum of the parabola through both values and the slope, but by a
//               half at least and nine tenths at most.
//
// y leaves the curvature of a squared penalty out, so that pairs stay true when the weight changes. A first point (`value` inf) is
// taken as it is. A point with margin > 0 that is nearer to x than `best` is noted there, accepted or not. Frozen rows stay as they
// are, with the verdict `rejected`.
#pragma once

#include "core/tensor_view.h"
#include "ops/penalised.h"

namespace sparring {

/// A trial went back along its segment; became z; became z and lowered f by `tolerance` |f| at most; or was given up, since no
/// step from z was small enough.
enum class Verdict : uint8_t { rejected, accepted, converged, stuck };

template <class Real>
struct LbfgsAccept {
  static constexpr int64_t kEntryWork = 4;

  int64_t rows, n;
  Penalty penalty;
  Rows<const Real> x, trial_grad;
  const Real *trial_loss, *trial_margin;
  const double* weight;
  const uint8_t* frozen;
  double tolerance;
  Rows<Real> trial, z, grad;  // grad: of the loss at z
  double *value, *distance;   // of the loss at z; penalty_sum there
  Real* margin;               // at z
  int64_t history;            // pairs at most
  Real *s, *y;                // (rows, history, n): pair number p lies at p % history
  int64_t *pairs, *shrinks;   // ever stored; since the last point that was accepted
  Rows<Real> best;
  double* best_distance;
  uint8_t* verdict;
};

namespace SPARRING_ISA_NAMESPACE {

template <Penalty penalty, class Team, class Real>
SPARRING_FN void lbfgs_accept(Team team, const LbfgsAccept<Real>& a, int64_t row) {
  constexpr int64_t kMostShrinks = 12;
  const int64_t n = a.n;
  const Real *const x = a.x[row], *const trial_grad = a.trial_grad[row];
  Real *const trial = a.trial[row], *const z = a.z[row], *const grad = a.grad[row], *const best = a.best[row];
  const double weight = a.weight[row], loss = double(a.trial_loss[row]), loss_before = a.value[row];
  const double distance_before = a.distance[row], best_distance = a.best_distance[row];
  const Real margin = a.trial_margin[row];
  const int64_t pairs = a.pairs[row], shrinks = a.shrinks[row];

  const double distance = penalty_sum<penalty>(team, n, x, trial);
  const auto largest = team.max(n, [=](int64_t i) { return bits(magnitude(trial_grad[i])); });
  const bool finite = is_finite(loss) & (largest <= bits(Float<Real>::largest));
  const bool nearer = finite & (margin > 0) & (distance < best_distance);
  if (nearer) team.each(n, [=](int64_t i) { best[i] = trial[i]; });

  const bool first = !is_finite(loss_before);
  bool accepted = finite, paired = false;
  double share = 0, fallen = 0, now = 0;
  if (!first) {
    const auto f = penalised<penalty>(team, n, x, static_cast<const Real*>(z), static_cast<const Real*>(grad), weight,
                                      distance_before, Real(0), Real(0));
    const double slope = team.sum(n, [=](int64_t i) { return f.gradient(i) * (trial[i] - z[i]); });
    const double before = weight * penalty_value<penalty>(distance_before) - loss_before;
    now = weight * penalty_value<penalty>(distance) - loss;
    fallen = before - now;
    accepted = finite & (fallen >= -1e-4 * slope - 4 * Float<Real>::epsilon * magnitude(loss_before));
    // The parabola's minimum, as a share of the segment.
    const double bend = 2 * (slope + fallen);
    share = finite & (bend < 0) ? slope / bend : 0.1;
    share = share < 0.1 ? 0.1 : share > 0.5 ? 0.5 : share;
  }
  if (accepted & !first) {
    const double curvature = penalty_curvature<penalty>(weight, distance);
    const auto pair = team.sum2(n, [=](int64_t i) {
      const Real s = trial[i] - z[i];
      return Pair<Real>{s * (grad[i] - trial_grad[i]), s * s};
    });
    paired = pair.first + curvature * pair.second > 0;
    if (paired) {
      const int64_t at = (row * a.history + pairs % a.history) * n;
      Real *const s = a.s + at, *const y = a.y + at;
      team.each(n, [=](int64_t i) {
        s[i] = trial[i] - z[i];
        y[i] = grad[i] - trial_grad[i];
      });
    }
  }
  const bool stuck = accepted ? false : first | (shrinks >= kMostShrinks);
  if (accepted) {
    team.each(n, [=](int64_t i) {
      z[i] = trial[i];
      grad[i] = trial_grad[i];
    });
  } else if (!first) {
    const Real back = Real(share);
    team.each(n, [=](int64_t i) { trial[i] = z[i] + back * (trial[i] - z[i]); });
  }
  const bool converged = accepted & !first & (fallen <= a.tolerance * magnitude(now));
  team.each(1, [=](int64_t) {
    if (nearer) a.best_distance[row] = distance;
    if (accepted) {
      a.value[row] = loss;
      a.distance[row] = distance;
      a.margin[row] = margin;
    }
    a.pairs[row] = pairs + (paired ? 1 : 0);
    a.shrinks[row] = accepted | stuck ? 0 : shrinks + 1;
    a.verdict[row] = uint8_t(stuck       ? Verdict::stuck
                             : converged ? Verdict::converged
                             : accepted  ? Verdict::accepted
                                         : Verdict::rejected);
  });
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const LbfgsAccept<Real>& a, int64_t row, int64_t /*slot*/) {
  if (a.frozen[row] != 0) {
    team.each(1, [=](int64_t) { a.verdict[row] = uint8_t(Verdict::rejected); });
    return;
  }
  switch (a.penalty) {
    case Penalty::squared_l2:
      return lbfgs_accept<Penalty::squared_l2>(team, a, row);
    case Penalty::l2:
      return lbfgs_accept<Penalty::l2>(team, a, row);
    case Penalty::l1:
      return lbfgs_accept<Penalty::l1>(team, a, row);
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
