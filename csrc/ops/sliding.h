// Windows that slide over a line: entry t of window o stands at x = o step - pad + t dilation. Forward passes go from windows to
// entries. Backward passes go from entries to windows, so that every entry is written by one lane alone and sums keep their order;
// the entries x = first + j step (a phase, j = 0, 1, ...) have the same t under window j + constant.
#pragma once

#include "core/portable.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

struct Range {
  int64_t begin, end;
};

/// The o in [0, count) with 0 <= o step + offset < size.
SPARRING_FN Range inside(int64_t count, int64_t step, int64_t offset, int64_t size) {
  const int64_t begin = offset >= 0 ? 0 : (-offset + step - 1) / step;
  const int64_t end = size > offset ? (size - offset + step - 1) / step : 0;
  return {begin, end < count ? end : count};
}

struct Phase {
  int64_t first, count;
};

template <class F>
SPARRING_FN void for_each_phase(int64_t size, int64_t step, F f) {
  for (int64_t first = 0; first < step && first < size; ++first) f(Phase{first, (size - first + step - 1) / step});
}

/// The o in [0, windows) with o step = distance, or -1.
SPARRING_FN int64_t window_over(int64_t distance, int64_t step, int64_t windows) {
  const bool one = distance >= 0 && distance % step == 0 && distance / step < windows;
  return one ? distance / step : -1;
}

/// The j of a phase for which (first + offset) / step + j is one of the windows; none where the division leaves a remainder.
SPARRING_FN Range lines_under(Phase phase, int64_t offset, int64_t step, int64_t windows) {
  const int64_t distance = phase.first + offset, shift = distance / step;
  if (distance % step != 0) return {0, 0};
  const int64_t begin = shift < 0 ? -shift : 0, end = windows - shift;
  return {begin, end < phase.count ? end : phase.count};
}

}  // namespace sparring::SPARRING_ISA_NAMESPACE
