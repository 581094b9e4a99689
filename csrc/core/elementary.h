// Exponential and logarithm in plain arithmetic: loops over them vectorise, and all instruction sets agree to the bit. Within a
// few units in the last place. NaN passes through.
#pragma once

#include "core/portable.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

/// How a type is laid out, ln 2 as a sum of two numbers (the first short, so that its multiples are exact), and how many terms of
/// the series reach the type's precision.
template <class Real>
struct Layout;

template <>
struct Layout<float> {
  static constexpr uint32_t mantissa = 23, bias = 127;
  static constexpr float rounder = 12582912.0f, integers = 8388608.0f;  // 1.5 2^23, 2^23
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float lowest = -88.0f;
  static constexpr int exp_terms = 7, log_terms = 5;
};

template <>
struct Layout<double> {
  static constexpr uint64_t mantissa = 52, bias = 1023;
  static constexpr double rounder = 6755399441055744.0, integers = 4503599627370496.0;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double lowest = -709.0;
  static constexpr int exp_terms = 13, log_terms = 11;
};

// The choices below are made by masks: compilers carry a branch on into the code around it, and then its loop does not vectorise.

/// a where the condition holds, else b.
template <class Real>
SPARRING_FN Real choose(bool condition, Real a, Real b) {
  const auto mask = 0 - typename Float<Real>::Bits(condition);
  return from_bits<Real>((bits(a) & mask) | (bits(b) & ~mask));
}

/// 1 + x/2! + x^2/3! + ..., that is (e^x - 1) / x.
template <class Real, int n = 1>
SPARRING_FN Real exp_series(Real x, double inverse_factorial = 1) {
  if constexpr (n == Layout<Real>::exp_terms)
    return Real(inverse_factorial);
  else
    return Real(inverse_factorial) + x * exp_series<Real, n + 1>(x, inverse_factorial / (n + 1));
}

/// 1 + x/3 + x^2/5 + ..., that is atanh(sqrt x) / sqrt x.
template <class Real, int n = 0>
SPARRING_FN Real atanh_series(Real x) {
  constexpr Real coefficient = Real(1.0 / (2 * n + 1));
  if constexpr (n == Layout<Real>::log_terms)
    return coefficient;
  else
    return coefficient + x * atanh_series<Real, n + 1>(x);
}

/// e^x = (1 + rest) power, |ln(1 + rest)| <= ln 2 / 2 and power one of 2, or 0 instead of the least ones.
template <class Real>
struct Exponential {
  Real rest, power;
};

template <class Real>
SPARRING_FN Exponential<Real> split_exp(Real x) {
  using L = Layout<Real>;
  x = choose(x < L::lowest, L::lowest, x);
  const Real shifted = x * Real(1.44269504088896340736) + L::rounder, k = shifted - L::rounder;
  const Real r = (x - k * L::ln2_high) - k * L::ln2_low;
  return {r * exp_series(r), from_bits<Real>((bits(shifted) - bits(L::rounder) + L::bias) << L::mantissa)};
}

/// For x up to 88 (in double, 709); 0 from -88 (-709) downwards, where nothing but subnormal numbers is left.
template <class Real>
SPARRING_FN Real exp(Real x) {
  const auto e = split_exp(x);
  return (1 + e.rest) * e.power;
}

/// e^x - 1, relatively exact near 0; for x <= 0.
template <class Real>
SPARRING_FN Real expm1(Real x) {
  const auto e = split_exp(x);
  return e.rest * e.power + (e.power - 1);
}

/// For x > 0, neither subnormal nor infinite.
template <class Real>
SPARRING_FN Real log_of_normal(Real x) {
  using L = Layout<Real>;
  const auto to_one = bits(Real(1)) - bits(Real(0.70710678118654752440));
  const auto biased = (bits(x) + to_one) >> L::mantissa;
  const Real k = (from_bits<Real>(bits(L::integers) | biased) - L::integers) - Real(L::bias);
  const Real m = from_bits<Real>(bits(x) - ((biased - L::bias) << L::mantissa));  // in [1 / sqrt 2, sqrt 2)
  const Real s = (m - 1) / (m + 1);
  return k * L::ln2_high + (k * L::ln2_low + 2 * s * atanh_series(s * s));
}

/// For x >= 0 that is not subnormal; -inf at 0.
template <class Real>
SPARRING_FN Real log(Real x) {
  const Real extreme = x == 0 ? -Real(__builtin_inf()) : x;
  return (x > 0) & (x <= Float<Real>::largest) ? log_of_normal(x) : extreme;
}

/// log(1 + x), relatively exact near 0; for finite x >= 0.
template <class Real>
SPARRING_FN Real log1p(Real x) {
  const Real one_plus = 1 + x;
  return log_of_normal(one_plus) + (x - (one_plus - 1)) / one_plus;
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE
