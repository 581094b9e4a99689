// Numbers next to each other in memory that a thread works on at once: some vectors of the instruction set. For algorithms that keep
// tiles of sums in registers, where compilers do not find the vectors by themselves.
#pragma once

#include "core/portable.h"
#include "team/results.h"

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
  static constexpr int lanes = kVectorBytes / int(sizeof(Real)), width = vectors * lanes;

  Vector part[vectors];

  // Vector by vector: a copy of the whole would keep a strip in memory.
  static SPARRING_FN VectorStrip load(const Real* from) {
    VectorStrip strip;
    SPARRING_UNROLL
    for (int v = 0; v < vectors; ++v) __builtin_memcpy(&strip.part[v], from + v * lanes, sizeof(Vector));
    return strip;
  }

  /// The first `count` numbers; the others are 0.
  static SPARRING_FN VectorStrip load(const Real* from, int64_t count) {
    if (count >= width) return load(from);
    Real numbers[width];
    VectorStrip{}.store(numbers);
    for (int64_t lane = 0; lane < count; ++lane) numbers[lane] = from[lane];
    return load(numbers);
  }

  SPARRING_FN void store(Real* to) const {
    SPARRING_UNROLL
    for (int v = 0; v < vectors; ++v) __builtin_memcpy(to + v * lanes, &part[v], sizeof(Vector));
  }

  /// The numbers as entries of a matrix.
  SPARRING_FN void store(Real* to, const Lines& lines) const {
    const int64_t line = lines.first / lines.length, column = lines.first - line * lines.length;
    to += line * lines.stride + column;
    if (lines.count == width && column + width <= lines.length) return store(to);
    Real numbers[width];
    store(numbers);
    int64_t left = lines.length - column;  // in this line
    for (int64_t lane = 0; lane < lines.count; ++lane, --left) {
      if (left == 0) {
        to += lines.stride - lines.length;
        left = lines.length;
      }
      to[lane] = numbers[lane];
    }
  }

  /// Writes one number of the memory that a strip was stored to.
  static SPARRING_FN void store_one(Real* to, int64_t lane, Real value) { to[lane] = value; }

  SPARRING_FN void subtract(VectorStrip strip) {
    SPARRING_UNROLL
    for (int v = 0; v < vectors; ++v) part[v] -= strip.part[v];
  }

  SPARRING_FN void add_product(VectorStrip strip, Real factor) {
    SPARRING_UNROLL
    for (int v = 0; v < vectors; ++v) part[v] += strip.part[v] * factor;
  }

  SPARRING_FN void subtract_product(VectorStrip strip, Real factor) {
    SPARRING_UNROLL
    for (int v = 0; v < vectors; ++v) part[v] -= strip.part[v] * factor;
  }

  SPARRING_FN void scale(Real factor) {
    SPARRING_UNROLL
    for (int v = 0; v < vectors; ++v) part[v] *= factor;
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
