// The k largest of a row's numbers, without a sort: found by counting how many are at least as large.
#pragma once

#include "core/portable.h"
#include "team/results.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

/// A key, and how many keys are at least as large.
template <class Key>
struct Rank {
  Key key;
  int64_t count;
};

/// The largest key such that at least k of the `positive` keys > 0 are as large; 1 if k >= positive. Searches by counting:
/// between two keys the logarithm of the count is taken for linear in the value, which it is for exponential tails, and near the
/// end the count itself; where twice running that does not halve the number of keys in the bracket, the next step halves the bracket.
template <class Real, class Count>
SPARRING_FN auto kth_largest(int64_t k, int64_t positive, double mean, typename Float<Real>::Bits largest, Count count_from) {
  using Key = typename Float<Real>::Bits;
  Rank<Key> low = {1, positive}, high = {largest + 1, 0};  // low.count > k > high.count
  if (positive <= k) return low;
  double guess = mean * __builtin_log(double(positive) / double(k));
  int64_t between = positive;
  for (int slow = 0; high.key - low.key > 1;) {
    Rank<Key> middle = {bits(Real(guess)), 0};
    if (slow == 2 || !(middle.key > low.key) || !(middle.key < high.key)) {
      middle.key = low.key + (high.key - low.key) / 2;
      slow = 0;
    }
    middle.count = count_from(middle.key);
    if (middle.count == k) return middle;
    (middle.count > k ? low : high) = middle;
    slow = low.count - high.count > between / 2 ? slow + 1 : 0;
    between = low.count - high.count;
    const double from = from_bits<Real>(low.key), to = from_bits<Real>(high.key);
    const double at_low = double(low.count), at_high = high.count > 0 ? double(high.count) : 0.5;
    const double share = at_low > 2 * at_high ? __builtin_log(at_low / double(k)) / __builtin_log(at_low / at_high)
                                              : (at_low - double(k)) / (at_low - at_high);
    guess = from + (to - from) * share;
  }
  return low;
}

/// a[i] == value for the first `places` such i: the index of the last of them. Found by halving; ties are rare.
template <class Team, class Real>
SPARRING_FN int64_t index_of_tie(Team team, int64_t n, const Real* a, Real value, int64_t places) {
  int64_t too_few = -1, enough = n - 1;
  while (enough - too_few > 1) {
    const int64_t middle = too_few + (enough - too_few) / 2;
    const int64_t found = team.count(middle + 1, [=](int64_t i) { return a[i] == value; });
    (found >= places ? enough : too_few) = middle;
  }
  return enough;
}

/// The largest of a row: those above `least`, and of those equal to it the ones up to the index `tied_until`.
template <class Real>
struct Largest {
  Real least;
  int64_t tied_until, count;

  SPARRING_FN bool holds(Real a, int64_t i) const { return (a > least) | ((a == least) & (i <= tied_until)); }
};

/// The k largest of the positive ones among a[i] >= 0 (all of them, if there are fewer; equal ones by index, lowest first). `whole`
/// has their sum, how many are positive, and the largest; k >= 0.
template <class Team, class Real>
SPARRING_FN Largest<Real> largest_of(Team team, int64_t n, const Real* a, int64_t k, Survey<double> whole) {
  using Key = typename Float<Real>::Bits;
  const int64_t positive = int64_t(whole.count), count = k < positive ? k : positive;
  if (count == 0) return {Float<Real>::largest, -1, 0};
  const auto count_from = [=](Key key) {
    const Real value = from_bits<Real>(key);
    return team.count(n, [=](int64_t i) { return a[i] >= value; });
  };
  const auto last = kth_largest<Real>(count, positive, whole.sum / whole.count, bits(Real(whole.largest)), count_from);
  const Real least = from_bits<Real>(last.key);
  if (last.count == count) return {least, n, count};
  return {least, index_of_tie(team, n, a, least, count - count_from(last.key + 1)),
          count};  // equal ones compete for the last places
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE
