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
  Rows<Real> scratch;  // a row of n for each team that works at the same time; needed only where out is delta
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

/// One row. Returns false, and writes NaN, if an entry is not finite. `movable` is scratch; it may be out, unless that is delta.
template <class Team, class Real>
SPARRING_FN bool l1_step(Team team, int64_t n, const Real* x, const Real* delta, const Real* grad, double eps, double step_size,
                         int64_t k, Box<Real> box, Real* movable, Real* out) {
  using Key = typename Float<Real>::Bits;
  // |grad|, or 0 for a coordinate that cannot move. As keys, the bits of these numbers order as they do.
  const auto whole = team.survey(n, [=](int64_t i) {
    const Real g = grad[i], m = magnitude(g), at = x[i] + delta[i];
    const bool at_face = ((g > 0) & (at >= box.hi)) | ((g < 0) & (at <= box.lo));
    const Real here = at_face ? Real(0) : m;
    movable[i] = here;
    return Survey<Real>{is_finite(g) & is_finite(at) ? here : not_a_number<Real>(), here > 0 ? Real(1) : Real(0), here};
  });
  if (whole.sum != whole.sum) {
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  const int64_t positive = int64_t(whole.count), chosen = k < positive ? k : positive;
  const auto count_from = [=](Key key) {
    const Real value = from_bits<Real>(key);
    return team.count(n, [=](int64_t i) { return movable[i] >= value; });
  };
  const auto last = kth_largest<Real>(chosen, positive, whole.sum / whole.count, bits(Real(whole.largest)), count_from);
  Real move = chosen > 0 ? Real(step_size / double(chosen)) : Real(0);
  const Real least = from_bits<Real>(last.key);
  if (last.count > chosen) {  // equal ones compete for the last places
    const int64_t tied_until = index_of_tie(team, n, movable, least, chosen - count_from(last.key + 1));
    team.each(n, [=](int64_t i) { movable[i] = (movable[i] == least) & (i > tied_until) ? Real(0) : movable[i]; });
  }
  const Real* from = delta;
  constexpr Real kMost = Float<Real>::largest;
  if (move > Real(kMost * 1e-20)) {
    // The sum may be beyond the type, and ends at its largest number: further out, it makes no difference to the projection. Moved
    // here, so that the loop below has no more to do than it must.
    team.each(n, [=](int64_t i) {
      const Real sum = delta[i] + with_sign(movable[i] >= least ? move : Real(0), grad[i]);
      out[i] = smaller(larger(sum, -kMost), kMost);
    });
    from = out;
    move = 0;
  }
  const auto moved = [=](int64_t i) {
    const Real v = from[i] + with_sign(movable[i] >= least ? move : Real(0), grad[i]);
    out[i] = v;
    return v;
  };
  return project_l1_box(team, n, x, moved, out, eps, box, out);
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const L1Step<Real>& a, int64_t row, int64_t slot) {
  const Box<Real> box = {a.lo, a.hi};
  Real* const scratch = a.scratch ? a.scratch[slot] : a.out[row];
  if (!l1_step(team, a.n, a.x[row], a.delta[row], a.grad[row], a.eps[row], a.step_size[row], a.k[row], box, scratch, a.out[row]))
    team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
