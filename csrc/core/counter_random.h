// Random numbers that follow from a seed and from where they are used alone, so that a row's do not depend on other rows, on
// threads, nor on the device: the output function of SplitMix64 over a counter (Steele, Lea & Flood 2014, "Fast splittable
// pseudorandom number generators").
#pragma once

#include "core/portable.h"

namespace sparring::SPARRING_ISA_NAMESPACE {

SPARRING_FN uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// The numbers that belong to a seed and an occasion, one after the other.
class Draws {
 public:
  SPARRING_FN Draws(int64_t seed, int64_t occasion) : at_(mixed(mixed(uint64_t(seed)) + uint64_t(occasion) * kStep)) {}

  /// A whole number from 0 up to, not including, count < 2^32.
  SPARRING_FN int64_t below(int64_t count) { return int64_t(((next() >> 32) * uint64_t(count)) >> 32); }

  /// In [0, 1).
  SPARRING_FN double uniform() { return unit(next()); }

  /// The same for the i-th number from here, without moving on.
  SPARRING_FN double uniform_at(int64_t i) const { return unit(mixed(at_ + uint64_t(i + 1) * kStep)); }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;

  static SPARRING_FN double unit(uint64_t random) { return double(random >> 11) * 0x1p-53; }

  SPARRING_FN uint64_t next() { return mixed(at_ += kStep); }

  uint64_t at_;
};

}  // namespace sparring::SPARRING_ISA_NAMESPACE
