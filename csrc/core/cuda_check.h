// The CUDA runtime, its errors as exceptions, and the kernel launch; for the host emulation, the same names without CUDA.
#pragma once

#if defined(SPARRING_SIMT)

#include "team/host_simt.h"

namespace sparring {
struct OnDevice {
  explicit OnDevice(int) {}
};
}  // namespace sparring

#define SPARRING_LAUNCH(kernel, blocks, lanes, stream, args) \
  (static_cast<void>(stream), ::simt::launch(blocks, lanes, [&] { kernel(args); }))

#else

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace sparring {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not surface in somebody else's call
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

/// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace sparring

#define SPARRING_LAUNCH(kernel, blocks, lanes, stream, args)               \
  do {                                                                     \
    kernel<<<blocks, lanes, 0, static_cast<cudaStream_t>(stream)>>>(args); \
    ::sparring::check_cuda(cudaGetLastError(), "kernel launch");           \
  } while (false)

#endif
