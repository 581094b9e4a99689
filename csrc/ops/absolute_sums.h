// Upper bounds of the sums of a row's magnitudes and squares: what bounds of rounding errors are made of.
//
//   sums >= sum |a_i|,   squares >= sum a_i^2     exactly, for the numbers as they are stored
//
// Proof. Let u = 2^-53, eta = 2^-1074 and n <= 2^49. Adding non-negative numbers in any order, and rounding each square (if it does
// not underflow), gives at least (1 - u)^n times the exact sum S. With f = 1 + (n + 8) 2u, which is a double, fl(f fl(S)) is at
// least S (1 - u)^(n+2) f >= S (1 + (2n + 16) u) (1 - (n + 2) u) >= S (1 + (n + 14) u - (2n + 16)(n + 2) u^2) >= S. A square that
// underflows is too small by eta / 2 at most, and f fl(S) loses as much again: in all less than (n + 1) eta, so that (n + 2) eta
// more, that is added last, is enough; the rounding of this addition is the second of the (1 - u) that n + 2 counts beyond n, or
// there is none (sums of subnormal numbers are exact). Sums of magnitudes cannot underflow. An overflow gives inf, a bound all the
// same. Where NaN is in a row, both are NaN. All this wants gradual underflow, the processor's default.
#pragma once

#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct AbsoluteSums {
  int64_t rows, n;
  Rows<const Real> matrix;
  double *sums, *squares;  // (rows)
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const AbsoluteSums<Real>& a, int64_t row, int64_t /*slot*/) {
  constexpr double kTwoUnits = 0x1p-52, kSmallest = 0x1p-1074;
  const Real* const numbers = a.matrix[row];
  const Pair<double> total = team.sum2(a.n, [=](int64_t i) {
    const double size = magnitude(double(numbers[i]));
    return Pair<double>{size, size * size};
  });
  const double up = 1 + double(a.n + 8) * kTwoUnits, more = double(a.n + 2) * kSmallest;
  team.each(1, [=](int64_t) {
    a.sums[row] = total.first * up;
    a.squares[row] = total.second * up + more;
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
