// Rows spread over threads: those of torch's OpenMP where there is one, else a small pool of our own.
//
// Each thread, the calling one among them, takes chunks of its own share of the rows, then of the others'. torch's threads spin
// between its operations, and would keep others off their cores; so they are shared. Like torch itself, a call then ends when every
// thread of the team has looked in, which takes longer where foreign work holds a core. The pool waits only for threads that did
// take part, and sleeps when there is nothing to do. A forked child starts a pool of its own.
#pragma once

#include <stdint.h>

namespace sparring {

/// Work on rows [begin, end); `slot` in [0, threads) is not used by two threads at once.
using RowsBody = void (*)(const void* context, int64_t begin, int64_t end, int slot);

/// Calls body for all of [0, rows), at most `chunk` rows at a time, on at most `threads` threads. Returns when all are done.
/// body must not throw. Where the pool is busy with another caller's work, this caller does its work alone.
void parallel_rows(int64_t rows, int64_t chunk, int threads, RowsBody body, const void* context);

}  // namespace sparring
