// A penalty on the distance from a centre, less a loss that is to rise, in a box: what a quasi-Newton method asks of it.
//
//   f(z) = weight penalty(z - x) - loss(z),  lo <= z <= hi,  penalty(r) = |r|_2^2, |r|_2 or |r|_1
//
// Where f has a kink, `gradient` is the subgradient of least length (so that minus it is a direction of descent, or it is 0), and
// for |r|_1 the box shrinks to the orthant around x on the side of the step, where f is smooth (Andrew & Gao, "Scalable training of
// L1-regularized log-linear models", ICML 2007).
#pragma once

#include "core/portable.h"
#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

enum class Penalty : int64_t { squared_l2, l2, l1 };

namespace SPARRING_ISA_NAMESPACE {

/// penalty(z - x) of a row; for |r|_2 its square, which orders the same and is finished by `penalty_value`.
template <Penalty penalty, class Team, class Real>
SPARRING_FN double penalty_sum(Team team, int64_t n, const Real* x, const Real* z) {
  return team.sum(n, [=](int64_t i) {
    const double r = double(z[i]) - double(x[i]);
    return penalty == Penalty::l1 ? magnitude(r) : r * r;
  });
}

template <Penalty penalty>
SPARRING_FN double penalty_value(double sum) {
  return penalty == Penalty::l2 ? square_root(sum) : sum;
}

/// The penalty's gradient is this times r = z - x; |r|_1 has none such. Of |r|_2 it is more than the curvature, along r.
template <Penalty penalty>
SPARRING_FN double penalty_curvature(double weight, double sum) {
  if constexpr (penalty == Penalty::squared_l2) return 2 * weight;
  if constexpr (penalty == Penalty::l2) return sum > 0 ? weight / square_root(sum) : 0;
  return 0;
}

/// f around a point z, given the loss's gradient there.
template <Penalty penalty, class Real>
struct Penalised {
  const Real *x, *z, *grad;
  Real lo, hi;
  Real curvature;  // penalty_curvature
  Real kink;       // of |r|_1: the weight
  Real left;       // of |r|_2, at r = 0: the share of the loss's gradient that the penalty leaves

  SPARRING_FN Real gradient(int64_t i) const {
    const Real r = z[i] - x[i];
    if constexpr (penalty == Penalty::l1) {
      const Real over = larger(magnitude(grad[i]) - kink, Real(0));
      return r == 0 ? with_sign(over, -grad[i]) : with_sign(kink, r) - grad[i];
    } else {
      return curvature * r - left * grad[i];
    }
  }

  /// Ends of what z_i may move to, given the gradient.
  SPARRING_FN Real low(int64_t i, Real gradient) const {
    if constexpr (penalty != Penalty::l1) return lo;
    const bool above = (z[i] > x[i]) | ((z[i] == x[i]) & (gradient <= 0));
    return above ? x[i] : lo;
  }
  SPARRING_FN Real high(int64_t i, Real gradient) const {
    if constexpr (penalty != Penalty::l1) return hi;
    const bool below = (z[i] < x[i]) | ((z[i] == x[i]) & (gradient >= 0));
    return below ? x[i] : hi;
  }

  /// Whether z_i is at an end and would leave.
  SPARRING_FN bool held(int64_t i, Real gradient) const {
    return ((z[i] <= low(i, gradient)) & (gradient >= 0)) | ((z[i] >= high(i, gradient)) & (gradient <= 0));
  }

  /// z_i + step, or the end that is passed on the way.
  SPARRING_FN Real moved(int64_t i, Real gradient, Real step) const {
    return smaller(larger(z[i] + step, low(i, gradient)), high(i, gradient));
  }
};

/// `sum` is penalty_sum at z.
template <Penalty penalty, class Team, class Real>
SPARRING_FN Penalised<penalty, Real> penalised(Team team, int64_t n, const Real* x, const Real* z, const Real* grad, double weight,
                                               double sum, Real lo, Real hi) {
  Penalised<penalty, Real> f = {x, z, grad, lo, hi, Real(penalty_curvature<penalty>(weight, sum)), Real(weight), Real(1)};
  if constexpr (penalty == Penalty::l2) {
    if (sum == 0) {
      const double steepness = square_root(team.sum(n, [=](int64_t i) { return double(grad[i]) * double(grad[i]); }));
      f.left = steepness > weight ? Real(1 - weight / steepness) : Real(0);
    }
  }
  return f;
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
