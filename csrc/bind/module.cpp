// The compiled module sparring._core. It never sees torch: every array comes as an address.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind/ops.h"
#include "core/isa.h"

#if defined(SPARRING_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

#define SPARRING_TEXT_OF(text) #text
#define SPARRING_TEXT(macro) SPARRING_TEXT_OF(macro)

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = SPARRING_TEXT(SPARRING_VERSION);
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
#if defined(SPARRING_WITH_CUDA)
  info["cuda"] = true;
  info["cuda_version"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = SPARRING_TEXT(SPARRING_CUDA_ARCHITECTURES);
#else
  info["cuda"] = false;
  info["cuda_version"] = "";
  info["cuda_architectures"] = "";
#endif
  return info;
}

/// How many CUDA devices there are, and if none, what the CUDA runtime says of it.
py::dict cuda_status() {
  int devices = 0;
  std::string error;
#if defined(SPARRING_WITH_CUDA)
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) {
    devices = 0;
    error = cudaGetErrorString(status);
    cudaGetLastError();
  }
#else
  error = "built without CUDA";
#endif
  py::dict result;
  result["devices"] = devices;
  result["error"] = error;
  return result;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto isa : sparring::supported_isas()) names.emplace_back(sparring::name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Sparring's compiled kernels. Use sparring.ops, which checks its arguments; this module does not.";
  m.def("build_info", &build_info);
  m.def("cuda_status", &cuda_status);
  m.def("supported_isas", &supported_isas);
  m.def("isa", [] { return std::string(sparring::name(sparring::active_isa())); });
  m.def("is_intel", &sparring::is_intel);
  sparring::bind_ops(m);
  sparring::bind_gradients(m);
  sparring::bind_lipschitz(m);
  sparring::bind_attacks(m);
}
