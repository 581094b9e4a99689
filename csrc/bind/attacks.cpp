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

template <class Real>
void sparse_search(Place place, std::int64_t rows, std::int64_t n, std::int64_t channels, std::int64_t trials, std::int64_t planes,
                   std::int64_t lines, std::int64_t columns, Address x, Address trial, Address best, Address loss, Address fooled,
                   bool begins, bool proposes, Address k, Address seeds, Address best_loss, Address best_fooled, Address used,
                   Address chosen, Address leaving, Address joining, Address swaps, Address member, std::int64_t query,
                   double share, double local, bool stop, double lo, double hi) {
  const std::int64_t places = planes * lines * columns, entries = channels * places;
  launch(SparseSearch<Real>{rows,
                            n,
                            channels,
                            trials,
                            {planes, lines, columns},
                            {at<const Real>(x), entries},
                            {at<Real>(trial), entries},
                            {at<Real>(best), entries},
                            at<const Real>(loss),
                            at<const std::uint8_t>(fooled),
                            begins,
                            proposes,
                            at<const std::int64_t>(k),
                            at<const std::int64_t>(seeds),
                            at<double>(best_loss),
                            at<std::uint8_t>(best_fooled),
                            at<std::int64_t>(used),
                            at<std::int32_t>(chosen),
                            at<std::int32_t>(leaving),
                            at<std::int32_t>(joining),
                            at<std::int32_t>(swaps),
                            {at<std::uint8_t>(member), places},
                            query,
                            share,
                            local,
                            stop,
                            Real(lo),
                            Real(hi)},
         place);
}

template <class Real>
void uniform_rows(Place place, std::int64_t rows, std::int64_t n, Address seeds, std::int64_t occasion, Address wanted, double lo,
                  double hi, Address out) {
  launch(
      UniformRows<Real>{
          rows, n, at<const std::int64_t>(seeds), occasion, at<const std::uint8_t>(wanted), lo, hi, {at<Real>(out), n}},
      place);
}

}  // namespace

void bind_attacks(py::module_& m) {
  define(m, "lbfgs_accept", &lbfgs_accept<float>, &lbfgs_accept<double>);
  define(m, "lbfgs_direction", &lbfgs_direction<float>, &lbfgs_direction<double>);
  define(m, "uniform_rows", &uniform_rows<float>, &uniform_rows<double>);
  define(m, "sparse_search", &sparse_search<float>, &sparse_search<double>);
}

}  // namespace sparring
