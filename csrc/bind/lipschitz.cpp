#include <cstdint>

#include "bind/ops.h"
#include "bind/place.h"

namespace py = pybind11;

namespace sparring {
namespace {

template <class Real>
void symmetric_symbol(Place place, std::int64_t frequencies, std::int64_t size, std::int64_t lags, std::int64_t entries,
                      Address lag, Address twiddle, Address out) {
  const std::int64_t few = (frequencies + kFrequenciesPerRow - 1) / kFrequenciesPerRow;
  launch(SymmetricSymbol<Real>{(size * size + entries - 1) / entries * few, entries, frequencies, size, lags, at<const Real>(lag),
                               at<const Real>(twiddle), at<Real>(out)},
         place);
}

template <class Real>
void absolute_sums(Place place, std::int64_t rows, std::int64_t n, Address matrix, std::int64_t stride, Address sums,
                   Address squares) {
  launch(AbsoluteSums<Real>{rows, n, {at<const Real>(matrix), stride}, at<double>(sums), at<double>(squares)}, place);
}

template <class Real>
void top_eigenpair(Place place, std::int64_t count, std::int64_t size, Address matrices, Address start, std::int64_t start_stride,
                   std::int64_t steps, double tolerance, Address vector, Address value, Address residual, Address steps_taken,
                   Address scratch) {
  launch(TopEigenpair<Real>{count,
                            size * size,
                            size,
                            at<const Real>(matrices),
                            {at<const Real>(start), start_stride},
                            steps,
                            tolerance,
                            at<Real>(vector),
                            at<double>(value),
                            at<double>(residual),
                            at<std::int64_t>(steps_taken),
                            {at<Real>(scratch), 4 * size}},
         place);
}

template <class Real>
void positive_definite(Place place, std::int64_t count, std::int64_t size, Address matrices, Address shift, Address definite,
                       Address scratch, std::int64_t scratch_stride) {
  launch(PositiveDefinite<Real>{count,
                                size * size,
                                size,
                                at<const Real>(matrices),
                                at<const Real>(shift),
                                at<std::uint8_t>(definite),
                                {at<Real>(scratch), scratch_stride}},
         place);
}

}  // namespace

void bind_lipschitz(py::module_& m) {
  define(m, "symmetric_symbol", &symmetric_symbol<float>, &symmetric_symbol<double>);
  define(m, "absolute_sums", &absolute_sums<float>, &absolute_sums<double>);
  define(m, "top_eigenpair", &top_eigenpair<float>, &top_eigenpair<double>);
  define(m, "positive_definite", &positive_definite<float>, &positive_definite<double>);
}

}  // namespace sparring
