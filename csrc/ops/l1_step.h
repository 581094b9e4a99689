// Steepest ascent step in the L1 norm on the k best coordinates, then projection: the step of APGD-L1 and of SLIDE.
//
// For one row: among the movable coordinates - grad_i is not 0 and x_i + delta_i is not already at the face that grad_i points
// at - take the k of largest |grad_i| (all, if there are fewer; equal ones by index, lowest first), and move each by
// step_size / (their number) in the direction of its gradient. The result is the nearest point of the L1 ball cut by the box
// (ops/project_l1_box.h, whose promises hold here too). Tramer & Boneh 2019, "Adversarial training and robustness for multiple
// perturbations", section 3; Croce & Hein 2021, "Mind the box", section 3.3.
//
// A row with NaN or inf in x, delta or grad comes back as NaN throughout and is reported in bad_row. out may be delta.
#pragma once

#include "ops/project_l1_box.h"

namespace sparring {

template <class Real>
struct L1Step {
  int64_t rows, n;
  Rows<const Real> delta, grad, x;
  PerRow<double> eps, step_size;  // >= 0
  PerRow<int64_t> k;              // >= 1
  Real lo, hi;
  Rows<Real> out;
  Rows<Real> scratch;  // a row of n for each team that works at the same time
  int64_t* bad_row;
};

namespace SPARRING_ISA_NAMESPACE {

/// A key, and how many keys are at least as large.
template <class Key>
struct Rank {
  Key key;
  int64_t count;
};

/// The largest key such that at least k of the `positive` keys > 0 are as large; 1 if k >= positive. Searches by counting:
/// between two keys the logarithm of the count is taken for linear in the value, which it is for exponential tails; where that
/// does not halve the bracket, the next step does.
template <class Real, class Count>
SPARRING_FN auto kth_largest(int64_t k, int64_t positive, double mean, typename Float<Real>::Bits largest, Count count_from) {
  using Key = typename Float<Real>::Bits;
  Rank<Key> low = {1, positive};
  Key high = largest + 1;  // low.count > k > count_from(high)
  if (positive <= k) return low;
  double at_high = 0.5;
  double guess = mean * __builtin_log(double(positive) / double(k));
  for (Key last_width = 0; high - low.key > 1;) {
    const Key width = high - low.key;
    Key key = bits(Real(guess));
    if ((last_width != 0 && width > last_width / 2) | !(key > low.key) | !(key < high)) key = low.key + width / 2;
    last_width = width;
    const int64_t found = count_from(key);
    if (found == k) return Rank<Key>{key, k};
    if (found > k) {
      low = {key, found};
    } else {
      high = key;
      at_high = found > 0 ? double(found) : 0.5;
    }
    const double from = from_bits<Real>(low.key), to = from_bits<Real>(high), at_low = double(low.count);
    guess = from + (to - from) * (__builtin_log(at_low / double(k)) / __builtin_log(at_low / at_high));
  }
  return low;
}

/// keys[i] == key for the first `places` such i: the index of the last of them. Found by halving; ties are rare.
template <class Team, class Key>
SPARRING_FN int64_t index_of_tie(Team team, int64_t n, const Key* keys, Key key, int64_t places) {
  int64_t too_few = -1, enough = n - 1;
  while (enough - too_few > 1) {
    const int64_t middle = too_few + (enough - too_few) / 2;
    const int64_t found = team.count(middle + 1, [=](int64_t i) { return keys[i] == key; });
    (found >= places ? enough : too_few) = middle;
  }
  return enough;
}

/// One row. Returns false, and writes NaN, if an entry is not finite.
template <class Team, class Real>
SPARRING_FN bool l1_step(Team team, int64_t n, const Real* x, const Real* delta, const Real* grad, double eps, double step_size,
                         int64_t k, Box<Real> box, typename Float<Real>::Bits* keys, Real* out) {
  using Key = typename Float<Real>::Bits;
  // Key 0 is a coordinate that cannot move; the others order as |grad| does.
  const auto whole = team.survey(n, [=](int64_t i) {
    const Real g = grad[i], m = magnitude(g), at = x[i] + delta[i];
    const bool at_face = ((g > 0) & (at >= box.hi)) | ((g < 0) & (at <= box.lo));
    const Real movable = at_face ? Real(0) : m;
    keys[i] = bits(movable);
    return Survey<Real>{is_finite(g) & is_finite(at) ? movable : not_a_number<Real>(), movable > 0 ? Real(1) : Real(0), movable};
  });
  if (whole.sum != whole.sum) {
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  const int64_t movable = int64_t(whole.count), chosen = k < movable ? k : movable;
  const auto count_from = [=](Key key) { return team.count(n, [=](int64_t i) { return keys[i] >= key; }); };
  const auto last = kth_largest<Real>(chosen, movable, whole.sum / whole.count, bits(Real(whole.largest)), count_from);
  const Real move = chosen > 0 ? Real(step_size / double(chosen)) : Real(0);
  if (last.count > chosen) {  // equal keys compete for the last places
    const int64_t tied_until = index_of_tie(team, n, keys, last.key, chosen - count_from(last.key + 1));
    team.each(n, [=](int64_t i) { keys[i] = (keys[i] == last.key) & (i > tied_until) ? Key(0) : keys[i]; });
  }
  team.each(n, [=](int64_t i) {
    const Real step = keys[i] >= last.key ? move : Real(0);
    out[i] = delta[i] + with_sign(step, grad[i]);
  });
  return project_l1_box(team, n, x, out, eps, box, out);
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const L1Step<Real>& a, int64_t row, int64_t slot) {
  const Box<Real> box = {a.lo, a.hi};
  auto* const keys = reinterpret_cast<typename Float<Real>::Bits*>(a.scratch[slot]);
  if (!l1_step(team, a.n, a.x[row], a.delta[row], a.grad[row], a.eps[row], a.step_size[row], a.k[row], box, keys, a.out[row]))
    team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
