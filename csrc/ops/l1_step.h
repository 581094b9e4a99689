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
#include "ops/selection.h"

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

/// One row. Returns false, and writes NaN, if an entry is not finite. `movable` is scratch; it may be out, unless that is delta.
template <class Team, class Real>
SPARRING_FN bool l1_step(Team team, int64_t n, const Real* x, const Real* delta, const Real* grad, double eps, double step_size,
                         int64_t k, Box<Real> box, Real* movable, Real* out) {
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
  const auto best = largest_of(team, n, movable, k, whole);
  Real move = best.count > 0 ? Real(step_size / double(best.count)) : Real(0);
  const Real least = best.least;
  if (best.tied_until < n) {
    const int64_t tied_until = best.tied_until;
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
