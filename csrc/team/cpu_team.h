// A team is the set of lanes that works on one row. An algorithm says only what is summed, counted or done for every
// entry; every lane of the team gets the same answer. This team is one thread and its vector unit.
//
// Functors return their value, use ternaries in place of min and max, and & in place of &&: only then do the loops vectorise.
#pragma once

#include "core/portable.h"
#include "team/few.h"
#include "team/results.h"
#include "team/short_row.h"
#include "team/strip.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

struct CpuTeam {
  static constexpr bool copies = true;
  using Short = ShortRow<16>;  // for rows that are worth copying into a buffer

  /// What one of the parts of split() works on at once.
  template <class Real, int vectors>
  using Strip = VectorStrip<Real, vectors>;

  // Sums run in blocks: within one in the functor's own type, over all of them in double.
  static constexpr int64_t kBlock = 4096;

  /// Calls f(i) for every i of a row.
  template <class F>
  SPARRING_FN void each(int64_t n, F f) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  /// The same; asks meanwhile for what is needed next of the arrays that start at `rows`: the row that follows, or, where rows are so
  /// long that their beginning has left the cache by the time they are read again, the entries ahead.
  template <class F, class Real, class... More>
  SPARRING_FN void each(int64_t n, F f, const Real* row, const More*... rows) const {
    constexpr int64_t block = 256, longest = 32768;
    const int64_t ahead = n <= longest ? n : 2048;
    for (int64_t begin = 0; begin < n; begin += block) {
      const int64_t end = begin + block < n ? begin + block : n;
      ask_for(row + begin + ahead, block);
      (ask_for(rows + begin + ahead, block), ...);
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) f(i);
    }
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

  /// Waits for all lanes; what they wrote is then seen by each of them.
  SPARRING_FN void sync() const {}

  /// Calls keep(s, sum of f(i, s) over i < n) for every s < N: sums of one pass that share what they load, in the functor's own type.
  template <int N, class Real, class F, class Keep>
  SPARRING_FN void sums(int64_t n, F f, Keep keep) const {
    static_assert(N % 8 == 0);
    for (int s = 0; s < N; s += 8) {
      Real s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4, s5, s6, s7)
      for (int64_t i = 0; i < n; ++i) {
        s0 += f(i, s);
        s1 += f(i, s + 1);
        s2 += f(i, s + 2);
        s3 += f(i, s + 3);
        s4 += f(i, s + 4);
        s5 += f(i, s + 5);
        s6 += f(i, s + 6);
        s7 += f(i, s + 7);
      }
      keep(s, s0);
      keep(s + 1, s1);
      keep(s + 2, s2);
      keep(s + 3, s3);
      keep(s + 4, s4);
      keep(s + 5, s5);
      keep(s + 6, s6);
      keep(s + 7, s7);
    }
  }

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

 private:
  // Compilers drop a call of a function that does nothing else, so this one has to be inlined.
  template <class Real>
  SPARRING_FN void ask_for(const Real* from, int64_t count) const {
    for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(Real))) __builtin_prefetch(from + i);
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
