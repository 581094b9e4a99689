// How a caller's memory reaches a kernel: rows of n numbers that lie next to each other, `stride` numbers from row to row
// (0: every row is the same one). The caller owns all memory.
#pragma once

#include <stdint.h>

// Always inline, so that no kernel file leaves a copy of its own for others to link.
#if defined(__CUDACC__)
#define SPARRING_ANYWHERE __host__ __device__ __forceinline__
#else
#define SPARRING_ANYWHERE inline __attribute__((always_inline))
#endif

namespace sparring {

template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  explicit SPARRING_ANYWHERE operator bool() const { return data != nullptr; }
  SPARRING_ANYWHERE T* operator[](int64_t row) const { return data == nullptr ? nullptr : data + row * stride; }
};

/// One number for all rows, or one a row.
template <class T>
struct PerRow {
  const T* data = nullptr;
  T value = {};

  SPARRING_ANYWHERE T operator[](int64_t row) const { return data == nullptr ? value : data[row]; }
};

}  // namespace sparring
