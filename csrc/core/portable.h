// What kernels need from a compiler, the same under g++, clang and nvcc. Nothing here comes from the standard
// library's templates: a kernel file is compiled once per instruction set, and an inline function that it shared with
// the rest of the program could be linked in its newest form and then run on a machine that cannot execute it.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define SPARRING_FN __device__ __forceinline__
#else
#define SPARRING_FN inline __attribute__((always_inline))
#endif

// Before a short loop over what should stay in registers.
#if defined(__clang__) || defined(__CUDACC__)
#define SPARRING_UNROLL _Pragma("unroll")
#else
#define SPARRING_UNROLL _Pragma("GCC unroll 8")
#endif

// Kernels live in a namespace of their instruction set, so that no two of them share a symbol.
#ifndef SPARRING_ISA_NAMESPACE
#define SPARRING_ISA_NAMESPACE baseline
#endif

namespace sparring::SPARRING_ISA_NAMESPACE {

template <class Real>
struct Float;

template <>
struct Float<float> {
  using Bits = uint32_t;
  static constexpr float largest = 3.40282346638528859812e+38f;
  static constexpr double epsilon = 0x1p-23;
};

template <>
struct Float<double> {
  using Bits = uint64_t;
  static constexpr double largest = 1.79769313486231570815e+308;
  static constexpr double epsilon = 0x1p-52;
};

template <class To, class From>
SPARRING_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

/// The bits of a number >= 0; they order as the numbers do.
template <class Real>
SPARRING_FN typename Float<Real>::Bits bits(Real a) {
  return bit_cast<typename Float<Real>::Bits>(a);
}

template <class Real>
SPARRING_FN Real from_bits(typename Float<Real>::Bits b) {
  return bit_cast<Real>(b);
}

/// The neighbour of a > 0 on the side of zero.
template <class Real>
SPARRING_FN Real towards_zero(Real a) {
  return from_bits<Real>(bits(a) - 1);
}

SPARRING_FN float magnitude(float a) { return __builtin_fabsf(a); }
SPARRING_FN double magnitude(double a) { return __builtin_fabs(a); }

/// |a| with the sign of b.
SPARRING_FN float with_sign(float a, float b) { return __builtin_copysignf(a, b); }
SPARRING_FN double with_sign(double a, double b) { return __builtin_copysign(a, b); }

// In these forms, and in these alone, compilers see the one instruction that a minimum is.
template <class Real>
SPARRING_FN Real smaller(Real a, Real b) {
  return a < b ? a : b;
}
template <class Real>
SPARRING_FN Real larger(Real a, Real b) {
  return a > b ? a : b;
}

/// False for NaN and for both infinities.
template <class Real>
SPARRING_FN bool is_finite(Real a) {
  return magnitude(a) <= Float<Real>::largest;
}

SPARRING_FN float square_root(float a) { return __builtin_sqrtf(a); }
SPARRING_FN double square_root(double a) { return __builtin_sqrt(a); }

template <class Real>
SPARRING_FN Real not_a_number() {
  return Real(__builtin_nanf(""));
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE
