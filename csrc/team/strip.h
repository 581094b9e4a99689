// Numbers next to each other in memory that a thread works on at once: some vectors of the instruction set. For algorithms that hold
// tiles of sums in registers, where compilers do not find the vectors by themselves.
#pragma once

#include "core/portable.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Real, int vectors>
struct VectorStrip {
  using Vector __attribute__((vector_size(kVectorBytes))) = Real;
  static constexpr int width = vectors * kVectorBytes / int(sizeof(Real));

  Vector part[vectors];

  static SPARRING_FN VectorStrip load(const Real* from) {
    VectorStrip strip;
    __builtin_memcpy(&strip, from, sizeof(strip));
    return strip;
  }

  /// The first `count` numbers; the others are 0.
  static SPARRING_FN VectorStrip load(const Real* from, int64_t count) {
    if (count >= width) return load(from);
    Real numbers[width] = {};
    for (int64_t lane = 0; lane < count; ++lane) numbers[lane] = from[lane];
    return load(numbers);
  }

  SPARRING_FN void store(Real* to) const { __builtin_memcpy(to, this, sizeof(*this)); }

  SPARRING_FN void store(Real* to, int64_t count) const {
    if (count >= width) return store(to);
    Real numbers[width];
    store(numbers);
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = numbers[lane];
  }

  /// Writes one number of the memory that a strip was stored to.
  static SPARRING_FN void store_one(Real* to, int64_t lane, Real value) { to[lane] = value; }

  /// Adds to one of the numbers.
  SPARRING_FN void add_to_one(int64_t lane, Real value) {
    Real numbers[width] = {};
    numbers[lane] = value;
    const VectorStrip term = load(numbers);
    for (int v = 0; v < vectors; ++v) part[v] += term.part[v];
  }

  SPARRING_FN void add_product(VectorStrip strip, Real factor) {
    for (int v = 0; v < vectors; ++v) part[v] += strip.part[v] * factor;
  }

  SPARRING_FN void subtract_product(VectorStrip strip, Real factor) {
    for (int v = 0; v < vectors; ++v) part[v] -= strip.part[v] * factor;
  }

  SPARRING_FN void scale(Real factor) {
    for (int v = 0; v < vectors; ++v) part[v] *= factor;
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
