// The instruction sets that the CPU kernels are compiled for, and which of them this process uses.
#pragma once

#include <string>
#include <vector>

namespace sparring {

enum class Isa { baseline, v3, v4 };  // x86-64, x86-64-v3 (AVX2, FMA), x86-64-v4 (AVX-512); elsewhere there is only baseline

/// The newest that this machine can run, or what the environment variable SPARRING_ISA names.
/// Throws std::runtime_error if that names none, or one that this machine or this build lacks.
Isa active_isa();

/// All that this build has and this machine can run, oldest first.
std::vector<Isa> supported_isas();

const char* name(Isa isa);

/// Whether the processor is Intel's, on which MKL takes its fastest paths.
bool is_intel();

}  // namespace sparring
