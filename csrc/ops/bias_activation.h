// out = activation(z + bias): what follows a matrix product in the forward pass of a layer.
//
// Row r of z has bias r / rows_per_bias, so that stacked networks, (M, B, n), are served in one call. out may be z.
#pragma once

#include "core/tensor_view.h"
#include "ops/activation.h"

namespace sparring {

template <class Real>
struct BiasActivation {
  int64_t rows, n;
  Rows<const Real> z;
  Rows<const Real> bias;  // null: none
  int64_t rows_per_bias;
  Activation kind;
  Real slope;  // of leaky_relu
  Rows<Real> out;
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const BiasActivation<Real>& a, int64_t row, int64_t /*slot*/) {
  const Real* const z = a.z[row];
  const Real* const bias = a.bias[row / a.rows_per_bias];
  Real* const out = a.out[row];
  const Real slope = a.slope;
  with_activation(a.kind, [=](auto activate) {
    if (bias != nullptr)
      team.each(a.n, [=](int64_t i) { out[i] = activate.value(z[i] + bias[i], slope); });
    else
      team.each(a.n, [=](int64_t i) { out[i] = activate.value(z[i], slope); });
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
