#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <dlfcn.h>
#include <pthread.h>

#if defined(__linux__)
#include <link.h>
#endif

namespace sparring {
namespace {

/// A thread's own share of the rows, in a cache line of its own.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

/// Every thread begins with its own share, the same in every call, so that it finds in its caches what it left there; when it is
/// through, it helps the others.
struct Task {
  Task(int64_t rows, int64_t chunk_, int threads_, RowsBody body_, const void* context_)
      : chunk(chunk_), threads(threads_), body(body_), context(context_), shares(new Share[threads_]) {
    for (int slot = 0; slot < threads; ++slot) {
      shares[slot].next.store(rows * slot / threads, std::memory_order_relaxed);
      shares[slot].end = rows * (slot + 1) / threads;
    }
  }

  int64_t chunk;
  int threads;
  RowsBody body;
  const void* context;
  std::unique_ptr<Share[]> shares;
  std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> joined{0};

  /// Takes chunks until there are none; called once by every thread that works on this.
  void work() {
    const int slot = std::this_thread::get_id() == caller ? 0 : joined.fetch_add(1, std::memory_order_relaxed) + 1;
    for (int other = 0; other < threads; ++other) {
      Share& share = shares[(slot + other) % threads];
      for (int64_t begin; (begin = share.next.fetch_add(chunk, std::memory_order_relaxed)) < share.end;)
        body(context, begin, std::min(begin + chunk, share.end), slot);
    }
  }
};

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
    task.work();
    std::unique_lock<std::mutex> lock(mutex_);
    task_ = nullptr;  // who has not joined by now is not waited for
    done_.wait(lock, [this] { return working_ == 0; });
    return true;
  }

 private:
  [[noreturn]] void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return task_ != nullptr && places_ > 0; });
      Task* const task = task_;
      --places_;
      ++working_;
      lock.unlock();
      task->work();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, done_;
  Task* task_ = nullptr;
  int places_ = 0, working_ = 0, workers_ = 0;
};

/// Runs a function on the threads of an OpenMP team, the caller among them. Part of the stable interface of libgomp and libomp.
using OpenMPParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

/// torch's OpenMP, if this process has loaded one. Its threads spin for milliseconds after torch's work, and keep others from
/// their cores meanwhile; so the work that comes between torch's is best given to them.
OpenMPParallel find_openmp() {
  std::string path;
#if defined(__linux__)
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        const std::string name = info->dlpi_name == nullptr ? "" : info->dlpi_name;
        if (name.find("torch") == std::string::npos || name.find("omp") == std::string::npos) return 0;
        *static_cast<std::string*>(found) = name;
        return 1;
      },
      &path);
#endif
  void* const library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  return library == nullptr ? nullptr : reinterpret_cast<OpenMPParallel>(dlsym(library, "GOMP_parallel"));
}

// A child of fork has neither OpenMP's threads nor the pool's. It leaves both behind and starts a pool of its own.
std::atomic<bool> forked{false};
std::atomic<Pool*> current{nullptr};

void forget_threads_on_fork() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    current.store(nullptr);
    forked.store(true);
  });
  (void)registered;
}

// Never destroyed: its threads sleep until the process ends.
Pool& pool() {
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
  if (threads <= 1) return body(context, 0, rows, 0);
  Task task(rows, chunk, threads, body, context);
  forget_threads_on_fork();
  static const OpenMPParallel openmp = find_openmp();
  if (openmp != nullptr && !forked.load()) {
    openmp([](void* data) { static_cast<Task*>(data)->work(); }, &task, static_cast<unsigned>(threads), 0);
  } else if (!pool().run(task, threads)) {
    task.work();
  }
}

}  // namespace sparring
