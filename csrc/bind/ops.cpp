#include "bind/ops.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "bind/place.h"

namespace py = pybind11;

namespace sparring {
namespace {

constexpr std::int64_t kNoRow = std::numeric_limits<std::int64_t>::max();

/// Runs an op. Returns the lowest row with NaN or inf, kNoRow if there is none; for CUDA, kNoRow: there the row is written to
/// bad_row, if that is not null, when the stream gets so far.
template <class Args>
std::int64_t run(Args args, Place place, Address bad_row) {
  std::int64_t lowest = kNoRow;
  args.bad_row = place.device < 0 ? &lowest : at<std::int64_t>(bad_row);
  launch(args, place);
  return lowest;
}

template <class Real>
std::int64_t project_l1_box(Place place, std::int64_t rows, std::int64_t n, Address delta, std::int64_t delta_stride, Address x,
                            std::int64_t x_stride, Address eps, double eps_value, double lo, double hi, Address out,
                            std::int64_t out_stride, Address bad_row) {
  ProjectL1Box<Real> args{rows,
                          n,
                          {at<const Real>(delta), delta_stride},
                          {at<const Real>(x), x_stride},
                          {at<const double>(eps), eps_value},
                          Real(lo),
                          Real(hi),
                          {at<Real>(out), out_stride},
                          nullptr};
  return run(args, place, bad_row);
}

template <class Real>
std::int64_t project_l0_box(Place place, std::int64_t rows, std::int64_t n, std::int64_t channels, Address delta,
                            std::int64_t delta_stride, Address x, std::int64_t x_stride, Address k, std::int64_t k_value, double lo,
                            double hi, Address out, std::int64_t out_stride, Address scratch, Address bad_row) {
  ProjectL0Box<Real> args{rows,
                          n,
                          channels,
                          {at<const Real>(delta), delta_stride},
                          {at<const Real>(x), x_stride},
                          {at<const std::int64_t>(k), k_value},
                          Real(lo),
                          Real(hi),
                          {at<Real>(out), out_stride},
                          {at<double>(scratch), n / channels},
                          nullptr};
  return run(args, place, bad_row);
}

template <class Real>
std::int64_t l1_step(Place place, std::int64_t rows, std::int64_t n, Address delta, std::int64_t delta_stride, Address grad,
                     std::int64_t grad_stride, Address x, std::int64_t x_stride, Address eps, double eps_value, Address step_size,
                     double step_size_value, Address k, std::int64_t k_value, double lo, double hi, Address out,
                     std::int64_t out_stride, Address scratch, Address bad_row) {
  L1Step<Real> args{rows,
                    n,
                    {at<const Real>(delta), delta_stride},
                    {at<const Real>(grad), grad_stride},
                    {at<const Real>(x), x_stride},
                    {at<const double>(eps), eps_value},
                    {at<const double>(step_size), step_size_value},
                    {at<const std::int64_t>(k), k_value},
                    Real(lo),
                    Real(hi),
                    {at<Real>(out), out_stride},
                    {at<Real>(scratch), n},
                    nullptr};
  return run(args, place, bad_row);
}

template <class Real>
std::int64_t sparse_pgd_step(Place place, std::int64_t rows, std::int64_t n, std::int64_t channels, Address values,
                             std::int64_t values_stride, Address mask, std::int64_t mask_stride, Address grad,
                             std::int64_t grad_stride, Address x, std::int64_t x_stride, Address step_size, double step_size_value,
                             Address mask_step, double mask_step_value, Address k, std::int64_t k_value, bool projected,
                             Address unchanged, double lo, double hi, Address out, Address scratch, Address bad_row) {
  SparsePgdStep<Real> args{rows,
                           n,
                           channels,
                           {at<Real>(values), values_stride},
                           {at<Real>(mask), mask_stride},
                           {at<const Real>(grad), grad_stride},
                           {at<const Real>(x), x_stride},
                           {at<const double>(step_size), step_size_value},
                           {at<const double>(mask_step), mask_step_value},
                           {at<const std::int64_t>(k), k_value},
                           projected,
                           at<std::int64_t>(unchanged),
                           Real(lo),
                           Real(hi),
                           {at<Real>(out), n},
                           {at<Real>(scratch), 2 * (n / channels)},
                           nullptr};
  return run(args, place, bad_row);
}

template <class Real>
std::int64_t recovery_step(Place place, std::int64_t rows, std::int64_t n, Address image, std::int64_t image_stride, Address grad,
                           std::int64_t grad_stride, Address exp_avg, Address exp_avg_sq, std::int64_t moment_stride, Address mask,
                           std::int64_t mask_stride, Address frozen, Address lr, double lr_value, Address lam, double lam_value,
                           bool soft_threshold, double beta1, double beta2, double adam_eps, std::int64_t step, double black,
                           double lo, double hi, double floor, Address bad_row) {
  RecoveryStep<Real> args{rows,
                          n,
                          {at<Real>(image), image_stride},
                          {at<Real>(exp_avg), moment_stride},
                          {at<Real>(exp_avg_sq), moment_stride},
                          {at<const Real>(grad), grad_stride},
                          {at<const std::uint8_t>(mask), mask_stride},
                          at<const std::uint8_t>(frozen),
                          {at<const double>(lr), lr_value},
                          {at<const double>(lam), lam_value},
                          soft_threshold,
                          beta1,
                          beta2,
                          adam_eps,
                          1 / (1 - std::pow(beta1, double(step))),
                          1 / std::sqrt(1 - std::pow(beta2, double(step))),
                          Real(black),
                          Real(lo),
                          Real(hi),
                          Real(floor),
                          nullptr};
  return run(args, place, bad_row);
}

}  // namespace

void bind_ops(py::module_& m) {
  m.attr("NO_ROW") = kNoRow;
  define(m, "project_l1_box", &project_l1_box<float>, &project_l1_box<double>);
  define(m, "project_l0_box", &project_l0_box<float>, &project_l0_box<double>);
  define(m, "l1_step", &l1_step<float>, &l1_step<double>);
  define(m, "sparse_pgd_step", &sparse_pgd_step<float>, &sparse_pgd_step<double>);
  define(m, "recovery_step", &recovery_step<float>, &recovery_step<double>);
}

}  // namespace sparring
