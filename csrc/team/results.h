// What the members of a team take and give, besides plain numbers.
#pragma once

#include "core/portable.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

template <class First, class Second = First>
struct Pair {
  First first;
  Second second;
};

template <class T>
struct Survey {
  T sum, count, largest;
};

/// Which entries of a matrix a strip holds: `count` of them from `first` on, counted line by line. Where they are written, lines of
/// `length` entries begin `stride` numbers apart.
struct Lines {
  int64_t first, count, length, stride;
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
