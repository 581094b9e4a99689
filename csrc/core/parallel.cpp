#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <pthread.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparring {
namespace {

struct Task {
  int64_t rows, chunk;
  RowsBody body;
  const void* context;
  std::atomic<int64_t> next{0};

  void work(int slot) {
    for (int64_t begin; (begin = next.fetch_add(chunk, std::memory_order_relaxed)) < rows;)
      body(context, begin, std::min(begin + chunk, rows), slot);
  }
};

/// Asks for short slices of time, which let a thread that wakes run at once on a core where another one only waits: OpenMP's
/// threads, torch's among them, spin for milliseconds after their work. Linux 6.12 or later; elsewhere nothing happens.
void prefer_short_slices() {
#if defined(__linux__) && defined(SYS_sched_setattr)
  struct {
    uint32_t size = 48, policy = 0;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t slice_ns = 100'000, deadline = 0, period = 0;
  } attributes;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

class Pool {
 public:
  /// False if another caller has the pool.
  bool run(Task& task, int threads) {
    const std::unique_lock<std::mutex> caller(callers_, std::try_to_lock);
    if (!caller) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < threads - 1; ++workers_) std::thread([this] { serve(); }).detach();
      task_ = &task;
      places_ = threads - 1;
    }
    wake_.notify_all();
    task.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    task_ = nullptr;  // who has not joined by now is not waited for
    done_.wait(lock, [this] { return working_ == 0; });
    return true;
  }

 private:
  [[noreturn]] void serve() {
    prefer_short_slices();
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return task_ != nullptr && places_ > 0; });
      Task* const task = task_;
      const int slot = places_--;
      ++working_;
      lock.unlock();
      task->work(slot);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, done_;
  Task* task_ = nullptr;
  int places_ = 0, working_ = 0, workers_ = 0;
};

std::atomic<Pool*> current{nullptr};

// Never destroyed: its threads sleep until the process ends. A child of fork has none of them, and leaves the pool behind.
Pool& pool() {
  static const bool forgotten_on_fork = [] {
    pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    return true;
  }();
  (void)forgotten_on_fork;
  Pool* existing = current.load();
  if (existing == nullptr) {
    Pool* const fresh = new Pool;
    if (current.compare_exchange_strong(existing, fresh)) return *fresh;
    delete fresh;
  }
  return *existing;
}

}  // namespace

void parallel_rows(int64_t rows, int64_t chunk, int threads, RowsBody body, const void* context) {
  chunk = std::max<int64_t>(chunk, 1);
  threads = static_cast<int>(std::min<int64_t>(threads, (rows + chunk - 1) / chunk));
  Task task{rows, chunk, body, context};
  if (threads <= 1 || !pool().run(task, threads)) task.work(0);
}

}  // namespace sparring
