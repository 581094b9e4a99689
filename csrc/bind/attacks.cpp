#include <cstdint>

#include "bind/ops.h"
#include "bind/place.h"

namespace py = pybind11;

namespace sparring {
namespace {

template <class Real>
void lbfgs_accept(Place place, std::int64_t rows, std::int64_t n, std::int64_t penalty, Address x, Address trial_grad,
                  Address trial_loss, Address trial_margin, Address weight, Address frozen, double tolerance, Address trial,
                  Address z, Address grad, Address value, Address distance, Address margin, std::int64_t history, Address s,
                  Address y, Address pairs, Address shrinks, Address best, Address best_distance, Address verdict) {
  launch(LbfgsAccept<Real>{rows,
                           n,
                           Penalty(penalty),
                           {at<const Real>(x), n},
                           {at<const Real>(trial_grad), n},
                           at<const Real>(trial_loss),
                           at<const Real>(trial_margin),
                           at<const double>(weight),
                           at<const std::uint8_t>(frozen),
                           tolerance,
                           {at<Real>(trial), n},
                           {at<Real>(z), n},
                           {at<Real>(grad), n},
                           at<double>(value),
                           at<double>(distance),
                           at<Real>(margin),
                           history,
                           at<Real>(s),
                           at<Real>(y),
                           at<std::int64_t>(pairs),
                           at<std::int64_t>(shrinks),
                           {at<Real>(best), n},
                           at<double>(best_distance),
                           at<std::uint8_t>(verdict)},
         place);
}

template <class Real>
void lbfgs_direction(Place place, std::int64_t rows, std::int64_t n, std::int64_t penalty, Address x, Address z, Address grad,
                     Address weight, Address distance, Address wanted, std::int64_t history, Address s, Address y, Address pairs,
                     double first_step, double lo, double hi, Address trial, Address scratch) {
  launch(LbfgsDirection<Real>{rows,
                              n,
                              Penalty(penalty),
                              {at<const Real>(x), n},
                              {at<const Real>(z), n},
                              {at<const Real>(grad), n},
                              at<const double>(weight),
                              at<const double>(distance),
                              at<const std::uint8_t>(wanted),
                              history,
                              at<const Real>(s),
                              at<const Real>(y),
                              at<const std::int64_t>(pairs),
                              first_step,
                              Real(lo),
                              Real(hi),
                              {at<Real>(trial), n},
                              {at<Real>(scratch), n}},
         place);
}

}  // namespace

void bind_attacks(py::module_& m) {
  define(m, "lbfgs_accept", &lbfgs_accept<float>, &lbfgs_accept<double>);
  define(m, "lbfgs_direction", &lbfgs_direction<float>, &lbfgs_direction<double>);
}

}  // namespace sparring
