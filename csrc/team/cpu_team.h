// A team is the set of lanes that works on one row. An algorithm says only what is summed, counted or done for every
// entry; every lane of the team gets the same answer. This team is one thread and its vector unit.
//
// Functors return their value, use ternaries in place of min and max, and & in place of &&: only then do the loops vectorise.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/portable.h"
#include "team/results.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

struct CpuTeam {
  static constexpr bool copies = true;

  // Sums run in blocks: within one in the functor's own type, over all of them in double.
  static constexpr int64_t kBlock = 4096;

  /// Calls f(i) for every i of a row.
  template <class F>
  SPARRING_FN void each(int64_t n, F f) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  /// Calls f(o, i) for begin <= o < end and 0 <= i < n: part of a row that is a grid of lines of n. What works on an entry depends on
  /// o n + i alone, so that calls with other ranges may follow without a barrier.
  template <class F>
  SPARRING_FN void each_in_lines(int64_t begin, int64_t end, int64_t n, F f) const {
    if (n == 1) {
#pragma omp simd
      for (int64_t o = begin; o < end; ++o) f(o, int64_t(0));
    } else {
      for (int64_t o = begin; o < end; ++o) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) f(o, i);
      }
    }
  }

  template <class F>
  SPARRING_FN double sum(int64_t n, F f) const {
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = begin + kBlock < n ? begin + kBlock : n;
      decltype(f(begin)) part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = begin; i < end; ++i) part += f(i);
      total += part;
    }
    return total;
  }

  /// Two sums in one pass; f returns a Pair.
  template <class F>
  SPARRING_FN Pair<double> sum2(int64_t n, F f) const {
    Pair<double> total = {0, 0};
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = begin + kBlock < n ? begin + kBlock : n;
      decltype(f(begin).first) first = 0;
      decltype(f(begin).second) second = 0;
#pragma omp simd reduction(+ : first, second)
      for (int64_t i = begin; i < end; ++i) {
        const auto v = f(i);
        first += v.first;
        second += v.second;
      }
      total.first += first;
      total.second += second;
    }
    return total;
  }

  /// A sum, a count and a maximum (of numbers >= 0; NaN passes unseen) in one pass; f returns a Survey.
  template <class F>
  SPARRING_FN Survey<double> survey(int64_t n, F f) const {
    Survey<double> total = {0, 0, 0};
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = begin + kBlock < n ? begin + kBlock : n;
      decltype(f(begin).sum) sum = 0, count = 0, largest = 0;
#pragma omp simd reduction(+ : sum, count) reduction(max : largest)
      for (int64_t i = begin; i < end; ++i) {
        const auto v = f(i);
        sum += v.sum;
        count += v.count;
        largest = v.largest > largest ? v.largest : largest;
      }
      total.sum += sum;
      total.count += count;
      total.largest = largest > total.largest ? largest : total.largest;
    }
    return total;
  }

  /// How many i of a row satisfy f, which returns bool.
  template <class F>
  SPARRING_FN int64_t count(int64_t n, F f) const {
    constexpr int64_t block = int64_t(1) << 30;
    int64_t total = 0;
    for (int64_t begin = 0; begin < n; begin += block) {
      const int64_t end = begin + block < n ? begin + block : n;
      int32_t part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = begin; i < end; ++i) part += f(i) ? 1 : 0;
      total += part;
    }
    return total;
  }

  /// The largest f(i), an unsigned integer.
  template <class F>
  SPARRING_FN auto max(int64_t n, F f) const {
    decltype(f(n)) largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; ++i) {
      const auto v = f(i);
      largest = v > largest ? v : largest;
    }
    return largest;
  }

  /// Whether copying a few entries out of a row (copy_above) costs less than passing over all of it again.
  SPARRING_FN bool worth_copying(int64_t n) const {
#if defined(__AVX512F__)
    return n >= 256 && n <= INT32_MAX;
#else
    return n >= 16384 && n <= INT32_MAX;
#endif
  }

  /// Copies the entries with |b| > least, and where they stand; returns how many, or -1 if there are more than fit.
  template <class Real>
  SPARRING_FN int64_t copy_above(int64_t n, const Real* a, const Real* b, Real least, int64_t capacity, Real* to_a, Real* to_b,
                                 int32_t* index) const {
    constexpr int64_t block = 512;
    int64_t count = 0;
    for (int64_t begin = 0; begin < n; begin += block) {
      const int64_t end = begin + block < n ? begin + block : n;
      int64_t i = begin;
      if (count + (end - begin) > capacity) return -1;
#if defined(__AVX512F__)
      if constexpr (sizeof(Real) == 4) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (; i + 16 <= end; i += 16) {
          const __m512 va = _mm512_loadu_ps(a + i), vb = _mm512_loadu_ps(b + i);
          const __mmask16 chosen = _mm512_cmp_ps_mask(_mm512_abs_ps(vb), _mm512_set1_ps(least), _CMP_GT_OQ);
          const __m512i here = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(i)));
          _mm512_storeu_ps(to_a + count, _mm512_maskz_compress_ps(chosen, va));
          _mm512_storeu_ps(to_b + count, _mm512_maskz_compress_ps(chosen, vb));
          _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(chosen, here));
          count += __builtin_popcount(chosen);
        }
      }
#endif
      for (; i < end; ++i) {
        to_a[count] = a[i];
        to_b[count] = b[i];
        index[count] = int32_t(i);
        count += magnitude(b[i]) > least ? 1 : 0;
      }
    }
    return count;
  }

  /// Waits for all lanes; what they wrote is then seen by each of them.
  SPARRING_FN void sync() const {}

  /// Calls f(part, i) for every i < count: part, some lanes of this team or all, works on i. Ends with sync().
  template <class F>
  SPARRING_FN void split(int64_t count, F f) const {
    for (int64_t i = 0; i < count; ++i) f(*this, i);
  }

  /// The same; the sum of what f returns.
  template <class F>
  SPARRING_FN double split_sum(int64_t count, F f) const {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += f(*this, i);
    return total;
  }

  /// Lowers *lowest to `row`; other teams may do the same at the same time.
  SPARRING_FN void report(int64_t* lowest, int64_t row) const {
    if (lowest == nullptr) return;
    int64_t seen = __atomic_load_n(lowest, __ATOMIC_RELAXED);
    while (row < seen && !__atomic_compare_exchange_n(lowest, &seen, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
