// The test-only module _simt: the same primitives, whose device 0 is the host emulation of CUDA (team/host_simt.h).
#include <pybind11/pybind11.h>

#include "bind/ops.h"
#include "team/host_simt.h"

PYBIND11_MODULE(_simt, m) {
  m.def("set_lane_order", [](uint64_t seed) { simt::seed = seed; });
  sparring::bind_ops(m);
  sparring::bind_gradients(m);
  sparring::bind_lipschitz(m);
  sparring::bind_attacks(m);
}
