// One step of the search for sparse fooling images, in place: gradient or Adam step, L1 penalty, clamp, floor, mask.
//
// Minimises, for every row on its own, loss(image) + lam |image - black|_1 / n, given grad = the gradient of the loss alone:
//
//   g = grad + lam / n sign(image - black)   if the penalty is a subgradient; g = grad if it is a soft threshold
//   Adam:   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  rate = lr / (sqrt(v / (1 - b2^step)) + adam_eps),  g <- m / (1 - b1^step)
//   plain:  rate = lr
//   image <- image - rate g;  soft threshold: image - black shrinks towards 0 by rate lam / n, which is the exact proximal map in
//   Adam's diagonal metric (Kingma & Ba 2015; Parikh & Boyd 2014, "Proximal algorithms", section 6.5)
//   then: clamp to [lo, hi]; entries nearer to black than floor become black.
//
// Entries with mask 0 are set to black and their moments stay. Frozen rows, and rows whose image or gradient is not finite, are
// left as they are; the latter are reported in bad_row.
#pragma once

#include "core/portable.h"
#include "core/tensor_view.h"

namespace sparring {

template <class Real>
struct RecoveryStep {
  int64_t rows, n;
  Rows<Real> image, exp_avg, exp_avg_sq;  // moments: null for plain steps
  Rows<const Real> grad;
  Rows<const uint8_t> mask;  // null: nothing is held
  const uint8_t* frozen;     // one a row; null: none
  PerRow<double> lr, lam;
  bool soft_threshold;
  double beta1, beta2, adam_eps;
  int64_t step;  // from 1
  Real black, lo, hi, floor;
  int64_t* bad_row;
};

namespace SPARRING_ISA_NAMESPACE {

/// The numbers of a step that are the same for all entries of a row.
template <class Real>
struct RecoveryRow {
  Real lr, subgradient, threshold;              // one of the last two is 0; the threshold is for rate 1
  Real beta1, rest1, beta2, rest2, adam_eps;    // rest = 1 - beta
  Real unbias1, unbias2;                        // 1 / (1 - beta1^step), 1 / sqrt(1 - beta2^step)
  Real black, lo, hi, floor;
};

template <class Real>
SPARRING_FN Real penalised(Real grad, Real image, const RecoveryRow<Real>& c) {
  const Real above = image - c.black;
  return grad + (above > 0 ? c.subgradient : above < 0 ? -c.subgradient : Real(0));
}

/// From the step that the loss alone asks for to the new entry.
template <class Real>
SPARRING_FN Real sparse_entry(Real moved, Real rate, const RecoveryRow<Real>& c) {
  const Real from_black = moved - c.black, left = magnitude(from_black) - rate * c.threshold;
  const Real shrunk = c.black + (left > 0 ? (from_black < 0 ? -left : left) : Real(0));
  const Real raised = shrunk > c.lo ? shrunk : c.lo, inside = raised < c.hi ? raised : c.hi;
  return magnitude(inside - c.black) < c.floor ? c.black : inside;
}

/// One row. Returns false, and changes nothing, if the image or its gradient has an entry that is not finite.
template <class Team, class Real, bool adam, bool masked>
SPARRING_FN bool recovery_step(Team team, int64_t n, Real* image, const Real* grad, Real* m, Real* v, const uint8_t* mask,
                               RecoveryRow<Real> c) {
  if (team.count(n, [=](int64_t i) { return !(is_finite(image[i]) & is_finite(grad[i])); }) > 0) return false;
  team.each(n, [=](int64_t i) {
    const bool held = masked ? mask[i] == 0 : false;
    const Real old = image[i], g = penalised(grad[i], old, c);
    Real rate = c.lr, direction = g;
    if constexpr (adam) {
      const Real m_new = c.beta1 * m[i] + c.rest1 * g, v_new = c.beta2 * v[i] + c.rest2 * (g * g);
      m[i] = held ? m[i] : m_new;
      v[i] = held ? v[i] : v_new;
      rate = c.lr / (square_root(v_new) * c.unbias2 + c.adam_eps);
      direction = m_new * c.unbias1;
    }
    const Real entry = sparse_entry(old - rate * direction, rate, c);
    image[i] = held ? c.black : entry;
  });
  return true;
}

SPARRING_FN double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base) result *= exponent & 1 ? base : 1.0;
  return result;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const RecoveryStep<Real>& a, int64_t row, int64_t /*slot*/) {
  if (a.frozen != nullptr && a.frozen[row] != 0) return;
  const double lam = a.lam[row] / double(a.n);
  const RecoveryRow<Real> c = {
      Real(a.lr[row]),
      Real(a.soft_threshold ? 0 : lam),
      Real(a.soft_threshold ? lam : 0),
      Real(a.beta1),
      Real(1 - a.beta1),
      Real(a.beta2),
      Real(1 - a.beta2),
      Real(a.adam_eps),
      Real(1 / (1 - power(a.beta1, a.step))),
      Real(1 / square_root(1 - power(a.beta2, a.step))),
      a.black,
      a.lo,
      a.hi,
      a.floor,
  };
  Real* const image = a.image[row];
  const Real* const grad = a.grad[row];
  Real *const m = a.exp_avg[row], *const v = a.exp_avg_sq[row];
  const uint8_t* const mask = a.mask[row];
  const bool adam = m != nullptr;
  const bool finite = adam ? (mask ? recovery_step<Team, Real, true, true>(team, a.n, image, grad, m, v, mask, c)
                                   : recovery_step<Team, Real, true, false>(team, a.n, image, grad, m, v, mask, c))
                           : (mask ? recovery_step<Team, Real, false, true>(team, a.n, image, grad, m, v, mask, c)
                                   : recovery_step<Team, Real, false, false>(team, a.n, image, grad, m, v, mask, c));
  if (!finite) team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
