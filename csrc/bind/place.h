// What every group of bindings shares: addresses, where an op runs, and one name for both number types.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "core/dispatch.h"

namespace sparring {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): the caller owns the memory
}

/// Where an op runs: device -1 is the CPU with so many threads, any other a CUDA device and a stream of it.
struct Place {
  int device;
  Address stream;
  int threads;
};

/// Runs an op without the interpreter's lock; on CUDA it is only begun.
template <class Args>
void launch(const Args& args, Place place) {
  const pybind11::gil_scoped_release unlocked;
  if (place.device < 0) return launch_cpu(args, place.threads);
#if defined(SPARRING_WITH_CUDA)
  launch_cuda(args, place.device, at<void>(place.stream));
#else
  throw std::runtime_error("this build of sparring has no CUDA kernels");
#endif
}

/// Defines `name` for float32 and float64, chosen by the first argument; then device, stream and threads; then the op's own.
template <class Result, class... Args>
void define(pybind11::module_& m, const char* name, Result (*in_float)(Place, Args...), Result (*in_double)(Place, Args...)) {
  m.def(name, [=](bool is_double, int device, Address stream, int threads, Args... args) {
    return (is_double ? in_double : in_float)(Place{device, stream, threads}, args...);
  });
}

}  // namespace sparring
