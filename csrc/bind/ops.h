#pragma once

#include <pybind11/pybind11.h>

namespace sparring {

/// The primitives, as functions of addresses: checked and documented in python/sparring/ops.py.
void bind_ops(pybind11::module_& m);

/// What gradients are made of, likewise: python/sparring/gradients/kernels/.
void bind_gradients(pybind11::module_& m);

/// What certified norms are made of: python/sparring/lipschitz/kernels.py.
void bind_lipschitz(pybind11::module_& m);

/// What attacks are made of besides the primitives: python/sparring/attacks/_box_lbfgs.py, _sparse_search.py and _uniform.py.
void bind_attacks(pybind11::module_& m);

}  // namespace sparring
