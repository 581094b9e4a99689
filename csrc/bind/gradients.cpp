#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <vector>

#include "bind/ops.h"
#include "bind/place.h"
#include "core/checksum.h"

namespace py = pybind11;

namespace sparring {
namespace {

template <class Real>
void bias_activation(Place place, std::int64_t rows, std::int64_t n, Address z, std::int64_t z_stride, Address bias,
                     std::int64_t bias_stride, std::int64_t rows_per_bias, int kind, double slope, Address out,
                     std::int64_t out_stride) {
  launch(BiasActivation<Real>{rows,
                              n,
                              {at<const Real>(z), z_stride},
                              {at<const Real>(bias), bias_stride},
                              rows_per_bias,
                              Activation(kind),
                              Real(slope),
                              {at<Real>(out), out_stride}},
         place);
}

template <class Real>
void activation_backward(Place place, std::int64_t rows, std::int64_t n, Address grad, std::int64_t grad_stride, Address output,
                         std::int64_t output_stride, std::int64_t rows_per_output, int kind, double slope) {
  launch(ActivationBackward<Real>{rows,
                                  n,
                                  {at<Real>(grad), grad_stride},
                                  {at<const Real>(output), output_stride},
                                  rows_per_output,
                                  Activation(kind),
                                  Real(slope)},
         place);
}

template <class Real>
void loss_grad(Place place, std::int64_t rows, std::int64_t members, std::int64_t classes, Address logits,
               std::int64_t logits_member_stride, std::int64_t logits_row_stride, Address weights, Address labels, Address targets,
               int loss, int combine, Address value, Address grad, std::int64_t grad_member_stride, std::int64_t grad_row_stride,
               Address combined, Address shares) {
  launch(LossGrad<Real>{rows,
                        members * classes,
                        members,
                        classes,
                        {at<const Real>(logits), logits_member_stride, logits_row_stride},
                        at<const double>(weights),
                        at<const std::int64_t>(labels),
                        at<const std::int64_t>(targets),
                        LossKind(loss),
                        Combine(combine),
                        at<Real>(value),
                        {at<Real>(grad), grad_member_stride, grad_row_stride},
                        {at<Real>(combined), classes},
                        {at<Real>(shares), members}},
         place);
}

// --- images ---------------------------------------------------------------------------------------------------------------

/// The arguments that both directions of pooling share, and their order.
struct Windows {
  std::int64_t planes;
  Pooling p;
};

Windows windows(const std::vector<std::int64_t>& v) {
  return {v.at(0), {v.at(1), v.at(2), v.at(3), v.at(4), v.at(5), v.at(6), v.at(7), v.at(8), v.at(9), v.at(10), v.at(11), v.at(12)}};
}

template <class Real>
void relu_pool(Place place, const std::vector<std::int64_t>& sizes, bool relu, Address z, Address bias, Address out,
               Address index) {
  const auto [planes, p] = windows(sizes);
  launch(ReluPool<Real>{planes * p.out_height, p.out_width * p.lanes, p, relu, at<const Real>(z), at<const Real>(bias),
                        at<Real>(out), at<std::uint8_t>(index)},
         place);
}

template <class Real>
void relu_pool_backward(Place place, const std::vector<std::int64_t>& sizes, Address grad, Address index, Address grad_z) {
  const auto [planes, p] = windows(sizes);
  launch(ReluPoolBackward<Real>{planes * p.height, p.width * p.lanes, p, at<const Real>(grad), at<const std::uint8_t>(index),
                                at<Real>(grad_z)},
         place);
}

template <class Real>
void col2im(Place place, std::int64_t images, std::int64_t channels, std::int64_t height, std::int64_t width,
            std::int64_t out_height, std::int64_t out_width, std::int64_t kernel_h, std::int64_t kernel_w, std::int64_t stride_h,
            std::int64_t stride_w, std::int64_t pad_h, std::int64_t pad_w, std::int64_t dilation_h, std::int64_t dilation_w,
            Address columns, std::int64_t image_stride, std::int64_t tap_stride, Address out) {
  launch(Col2im<Real>{images * channels * height, width, channels, height, out_height, out_width, kernel_h, kernel_w, stride_h,
                      stride_w, pad_h, pad_w, dilation_h, dilation_w, at<const Real>(columns), image_stride, tap_stride,
                      at<Real>(out)},
         place);
}

// --- whole networks ---------------------------------------------------------------------------------------------------------

/// `layers`: width, weight, bias and activation of each; `slopes`: one a layer.
template <class Real>
void dense_network(Place place, std::int64_t batch, std::int64_t tile, std::int64_t members, std::int64_t groups,
                   std::int64_t inputs, const std::vector<std::array<std::int64_t, 4>>& layers, const std::vector<double>& slopes,
                   Address x, Address given, int loss, Address labels, Address targets, Address value, Address logits,
                   Address grad) {
  DenseNetwork<Real> args = {};
  std::int64_t width = inputs, products = 0;
  for (const auto& [width_out, weight, bias, activation] : layers) {
    args.layer[args.layers] = {at<const Real>(Address(weight)), at<const Real>(Address(bias)), width_out, Activation(activation),
                               Real(slopes.at(std::size_t(args.layers)))};
    if (++args.layers > kMostLayers) throw std::invalid_argument("too many layers");
    products += width * width_out;
    width = width_out;
  }
  args.rows = (batch + tile - 1) / tile * groups;
  args.n = tile * products;
  args.batch = batch;
  args.tile = tile;
  args.members = members;
  args.groups = groups;
  args.inputs = inputs;
  args.x = at<const Real>(x);
  args.given = at<const Real>(given);
  args.loss = LossKind(loss);
  args.labels = at<const std::int64_t>(labels);
  args.targets = at<const std::int64_t>(targets);
  args.value = at<Real>(value);
  args.logits = at<Real>(logits);
  args.grad = at<Real>(grad);
  launch(args, place);
}

// --- members of an ensemble --------------------------------------------------------------------------------------------------

template <class Real>
void pairwise_cosine(Place place, std::int64_t groups, std::int64_t members, std::int64_t examples, std::int64_t features,
                     Address grads, std::int64_t member_stride, std::int64_t example_stride, Address norms, Address sum,
                     Address square) {
  launch(PairwiseCosine<Real>{groups, members * features, members, examples, features, at<const Real>(grads), member_stride,
                              example_stride, at<double>(norms), at<double>(sum), at<double>(square)},
         place);
}

template <class Real>
void pack_bits(Place place, std::int64_t members, std::int64_t examples, Address answers, std::int64_t words, Address bits) {
  launch(PackBits<Real>{members, examples, {at<const std::uint8_t>(answers), examples}, {at<std::uint64_t>(bits), words}}, place);
}

template <class Real>
void agreement_counts(Place place, std::int64_t members, std::int64_t words, Address bits, Address counts) {
  launch(AgreementCounts<Real>{members, words, at<const std::uint64_t>(bits), at<std::int64_t>(counts)}, place);
}

// --- weights -----------------------------------------------------------------------------------------------------------------

py::bytes memory_checksums(const std::vector<Address>& addresses, const std::vector<std::int64_t>& sizes, int threads) {
  std::vector<Block> blocks;
  blocks.reserve(addresses.size());
  for (std::size_t i = 0; i < addresses.size(); ++i) blocks.push_back({at<const unsigned char>(addresses[i]), sizes.at(i)});
  std::vector<std::uint64_t> sums;
  {
    const py::gil_scoped_release unlocked;
    sums = checksums(blocks, threads);
  }
  return {reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(std::uint64_t)};
}

}  // namespace

void bind_gradients(py::module_& m) {
  define(m, "bias_activation", &bias_activation<float>, &bias_activation<double>);
  define(m, "activation_backward", &activation_backward<float>, &activation_backward<double>);
  define(m, "loss_grad", &loss_grad<float>, &loss_grad<double>);
  define(m, "relu_pool", &relu_pool<float>, &relu_pool<double>);
  define(m, "relu_pool_backward", &relu_pool_backward<float>, &relu_pool_backward<double>);
  define(m, "col2im", &col2im<float>, &col2im<double>);
  define(m, "dense_network", &dense_network<float>, &dense_network<double>);
  define(m, "pairwise_cosine", &pairwise_cosine<float>, &pairwise_cosine<double>);
  define(m, "pack_bits", &pack_bits<float>, &pack_bits<double>);
  define(m, "agreement_counts", &agreement_counts<float>, &agreement_counts<double>);
  m.def("memory_checksums", &memory_checksums);
}

}  // namespace sparring
