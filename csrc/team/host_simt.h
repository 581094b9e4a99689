// Runs CUDA kernels on the host, for tests on machines without a GPU. The lanes of a block are fibers; a lane runs until it
// reaches a barrier or a shuffle, then the next one does. The order of the lanes is drawn anew for every turn from a seed, so
// that a kernel that lacks a barrier gives wrong results. Blocks run one after the other. Only what team/cuda_team.cuh uses exists.
#pragma once

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
#define __launch_bounds__(lanes)
#define __shared__ static

namespace simt {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

inline Index thread, block, block_size, grid_size;
inline uint64_t seed = 0;

enum class State { ready, at_barrier, at_shuffle, finished };

struct Lane {
  static constexpr size_t kStack = 128 * 1024;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::ready;
  uint32_t word = 0;
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
      getcontext(&lane.context);
      lane.context.uc_stack.ss_sp = lane.stack.get();
      lane.context.uc_stack.ss_size = Lane::kStack;
      lane.context.uc_link = nullptr;
      makecontext(&lane.context, &Block::enter, 0);
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
        swapcontext(&scheduler_, &lanes_[i].context);
      }
      if (error_) std::rethrow_exception(error_);
      if (!release() && !moved) throw std::logic_error("simt: lanes wait at different barriers or shuffles for ever");
    }
  }

  void wait(State state) {
    Lane& lane = lanes_[current_];
    lane.state = state;
    swapcontext(&lane.context, &scheduler_);
  }

  uint32_t shuffle(uint32_t word, int mask) {
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
  std::vector<uint32_t> received_;
  ucontext_t scheduler_;
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
inline uint32_t __shfl_xor_sync(unsigned, uint32_t word, int mask) { return ::simt::Block::running()->shuffle(word, mask); }
inline long long atomicMin(long long* address, long long value) {
  const long long before = *address;
  *address = std::min(before, value);
  return before;
}
