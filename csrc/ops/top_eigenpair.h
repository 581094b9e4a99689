// The largest eigenvalue of every one of many symmetric matrices, and its unit vector, as near as an iteration comes: no bound.
//
// Conjugate gradients for the Rayleigh quotient theta(x) = x.Gx / x.x (Bradbury & Fletcher, "New iterative methods for solution of
// the eigenproblem", Numer. Math. 9, 1966; beta of Polak & Ribiere, not below 0): a step goes to the best vector in the span of x
// and the direction p, by the 2 x 2 problem in closed form, and costs one product Gp, for Gx is carried along. It is computed anew
// every kStepsBetween steps and before the end, so that value and residual are those of the vector that is written.
//
// Ends where |Gx - theta x| <= tolerance |theta|, after `steps` steps, or where no direction is left. theta never falls, up to
// rounding; where the start has nothing of the top eigenvector, it comes to an eigenvalue below. A start of zeros counts as ones.
// Entries from 1e-100 to 1e100 do not overflow. NaN or inf in a matrix end the iteration at once, with NaN or inf as the value.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct TopEigenpair {
  static constexpr int64_t kEntryWork = 16;

  int64_t rows, n;  // matrices; entries of one
  int64_t size;
  const Real* matrices;  // (rows, size, size), symmetric
  Rows<const Real> start;
  int64_t steps;
  double tolerance;
  Real* vector;              // (rows, size), written
  double *value, *residual;  // (rows)
  int64_t* steps_taken;      // (rows)
  Rows<Real> scratch;        // 4 size numbers a slot
};

namespace SPARRING_ISA_NAMESPACE {

/// out = G x. What the lanes wrote of x before is seen, and out by all lanes after.
template <class Team, class Real>
SPARRING_FN void symmetric_product(Team team, int64_t size, const Real* matrix, const Real* x, Real* out) {
  constexpr int kLines = 8;
  team.sync();
  team.split((size + kLines - 1) / kLines, [=](auto part, int64_t group) {
    const int64_t first = group * kLines, last = size - 1;
    part.template sums<kLines, Real>(
        size, [=](int64_t i, int s) { return matrix[(first + s < last ? first + s : last) * size + i] * x[i]; },
        [=](int s, Real sum) {
          if (first + s <= last) out[first + s] = sum;
        });
  });
}

/// Makes x of length 1, g = G x and r = g - theta x; returns theta and |r|^2.
template <class Team, class Real>
SPARRING_FN Pair<double> rayleigh_residual(Team team, int64_t size, const Real* matrix, Real* x, Real* g, Real* r) {
  const double squares = team.sum(size, [=](int64_t i) { return double(x[i]) * double(x[i]); });
  const Real inverse = Real(1 / square_root(squares));
  team.each(size, [=](int64_t i) { x[i] *= inverse; });
  symmetric_product(team, size, matrix, x, g);
  const double theta = team.sum(size, [=](int64_t i) { return double(x[i]) * double(g[i]); });
  const double rr = team.sum(size, [=](int64_t i) {
    r[i] = g[i] - Real(theta) * x[i];
    return double(r[i]) * double(r[i]);
  });
  return {theta, rr};
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const TopEigenpair<Real>& a, int64_t row, int64_t slot) {
  constexpr int64_t kStepsBetween = 64;
  const int64_t n = a.size;
  const Real* const matrix = a.matrices + row * n * n;
  const Real* const start = a.start[row];
  Real* const x = a.vector + row * n;
  Real* const g = a.scratch[slot];  // G x
  Real* const p = g + n;            // the direction
  Real* const h = p + n;            // G p
  Real* const r = h + n;            // g - theta x

  const bool any = team.sum(n, [=](int64_t i) { return double(start[i]) * double(start[i]); }) > 0;
  team.each(n, [=](int64_t i) { x[i] = any ? start[i] : Real(1); });
  const auto first = rayleigh_residual(team, n, matrix, x, g, r);
  double theta = first.first, rr = first.second;
  team.each(n, [=](int64_t i) { p[i] = r[i]; });
  int64_t step = 0, exact_at = 0;
  const auto make_exact = [&] {
    const auto exact = rayleigh_residual(team, n, matrix, x, g, r);
    theta = exact.first;
    rr = exact.second;
    exact_at = step;
  };
  const auto close = [&] { return !(rr > a.tolerance * a.tolerance * (theta * theta)); };  // or not a number
  for (; step < a.steps; ++step) {
    if (step - exact_at == kStepsBetween || (close() && exact_at != step)) make_exact();
    if (close()) break;
    const double along = team.sum(n, [=](int64_t i) { return double(x[i]) * double(p[i]); });
    const double pp = team.sum(n, [=](int64_t i) {
      p[i] -= Real(along) * x[i];
      return double(p[i]) * double(p[i]);
    });
    if (!(pp > 0)) break;
    symmetric_product(team, n, matrix, p, h);
    const auto products = team.sum2(n, [=](int64_t i) {
      const double direction = double(p[i]);
      return Pair<double>{direction * double(g[i]), direction * double(h[i])};
    });
    // The matrix [[theta, b], [b, theta + 2 half]] of the span of x and p / |p|; its top eigenvalue is theta + gain.
    const double inverse = 1 / square_root(pp), b = products.first * inverse;
    const double half = (products.second * inverse * inverse - theta) / 2, root = square_root(half * half + b * b);
    const double gain = half > 0 ? half + root : b * b / (root - half), length = square_root(b * b + gain * gain);
    if (!(gain > 0 && length > 0)) break;
    const Real of_x = Real(magnitude(b) / length), of_p = Real(with_sign(gain / length, b) * inverse);
    const auto updated = team.sum2(n, [=](int64_t i) {
      x[i] = of_x * x[i] + of_p * p[i];
      g[i] = of_x * g[i] + of_p * h[i];
      return Pair<double>{double(x[i]) * double(g[i]), double(x[i]) * double(x[i])};
    });
    theta = updated.first / updated.second;
    const Real quotient = Real(theta);
    const auto changed = team.sum2(n, [=](int64_t i) {
      const Real before = r[i];
      r[i] = g[i] - quotient * x[i];
      return Pair<double>{double(r[i]) * double(r[i]), double(r[i]) * double(before)};
    });
    const double beta = (changed.first - changed.second) / rr;
    const Real kept = Real(beta > 0 ? beta : 0);
    rr = changed.first;
    team.each(n, [=](int64_t i) { p[i] = r[i] + kept * p[i]; });
  }
  if (exact_at != step) make_exact();
  const double value = theta, residual = square_root(rr);
  const int64_t taken = step;
  team.each(1, [=](int64_t) {
    a.value[row] = value;
    a.residual[row] = residual;
    a.steps_taken[row] = taken;
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
