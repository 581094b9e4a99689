// Random numbers for each row that is wanted, from a seed of its own: out_i uniform in [lo, hi), and the same whatever the other
// rows, the threads and the device (core/counter_random.h).
#pragma once

#include "core/counter_random.h"
#include "core/tensor_view.h"

namespace sparring {

template <class Real>
struct UniformRows {
  static constexpr int64_t kEntryWork = 4;

  int64_t rows, n;
  const int64_t* seeds;
  int64_t occasion;       // numbers differ from one to another
  const uint8_t* wanted;  // one a row; null: all
  double lo, hi;
  Rows<Real> out;
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const UniformRows<Real>& a, int64_t row, int64_t /*slot*/) {
  if (a.wanted != nullptr && a.wanted[row] == 0) return;
  const Draws draws(a.seeds[row], a.occasion);
  const double lo = a.lo, width = a.hi - a.lo;
  Real* const out = a.out[row];
  team.each(a.n, [=](int64_t i) { out[i] = Real(lo + width * draws.uniform_at(i)); });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
