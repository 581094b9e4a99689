// The team for one row that a CPU holds in a buffer of fixed length: its loops have no remainder, which would else take most of
// the time of a row of a few entries. The members mean what they mean in cpu_team.h.
#pragma once

#include "core/portable.h"
#include "team/results.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

template <int length_>  // a power of 2
struct ShortRow {
  static constexpr int length = length_;

  template <class F>
  SPARRING_FN void each(int64_t, F f) const {
#pragma omp simd
    for (int i = 0; i < length; ++i) f(int64_t(i));
  }

  template <class F>
  SPARRING_FN double sum(int64_t, F f) const {
    decltype(f(length)) terms[length];
    each(length, [&](int64_t i) { terms[i] = f(i); });
    return of_halves(terms);
  }

  template <class F>
  SPARRING_FN Pair<double> sum2(int64_t, F f) const {
    decltype(f(length).first) first[length];
    decltype(f(length).second) second[length];
    each(length, [&](int64_t i) {
      const auto v = f(i);
      first[i] = v.first;
      second[i] = v.second;
    });
    return {of_halves(first), of_halves(second)};
  }

  template <class F>
  SPARRING_FN auto max(int64_t, F f) const {
    decltype(f(length)) largest = 0;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < length; ++i) {
      const auto v = f(int64_t(i));
      largest = v > largest ? v : largest;
    }
    return largest;
  }

  SPARRING_FN void sync() const {}

 private:
  /// The sum of terms, in as few additions after each other as there can be.
  template <class Real, int count>
  static SPARRING_FN Real of_halves(Real (&terms)[count]) {
    if constexpr (count == 1) {
      return terms[0];
    } else {
      Real half[count / 2];
#pragma omp simd
      for (int i = 0; i < count / 2; ++i) half[i] = terms[i] + terms[i + count / 2];
      return of_halves(half);
    }
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
