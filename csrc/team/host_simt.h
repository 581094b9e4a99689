// Runs CUDA kernels on the host, for tests on machines without a GPU. The lanes of a block are fibers; a lane runs until it
// reaches a barrier or a shuffle, then the next one does. The order of the lanes is drawn anew for every turn from a seed, so
// that a kernel that lacks a barrier gives wrong results. Blocks run one after the other. Only what team/cuda_team.cuh uses exists.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(lanes)
#define __shared__ static

namespace simt {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

inline Index thread, block, block_size, grid_size;
inline uint64_t seed = 0;

enum class State { ready, at_barrier, at_shuffle, finished };

// A lane starts as a ucontext; after that, switching by setjmp spares it two system calls a time.
struct Lane {
  static constexpr size_t kStack = 128 * 1024;
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::ready;
  uint64_t word = 0;
  int mask = 0;
};

class Block {
 public:
  static Block*& running() {
    static Block* block = nullptr;
    return block;
  }

  Block(unsigned lanes, const std::function<void()>& body) : lanes_(lanes), body_(body) {}

  void run() {
    running() = this;
    for (Lane& lane : lanes_) {
      getcontext(&lane.start);
      lane.start.uc_stack.ss_sp = lane.stack.get();
      lane.start.uc_stack.ss_size = Lane::kStack;
      lane.start.uc_link = nullptr;
      makecontext(&lane.start, &Block::enter, 0);
    }
    std::vector<unsigned> order(lanes_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::mt19937_64 random(seed + 1000003u * block.x);
    while (!all_of(State::finished, 0, lanes_.size())) {
      std::shuffle(order.begin(), order.end(), random);
      bool moved = false;
      for (const unsigned i : order) {
        if (lanes_[i].state != State::ready) continue;
        moved = true;
        current_ = i;
        thread.x = i;
        if (_setjmp(scheduler_) == 0) resume(lanes_[i]);
      }
      if (error_) std::rethrow_exception(error_);
      if (!release() && !moved) throw std::logic_error("simt: lanes wait at different barriers or shuffles for ever");
    }
  }

  void wait(State state) {
    Lane& lane = lanes_[current_];
    lane.state = state;
    if (_setjmp(lane.resume) == 0) _longjmp(scheduler_, 1);
  }

  uint64_t shuffle(uint64_t word, int mask) {
    const unsigned self = current_;
    lanes_[self].word = word;
    lanes_[self].mask = mask;
    wait(State::at_shuffle);
    return received_[self];
  }

 private:
  static void enter() {
    Block& block = *running();
    try {
      block.body_();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.wait(State::finished);
  }

  [[noreturn]] static void resume(Lane& lane) {
    if (lane.started) _longjmp(lane.resume, 1);
    lane.started = true;
    setcontext(&lane.start);
    throw std::logic_error("simt: a lane could not start");
  }

  bool all_of(State state, size_t begin, size_t end) const {
    return std::all_of(lanes_.begin() + begin, lanes_.begin() + end, [&](const Lane& l) { return l.state == state; });
  }

  /// Lets go the warps that have all met in a shuffle, and the block if it has met at the barrier.
  bool release() {
    bool any = false;
    received_.resize(lanes_.size());
    for (size_t warp = 0; warp < lanes_.size(); warp += 32) {
      if (!all_of(State::at_shuffle, warp, warp + 32)) continue;
      for (size_t i = warp; i < warp + 32; ++i) {
        received_[i] = lanes_[warp + ((i - warp) ^ size_t(lanes_[i].mask))].word;
        lanes_[i].state = State::ready;
      }
      any = true;
    }
    if (all_of(State::at_barrier, 0, lanes_.size())) {
      for (Lane& lane : lanes_) lane.state = State::ready;
      any = true;
    }
    return any;
  }

  std::vector<Lane> lanes_;
  const std::function<void()>& body_;
  std::vector<uint64_t> received_;
  jmp_buf scheduler_;
  std::exception_ptr error_;
  unsigned current_ = 0;
};

inline void launch(unsigned blocks, unsigned lanes, const std::function<void()>& body) {
  block_size.x = lanes;
  grid_size.x = blocks;
  for (block.x = 0; block.x < blocks; ++block.x) Block(lanes, body).run();
}

}  // namespace simt

#define threadIdx ::simt::thread
#define blockIdx ::simt::block
#define blockDim ::simt::block_size
#define gridDim ::simt::grid_size

inline void __syncthreads() { ::simt::Block::running()->wait(::simt::State::at_barrier); }
inline void __syncwarp() { ::simt::Block::running()->shuffle(0, 0); }
template <class Word>
Word __shfl_xor_sync(unsigned, Word word, int mask) {
  return Word(::simt::Block::running()->shuffle(word, mask));
}
inline long long atomicMin(long long* address, long long value) {
  const long long before = *address;
  *address = std::min(before, value);
  return before;
}
