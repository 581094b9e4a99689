// The activations, each with its derivative as a function of its output, so that a backward pass needs nothing else.
//
//   identity, relu, leaky_relu (x or slope x; slope > 0), sigmoid, tanh, softplus (log(1 + e^x), and x itself above 20)
//
// NaN goes in and comes out; at the kink of relu and leaky_relu the derivative is that of the left.
#pragma once

#include "core/elementary.h"

namespace sparring {

enum class Activation : int { identity, relu, leaky_relu, sigmoid, tanh, softplus };

namespace SPARRING_ISA_NAMESPACE {

/// Above, softplus is the identity; torch's threshold.
template <class Real>
constexpr Real kSoftplusLinear = 20;

template <Activation kind>
struct Activate {
  template <class Real>
  static SPARRING_FN Real value(Real x, [[maybe_unused]] Real slope) {
    if constexpr (kind == Activation::relu) return x < 0 ? Real(0) : x;
    if constexpr (kind == Activation::leaky_relu) return x < 0 ? slope * x : x;
    if constexpr (kind == Activation::sigmoid) {
      const Real e = exp(-magnitude(x));
      return (x < 0 ? e : Real(1)) / (1 + e);
    }
    if constexpr (kind == Activation::tanh) {
      const Real e = -expm1(-2 * magnitude(x));
      return with_sign(e / (2 - e), x);
    }
    if constexpr (kind == Activation::softplus) {
      const Real curved = larger(x, Real(0)) + log1p(exp(-magnitude(x)));
      return x > kSoftplusLinear<Real> ? x : curved;
    }
    return x;
  }

  /// grad times the derivative where the output is a.
  template <class Real>
  static SPARRING_FN Real backward(Real grad, [[maybe_unused]] Real a, [[maybe_unused]] Real slope) {
    if constexpr (kind == Activation::relu) return a <= 0 ? Real(0) : grad;
    if constexpr (kind == Activation::leaky_relu) return a <= 0 ? slope * grad : grad;
    if constexpr (kind == Activation::sigmoid) return grad * (a * (1 - a));
    if constexpr (kind == Activation::tanh) return grad * (1 - a * a);
    if constexpr (kind == Activation::softplus) return a > kSoftplusLinear<Real> ? grad : grad * -expm1(-a);
    return grad;
  }
};

/// Calls f with the Activate of a kind that is known at run time, so that every kind has a loop of its own.
template <class F>
SPARRING_FN void with_activation(Activation kind, F f) {
  switch (kind) {
    case Activation::identity:
      return f(Activate<Activation::identity>{});
    case Activation::relu:
      return f(Activate<Activation::relu>{});
    case Activation::leaky_relu:
      return f(Activate<Activation::leaky_relu>{});
    case Activation::sigmoid:
      return f(Activate<Activation::sigmoid>{});
    case Activation::tanh:
      return f(Activate<Activation::tanh>{});
    case Activation::softplus:
      return f(Activate<Activation::softplus>{});
  }
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
