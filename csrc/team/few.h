// The few entries of a row that still matter, copied out, so that what follows passes over them alone. For teams of one thread.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/portable.h"
#include "team/results.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

/// Entries of two rows a and b: those with |b| > least, ascending.
template <class Real>
struct Few {
  static constexpr int64_t capacity = 16384, lanes = 16;  // a whole vector of lanes may be written past the last

  Real least = 0;
  int64_t count = -1;  // -1: not used, or given up for lack of room
  int32_t index[capacity + lanes];
  Real a[capacity + lanes], b[capacity + lanes];

  /// Whether copying a few entries out of a row costs less than passing over all of it again.
  static SPARRING_FN bool worth_it(int64_t n) {
#if defined(__AVX512F__)
    return n >= 256 && n <= INT32_MAX;
#else
    return n >= 16384 && n <= INT32_MAX;
#endif
  }

  SPARRING_FN void start(Real from) {
    least = from;
    count = from > 0 ? 0 : -1;
  }

  /// Adds what lies in [begin, end) of a row.
  SPARRING_FN void add(int64_t begin, int64_t end, const Real* row_a, const Real* row_b) {
    if (!make_room(end - begin)) return;
    int64_t i = begin, at = count;
    for (; i + lanes <= end; i += lanes) at = copy_lanes(i, row_a, row_b, at);
    for (; i < end; ++i) at = copy_one(i, row_a, row_b, at);
    count = at;
  }

  /// The same and team.survey of [begin, end) in one pass. Asks for memory well ahead, since processors by themselves look no
  /// further than a page.
  template <class Team, class F>
  SPARRING_FN Survey<double> survey_and_add(Team team, int64_t begin, int64_t end, F f, const Real* row_a, const Real* row_b) {
    if (!make_room(end - begin)) return team.survey(end - begin, [=](int64_t i) { return f(begin + i); });
    Real sum[lanes] = {}, number[lanes] = {}, largest[lanes] = {};
    int64_t i = begin, at = count;
    for (; i + lanes <= end; i += lanes) {
      __builtin_prefetch(row_a + i + kAhead);
      __builtin_prefetch(row_b + i + kAhead);
#pragma omp simd
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const auto v = f(i + lane);
        sum[lane] += v.sum;
        number[lane] += v.count;
        largest[lane] = v.largest > largest[lane] ? v.largest : largest[lane];
      }
      at = copy_lanes(i, row_a, row_b, at);
    }
    const int64_t rest = i;
    Survey<double> total = team.survey(end - rest, [=](int64_t tail) { return f(rest + tail); });
    for (; i < end; ++i) at = copy_one(i, row_a, row_b, at);
    count = at;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      total.sum += sum[lane];
      total.count += number[lane];
      total.largest = largest[lane] > total.largest ? largest[lane] : total.largest;
    }
    return total;
  }

  /// Makes `count` a multiple of `lanes` for those who pass over the entries, since a loop's remainder costs as much as many lanes.
  SPARRING_FN int64_t pad_with_zeros() {
    int64_t padded = count;
    for (; padded % lanes != 0; ++padded) a[padded] = b[padded] = 0;
    return padded;
  }

  /// Writes a row of n: b[j] at index[j], and 0 elsewhere.
  SPARRING_FN void write_b(int64_t n, Real* out) const {
    constexpr int64_t block = 512, line = 64 / sizeof(Real);
    int64_t j = 0;
    for (int64_t begin = 0; begin < n; begin += block) {
      const int64_t end = begin + block < n ? begin + block : n;
      for (int64_t i = begin; i < end; i += line) __builtin_prefetch(out + i + kAhead, 1);
      for (int64_t i = begin; i < end; ++i) out[i] = 0;
      for (; j < count && index[j] < end; ++j) out[index[j]] = b[j];
    }
  }

 private:
  static constexpr int64_t kAhead = 1024;

  SPARRING_FN bool make_room(int64_t more) {
    if (count + more > capacity) count = -1;
    return count >= 0;
  }

  SPARRING_FN int64_t copy_one(int64_t i, const Real* row_a, const Real* row_b, int64_t at) {
    a[at] = row_a[i];
    b[at] = row_b[i];
    index[at] = int32_t(i);
    return at + (magnitude(row_b[i]) > least ? 1 : 0);
  }

  SPARRING_FN int64_t copy_lanes(int64_t i, const Real* row_a, const Real* row_b, int64_t at) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Real) == 4) {
      const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512 va = _mm512_loadu_ps(row_a + i), vb = _mm512_loadu_ps(row_b + i);
      const __mmask16 chosen = _mm512_cmp_ps_mask(_mm512_abs_ps(vb), _mm512_set1_ps(least), _CMP_GT_OQ);
      const __m512i here = _mm512_add_epi32(first, _mm512_set1_epi32(int(i)));
      _mm512_storeu_ps(a + at, _mm512_maskz_compress_ps(chosen, va));
      _mm512_storeu_ps(b + at, _mm512_maskz_compress_ps(chosen, vb));
      _mm512_storeu_si512(index + at, _mm512_maskz_compress_epi32(chosen, here));
      return at + __builtin_popcount(chosen);
    }
#endif
    for (int64_t lane = 0; lane < lanes; ++lane) at = copy_one(i + lane, row_a, row_b, at);
    return at;
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
