#include "core/checksum.h"

#include <string.h>

#include "core/parallel.h"

namespace sparring {
namespace {

constexpr int64_t chunk_bytes = int64_t(1) << 18;
constexpr int lanes = 16;

/// Sums of the words, and sums of these sums, in which the order of the words counts. The shift carries the highest bits, such as
/// signs, of which an even number would vanish in a sum, to where they do not.
struct Sums {
  uint64_t words[lanes] = {};
  uint64_t sums[lanes] = {};

  void take_in(const unsigned char* bytes) {
    for (int lane = 0; lane < lanes; ++lane) {
      uint64_t word;
      memcpy(&word, bytes + lane * static_cast<int64_t>(sizeof word), sizeof word);
      words[lane] += word ^ (word >> 31);
      sums[lane] += words[lane];
    }
  }

  uint64_t all() const {
    uint64_t result = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      for (const uint64_t one : {words[lane], sums[lane]}) {
        const uint64_t mixed = result ^ one;
        result = ((mixed << 27) | (mixed >> 37)) * 0x9E3779B185EBCA87u + 0x27D4EB2F165667C5u;
      }
    }
    return result;
  }
};

uint64_t checksum(const unsigned char* begin, int64_t bytes) {
  constexpr int64_t step = lanes * static_cast<int64_t>(sizeof(uint64_t));
  Sums sums;
  int64_t at = 0;
  for (; at + step <= bytes; at += step) sums.take_in(begin + at);
  if (at < bytes) {
    unsigned char rest[step] = {};
    memcpy(rest, begin + at, static_cast<size_t>(bytes - at));
    sums.take_in(rest);
  }
  return sums.all();
}

struct Work {
  const Block* chunks;
  uint64_t* sums;
};

void work_on(const void* context, int64_t begin, int64_t end, int /*slot*/) {
  const Work& work = *static_cast<const Work*>(context);
  for (int64_t i = begin; i < end; ++i) work.sums[i] = checksum(work.chunks[i].begin, work.chunks[i].bytes);
}

}  // namespace

std::vector<uint64_t> checksums(const std::vector<Block>& blocks, int threads) {
  std::vector<Block> chunks;
  for (const Block& block : blocks) {
    for (int64_t at = 0; at < block.bytes; at += chunk_bytes) {
      const int64_t left = block.bytes - at;
      chunks.push_back({block.begin + at, left < chunk_bytes ? left : chunk_bytes});
    }
  }
  std::vector<uint64_t> sums(chunks.size());
  const Work work{chunks.data(), sums.data()};
  parallel_rows(static_cast<int64_t>(chunks.size()), 1, threads, work_on, &work);
  return sums;
}

}  // namespace sparring
