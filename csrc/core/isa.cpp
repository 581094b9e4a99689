#include "core/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace sparring {
namespace {

Isa choose() {
  const auto supported = supported_isas();
  const char* const wanted = std::getenv("SPARRING_ISA");
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  std::string accepted;
  for (const Isa isa : supported) {
    if (wanted == std::string(name(isa))) return isa;
    accepted += std::string(accepted.empty() ? "" : ", ") + name(isa);
  }
  throw std::runtime_error("SPARRING_ISA is '" + std::string(wanted) + "'; this machine runs: " + accepted);
}

}  // namespace

Isa active_isa() {
  static const Isa chosen = choose();
  return chosen;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> supported{Isa::baseline};
#if defined(SPARRING_X86_LEVELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    supported.push_back(Isa::v3);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      supported.push_back(Isa::v4);
  }
#endif
  return supported;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::v3:
      return "v3";
    case Isa::v4:
      return "v4";
  }
  return "unknown";
}

bool is_intel() {
#if defined(SPARRING_X86_LEVELS)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

}  // namespace sparring
