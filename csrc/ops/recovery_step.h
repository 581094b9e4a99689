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
  double unbias1, unbias2;  // 1 / (1 - beta1^step), 1 / sqrt(1 - beta2^step)
  Real black, lo, hi, floor;
  int64_t* bad_row;
};

namespace SPARRING_ISA_NAMESPACE {

/// The numbers of a step that are the same for all entries of a row.
template <class Real>
struct RecoveryRow {
  Real lr, penalty;                           // penalty = lam / n
  Real beta1, rest1, beta2, rest2, adam_eps;  // rest = 1 - beta
  Real unbias1, unbias2;
  Real black, lo, hi, floor;
};

struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};

/// The variants of a step, each with a loop of its own.
template <bool adam_, bool soft_threshold_, bool masked_>
struct Variant {
  static constexpr bool adam = adam_, soft_threshold = soft_threshold_, masked = masked_;
};

/// One row. Returns false, and changes nothing, if the image or its gradient has an entry that is not finite.
template <class Variant, class Team, class Real>
SPARRING_FN bool recovery_step(Team team, int64_t n, Real* image, const Real* grad, Real* m, Real* v, const uint8_t* mask,
                               RecoveryRow<Real> c) {
  const auto largest = team.max(n, [=](int64_t i) {
    const auto a = bits(magnitude(image[i])), b = bits(magnitude(grad[i]));  // inf and NaN come after all numbers
    return a > b ? a : b;
  });
  if (largest > bits(Float<Real>::largest)) return false;
  const auto update = [=](int64_t i) {
    const bool held = Variant::masked ? mask[i] == 0 : false;
    const Real old = image[i], above = old - c.black;
    Real direction = grad[i], rate = c.lr;
    if constexpr (!Variant::soft_threshold) direction += above == 0 ? Real(0) : with_sign(c.penalty, above);
    if constexpr (Variant::adam) {
      const Real m_new = c.beta1 * m[i] + c.rest1 * direction, v_new = c.beta2 * v[i] + c.rest2 * (direction * direction);
      m[i] = held ? m[i] : m_new;
      v[i] = held ? v[i] : v_new;
      rate = c.lr / (square_root(v_new) * c.unbias2 + c.adam_eps);
      direction = m_new * c.unbias1;
    }
    // A rate may overflow, and 0 times it is still 0; so may the threshold, and then the larger of the two forces has its way.
    const Real moved = old - rate * direction;
    Real from_black = (moved == moved ? moved : old) - c.black;
    if constexpr (Variant::soft_threshold) {
      const Real least = c.penalty == 0 ? Real(0) : rate * c.penalty;
      const Real shrunk = from_black - smaller(larger(from_black, -least), least);
      const Real beyond = magnitude(direction) > c.penalty ? from_black : Real(0);
      from_black = shrunk == shrunk ? shrunk : beyond;
    }
    const Real inside = smaller(larger(c.black + from_black, c.lo), c.hi);
    image[i] = held | (magnitude(inside - c.black) < c.floor) ? c.black : inside;
  };
  team.each(n, update, image, grad);
  return true;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const RecoveryStep<Real>& a, int64_t row, int64_t /*slot*/) {
  if (a.frozen != nullptr && a.frozen[row] != 0) return;
  const RecoveryRow<Real> c = {
      Real(a.lr[row]),
      Real(a.lam[row] / double(a.n)),
      Real(a.beta1),
      Real(1 - a.beta1),
      Real(a.beta2),
      Real(1 - a.beta2),
      Real(a.adam_eps),
      Real(a.unbias1),
      Real(a.unbias2),
      a.black,
      a.lo,
      a.hi,
      a.floor,
  };
  const auto step = [&](auto variant) {
    return recovery_step<decltype(variant)>(team, a.n, a.image[row], a.grad[row], a.exp_avg[row], a.exp_avg_sq[row], a.mask[row],
                                            c);
  };
  const auto with_penalty = [&](auto adam, auto masked) {
    return a.soft_threshold ? step(Variant<adam.value, true, masked.value>{}) : step(Variant<adam.value, false, masked.value>{});
  };
  const auto with_moments = [&](auto masked) { return a.exp_avg ? with_penalty(Yes{}, masked) : with_penalty(No{}, masked); };
  const bool finite = a.mask ? with_moments(Yes{}) : with_moments(No{});
  if (!finite) team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
