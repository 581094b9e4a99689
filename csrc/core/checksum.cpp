#include "core/checksum.h"

#include <string.h>

#include "core/parallel.h"

namespace sparring {
namespace {

constexpr int64_t chunk_bytes = int64_t(1) << 18;
constexpr int lanes = 16;

uint64_t mixed(uint64_t before, uint64_t one) {
  const uint64_t both = before ^ one;
  return ((both << 27) | (both >> 37)) * 0x9E3779B185EBCA87u + 0x27D4EB2F165667C5u;
}

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
        result = mixed(result, one);
      }
    }
    return result;
  }
};

// Several places at once, and some way ahead: memory that is in no cache is read twice as fast so.
constexpr int streams = 4;
constexpr int64_t ahead = 1024;

uint64_t checksum(const unsigned char* begin, int64_t bytes) {
  constexpr int64_t step = lanes * static_cast<int64_t>(sizeof(uint64_t));
  const int64_t each = bytes / streams / step * step;
  Sums sums[streams];
  for (int64_t at = 0; at < each; at += step) {
    for (int i = 0; i < streams; ++i) {
      const unsigned char* const here = begin + i * each + at;
      for (int64_t line = 0; line < step; line += 64) __builtin_prefetch(here + ahead + line);
      sums[i].take_in(here);
    }
  }
  int64_t at = streams * each;
  for (; at + step <= bytes; at += step) sums[0].take_in(begin + at);
  if (at < bytes) {
    unsigned char rest[step] = {};
    memcpy(rest, begin + at, static_cast<size_t>(bytes - at));
    sums[0].take_in(rest);
  }
  uint64_t result = 0;
  for (const Sums& one : sums) result = mixed(result, one.all());
  return result;
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
