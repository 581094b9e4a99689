// Whether memory holds what it held: one number for each chunk of it.
#pragma once

#include <stdint.h>

#include <vector>

namespace sparring {

/// A block of memory.
struct Block {
  const unsigned char* begin;
  int64_t bytes;
};

/// Numbers that tell the contents of the blocks: a change of one word changes them for certain, and other changes do but for a
/// coincidence. They depend on the order of the words, not on the number of threads.
std::vector<uint64_t> checksums(const std::vector<Block>& blocks, int threads);

}  // namespace sparring
