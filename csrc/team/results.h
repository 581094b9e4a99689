// What a team's reductions take and give, besides plain numbers.
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

}  // namespace sparring::SPARRING_ISA_NAMESPACE
