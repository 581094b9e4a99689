// The teams of CUDA: a warp, or a whole thread block, works on one row. Lane l handles entries l, l + lanes, ... in every
// call, so that a lane may read back what it wrote itself without a barrier. The members mean what they mean in cpu_team.h.
#pragma once

#include <type_traits>

#include "core/portable.h"
#include "team/results.h"

#if defined(SPARRING_SIMT)
#include "team/host_simt.h"
#endif

// A test builds the emulation without this one barrier, to show that the tests notice.
#if defined(SPARRING_SIMT_DROP_BARRIER)
#define SPARRING_BARRIER_BEFORE_READING()
#else
#define SPARRING_BARRIER_BEFORE_READING() __syncthreads()
#endif

namespace sparring::SPARRING_ISA_NAMESPACE {

constexpr int kWarp = 32;

template <class T>
__device__ __forceinline__ T from_lane_xor(T value, int mask) {
  using Word = std::conditional_t<sizeof(T) % 8 == 0, unsigned long long, unsigned>;
  Word words[sizeof(T) / sizeof(Word)];
  static_assert(sizeof(words) == sizeof(T));
  __builtin_memcpy(words, &value, sizeof(T));
#pragma unroll
  for (Word& word : words) word = __shfl_xor_sync(0xffffffffu, word, mask);
  __builtin_memcpy(&value, words, sizeof(T));
  return value;
}

/// Combines one value a lane over a warp; all lanes get the same bits, since combine(a, b) = combine(b, a).
template <class T, class Combine>
__device__ __forceinline__ T over_warp(T value, Combine combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = combine(value, from_lane_xor(value, mask));
  return value;
}

struct WarpTeam {
  __device__ __forceinline__ int lane() const { return int(threadIdx.x % kWarp); }
  __device__ __forceinline__ int lanes() const { return kWarp; }
  __device__ __forceinline__ int part() const { return 0; }
  __device__ __forceinline__ int parts() const { return 1; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }

  template <class T, class Combine>
  __device__ __forceinline__ T over_all(T value, Combine combine) const {
    return over_warp(value, combine);
  }
};

struct BlockTeam {
  __device__ __forceinline__ int lane() const { return int(threadIdx.x); }
  __device__ __forceinline__ int lanes() const { return int(blockDim.x); }
  __device__ __forceinline__ int part() const { return int(threadIdx.x / kWarp); }
  __device__ __forceinline__ int parts() const { return int(blockDim.x / kWarp); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }

  template <class T, class Combine>
  __device__ __forceinline__ T over_all(T value, Combine combine) const {
    static_assert(sizeof(T) <= 3 * sizeof(double));
    __shared__ double slots[kWarp * 3];
    T* const of_warp = reinterpret_cast<T*>(slots);
    value = over_warp(value, combine);
    __syncthreads();  // whoever still reads the last result
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    SPARRING_BARRIER_BEFORE_READING();
    value = of_warp[0];
    for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp) value = combine(value, of_warp[warp]);
    return value;
  }
};

/// A number for each lane of a warp; the members mean what they mean in strip.h.
template <class Real>
struct LaneStrip {
  static constexpr int width = kWarp;

  Real number;

  static __device__ __forceinline__ int lane() { return int(threadIdx.x % kWarp); }
  static __device__ __forceinline__ LaneStrip load(const Real* from) { return {from[lane()]}; }
  static __device__ __forceinline__ LaneStrip load(const Real* from, int64_t count) {
    return {lane() < count ? from[lane()] : Real(0)};
  }
  static __device__ __forceinline__ void store_one(Real* to, int64_t at, Real value) {
    if (lane() == at) to[at] = value;
  }
  __device__ __forceinline__ void store(Real* to) const { to[lane()] = number; }
  __device__ __forceinline__ void store(Real* to, const Lines& lines) const {
    const int64_t entry = lines.first + lane(), line = entry / lines.length;
    if (lane() < lines.count) to[line * lines.stride + entry - line * lines.length] = number;
  }
  __device__ __forceinline__ void subtract(LaneStrip strip) { number -= strip.number; }
  __device__ __forceinline__ void add_product(LaneStrip strip, Real factor) { number += strip.number * factor; }
  __device__ __forceinline__ void subtract_product(LaneStrip strip, Real factor) { number -= strip.number * factor; }
  __device__ __forceinline__ void scale(Real factor) { number *= factor; }
};

template <class Lanes>
struct CudaTeam : Lanes {
  template <class Real, int>
  using Strip = LaneStrip<Real>;

  static constexpr bool copies = false;
  struct Short {
    static constexpr int length = 0;  // no buffers here
  };

  template <class F, class... Real>
  __device__ __forceinline__ void each(int64_t n, F f, const Real*... /*rows*/) const {
    for (int64_t i = this->lane(); i < n; i += this->lanes()) f(i);
  }

  template <class F>
  __device__ __forceinline__ void each_in_lines(int64_t begin, int64_t end, int64_t n, F f) const {
    const int entries = int(end) * int(n);  // 64-bit divisions cost several times as much
    for (int entry = this->lane(); entry < entries; entry += this->lanes()) {
      const int line = int(unsigned(entry) / unsigned(n));
      if (line >= begin) f(int64_t(line), int64_t(entry - line * int(n)));
    }
  }

  template <class F>
  __device__ __forceinline__ double sum(int64_t n, F f) const {
    decltype(f(n)) part = 0;
    each(n, [&](int64_t i) { part += f(i); });
    return this->over_all(double(part), [](double a, double b) { return a + b; });
  }

  template <class F>
  __device__ __forceinline__ Pair<double> sum2(int64_t n, F f) const {
    decltype(f(n)) part = {0, 0};
    each(n, [&](int64_t i) {
      const auto v = f(i);
      part.first += v.first;
      part.second += v.second;
    });
    return this->over_all(Pair<double>{double(part.first), double(part.second)},
                          [](Pair<double> a, Pair<double> b) { return Pair<double>{a.first + b.first, a.second + b.second}; });
  }

  template <class F>
  __device__ __forceinline__ Survey<double> survey(int64_t n, F f) const {
    decltype(f(n)) part = {0, 0, 0};
    each(n, [&](int64_t i) {
      const auto v = f(i);
      part.sum += v.sum;
      part.count += v.count;
      part.largest = v.largest > part.largest ? v.largest : part.largest;
    });
    return this->over_all(Survey<double>{double(part.sum), double(part.count), double(part.largest)},
                          [](Survey<double> a, Survey<double> b) {
                            return Survey<double>{a.sum + b.sum, a.count + b.count, a.largest > b.largest ? a.largest : b.largest};
                          });
  }

  template <class F>
  __device__ __forceinline__ int64_t count(int64_t n, F f) const {
    int64_t part = 0;
    each(n, [&](int64_t i) { part += f(i) ? 1 : 0; });
    return this->over_all(part, [](int64_t a, int64_t b) { return a + b; });
  }

  template <class F>
  __device__ __forceinline__ auto max(int64_t n, F f) const {
    decltype(f(n)) largest = 0;
    each(n, [&](int64_t i) {
      const auto v = f(i);
      largest = v > largest ? v : largest;
    });
    return this->over_all(largest, [](auto a, auto b) { return a > b ? a : b; });
  }

  /// For a warp. Every step of the reduction sends half of the sums away and halves their number, in one order whatever N.
  template <int N, class Real, class F, class Keep>
  __device__ __forceinline__ void sums(int64_t n, F f, Keep keep) const {
    static_assert(std::is_same_v<Lanes, WarpTeam> && kWarp % N == 0);
    Real part[N] = {};
    each(n, [&](int64_t i) {
#pragma unroll
      for (int s = 0; s < N; ++s) part[s] += f(i, s);
    });
    halve<kWarp / 2, N>(part);
    if (this->lane() % (kWarp / N) == 0) keep(this->lane() / (kWarp / N), part[0]);
  }

  /// Sums over the lanes of a warp: lane l ends with the sum l / (kWarp / N) in part[0].
  template <int mask, int N, class Real>
  __device__ __forceinline__ void halve(Real* part) const {
    if constexpr (N > 1) {
      const bool upper = (this->lane() & mask) != 0;
#pragma unroll
      for (int s = 0; s < N / 2; ++s) {
        const Real mine = upper ? part[s + N / 2] : part[s], other = upper ? part[s] : part[s + N / 2];
        part[s] = mine + from_lane_xor(other, mask);
      }
    } else {
      part[0] += from_lane_xor(part[0], mask);
    }
    if constexpr (mask > 1) halve<mask / 2, (N > 1 ? N / 2 : 1)>(part);
  }

  template <class F>
  __device__ __forceinline__ void split(int64_t count, F f) const {
    for (int64_t i = this->part(); i < count; i += this->parts()) f(CudaTeam<WarpTeam>{}, i);
    this->sync();
  }

  template <class F>
  __device__ __forceinline__ double split_sum(int64_t count, F f) const {
    double sum = 0;
    split(count, [&](auto part, int64_t i) { sum += f(part, i); });
    if (this->parts() == 1) return sum;
    return this->over_all(this->lane() % kWarp == 0 ? sum : 0.0, [](double a, double b) { return a + b; });
  }

  __device__ __forceinline__ void report(int64_t* lowest, int64_t row) const {
    if (lowest != nullptr && this->lane() == 0) atomicMin(reinterpret_cast<long long*>(lowest), static_cast<long long>(row));
  }
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
