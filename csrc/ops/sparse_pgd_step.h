// The step of sparse PGD: sizes and places of a sparse perturbation move along the gradient, each in its own way.
//
// For one row of n = channels * places numbers, channel first, the perturbation is delta_cp = values_cp where p is one of the k places
// of largest mask_p (equal ones by index, lowest first), and 0 elsewhere. `grad` is the gradient at x + delta of what is to grow. With
// s_p = 1 / (1 + exp(-mask_p)), as which the mask would weigh the values were it not cut off to k places:
//
//   mask_p    <- mask_p + mask_step pull_p / |pull|_2,   pull_p = s_p (1 - s_p) sum over c of grad_cp values_cp;  as it is if pull = 0
//   values_cp <- values_cp + step_size sign(grad_cp), brought into the box lo <= x + values <= hi;
//                `projected`: only where delta has its k places
//   out        = the perturbation with both as they are now;  unchanged <- unchanged + 1 if its places are the same as before, else 0
//
// values and mask are changed in place. Zhong, Liu & Xu 2024, "Towards efficient training and evaluation of robust models against l0
// bounded adversarial perturbations", section 3: the gradient of values is that through the mask ("projected") or through s.
//
// Promises: x + values leaves the box by no rounding, nor where step_size is beyond the type; the mask's step has its length however
// large or small the gradient is; k = 0, k >= places. A row with NaN or inf in values, mask, grad or x stays as it is, comes back as NaN in out, and is reported in
// bad_row.
#pragma once

#include "core/elementary.h"
#include "ops/project_l0_box.h"

namespace sparring {

template <class Real>
struct SparsePgdStep {
  static constexpr int64_t kEntryWork = 4;

  int64_t rows, n, channels;  // channels divide n
  Rows<Real> values, mask;    // mask: a row of n / channels
  Rows<const Real> grad, x;
  PerRow<double> step_size, mask_step;  // >= 0, finite
  PerRow<int64_t> k;                    // >= 0
  bool projected;
  int64_t* unchanged;  // one a row; null: not counted
  Real lo, hi;
  Rows<Real> out;
  Rows<Real> scratch;  // two rows of n / channels for each team that works at the same time
  int64_t* bad_row;
};

namespace SPARRING_ISA_NAMESPACE {

/// The k largest of numbers of any sign, told by keys: where they are fewer than the positive ones, these by size; else all of
/// these, and the others by how near to 0 they are.
template <class Real>
struct Top {
  const Real *a, *keys;
  bool all_positive;
  Largest<Real> best;

  SPARRING_FN bool holds(int64_t i) const { return (all_positive & (a[i] > 0)) | best.holds(keys[i], i); }
};

/// `keys` is scratch.
template <class Team, class Real>
SPARRING_FN Top<Real> top_of(Team team, int64_t n, const Real* a, int64_t k, Real* keys) {
  const int64_t positive = team.count(n, [=](int64_t i) { return a[i] > 0; });
  const bool all_positive = k > positive;
  const auto whole = team.survey(n, [=](int64_t i) {
    const Real m = a[i], from_top = from_bits<Real>(bits(Float<Real>::largest) - bits(magnitude(m)));
    const Real other = from_top > 0 ? from_top : from_bits<Real>(1);
    const Real of_positive = all_positive ? Real(0) : m, of_others = all_positive ? other : Real(0);
    const Real key = m > 0 ? of_positive : of_others;
    keys[i] = key;
    return Survey<Real>{all_positive ? Real(0) : key, key > 0 ? Real(1) : Real(0), key};
  });
  return {a, keys, all_positive, largest_of(team, n, keys, all_positive ? k - positive : k, whole)};
}

/// One row. Returns false, and changes nothing but out, if an entry is not finite. `scratch` is two rows of places.
template <class Team, class Real>
SPARRING_FN bool sparse_pgd_step(Team team, int64_t n, int64_t channels, Real* values, Real* mask, const Real* grad, const Real* x,
                                 double step_size, double mask_step, int64_t k, bool projected, int64_t* unchanged, Box<Real> box,
                                 Real* scratch, Real* out) {
  using Key = typename Float<Real>::Bits;
  const int64_t places = n / channels;
  Real *const pull = scratch, *const before = scratch + places;
  const Key steepest = team.max(n, [=](int64_t i) {
    return is_finite(values[i]) & is_finite(x[i]) ? bits(magnitude(grad[i]))
                                                  : ~Key(0);  // as the bits of inf and NaN, these are large
  });
  const Key heaviest = team.max(places, [=](int64_t p) { return bits(magnitude(mask[p])); });
  if (larger(steepest, heaviest) > bits(Float<Real>::largest)) {
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  if (projected || unchanged != nullptr) {
    const auto old = top_of(team, places, mask, k, pull);
    team.each(places, [=](int64_t p) { before[p] = old.holds(p) ? Real(1) : Real(0); });
  }
  constexpr Real kMost = Float<Real>::largest;
  const double scale = scale_to_one(double(from_bits<Real>(steepest)));
  const Real to_one = scale < kMost ? Real(scale) : kMost;  // a gradient times this is 2 at most
  for (int64_t c = 0; c < channels; ++c)
    team.each(places, [=](int64_t p) {
      const Real here = (grad[c * places + p] * to_one) * values[c * places + p], sum = c == 0 ? here : pull[p] + here;
      pull[p] = smaller(larger(sum, -kMost), kMost);
    });
  const double square = team.sum(places, [=](int64_t p) {
    const Real e = exp(-magnitude(mask[p])), here = pull[p] * (e / ((1 + e) * (1 + e)));
    pull[p] = here;
    return double(here) * double(here);
  });
  const double factor = square > 0 ? mask_step / square_root(square) : 0.0;
  team.each(places, [=](int64_t p) {
    const double moved = double(mask[p]) + factor * double(pull[p]);
    mask[p] = Real(smaller(larger(moved, -double(kMost)), double(kMost)));
  });
  const Real move = step_size < kMost ? Real(step_size) : kMost;
  for (int64_t c = 0; c < channels; ++c) {
    Real* const v = values + c * places;
    const Real *const g = grad + c * places, *const at = x + c * places;
    team.each(places, [=](int64_t p) {
      const bool moves = (g[p] != 0) & (!projected || before[p] > 0);
      const Real sum = v[p] + (moves ? with_sign(move, g[p]) : Real(0));
      v[p] = kept_of(at[p], smaller(larger(sum, -kMost), kMost), box, Threshold<Real>{0, 0});
    });
  }
  const auto top = top_of(team, places, mask, k, pull);
  for (int64_t c = 0; c < channels; ++c)
    team.each(places, [=](int64_t p) { out[c * places + p] = top.holds(p) ? values[c * places + p] : Real(0); });
  if (unchanged != nullptr) {
    const int64_t changes = team.count(places, [=](int64_t p) { return top.holds(p) != (before[p] > 0); });
    team.each(1, [=](int64_t) { *unchanged = changes == 0 ? *unchanged + 1 : 0; });
  }
  return true;
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const SparsePgdStep<Real>& a, int64_t row, int64_t slot) {
  const Box<Real> box = {a.lo, a.hi};
  int64_t* const unchanged = a.unchanged == nullptr ? nullptr : a.unchanged + row;
  if (!sparse_pgd_step(team, a.n, a.channels, a.values[row], a.mask[row], a.grad[row], a.x[row], a.step_size[row], a.mask_step[row],
                       a.k[row], a.projected, unchanged, box, a.scratch[slot], a.out[row]))
    team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
