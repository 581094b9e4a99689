// How a caller's memory reaches a kernel: rows of n numbers that lie next to each other, `stride` numbers from row to row
// (0: every row is the same one). The caller owns all memory.
#pragma once

#include <stdint.h>

namespace sparring {

template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

#if defined(__CUDACC__)
  __device__ __host__
#endif
  explicit operator bool() const { return data != nullptr; }
#if defined(__CUDACC__)
  __device__ __host__
#endif
  T* operator[](int64_t row) const {
    return data == nullptr ? nullptr : data + row * stride;
  }
};

/// One number for all rows, or one a row.
template <class T>
struct PerRow {
  const T* data = nullptr;
  T value = {};

#if defined(__CUDACC__)
  __device__ __host__
#endif
  T operator[](int64_t row) const {
    return data == nullptr ? value : data[row];
  }
};

}  // namespace sparring
