// What a team's reductions take and give, besides plain numbers.
#pragma once

#include "core/portable.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

template <class T>
struct Pair {
  T first, second;
};

template <class T>
struct Survey {
  T sum, count, largest;
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
