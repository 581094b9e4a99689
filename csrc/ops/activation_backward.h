// grad <- grad * activation'(x), in place, given the activation's output at x: what precedes a matrix product in a backward pass.
//
// Row r of grad belongs to row r / rows_per_output of the output, so that several gradients of one example, (B, K, n), as for a
// Jacobian, are served in one call. NaN in grad stays, but where relu was inactive the answer is 0, as torch has it.
#pragma once

#include "core/tensor_view.h"
#include "ops/activation.h"

namespace sparring {

template <class Real>
struct ActivationBackward {
  int64_t rows, n;
  Rows<Real> grad;
  Rows<const Real> output;
  int64_t rows_per_output;
  Activation kind;
  Real slope;  // of leaky_relu
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ActivationBackward<Real>& a, int64_t row, int64_t /*slot*/) {
  Real* const grad = a.grad[row];
  const Real* const output = a.output[row / a.rows_per_output];
  const Real slope = a.slope;
  with_activation(
      a.kind, [=](auto activate) { team.each(a.n, [=](int64_t i) { grad[i] = activate.backward(grad[i], output[i], slope); }); });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
