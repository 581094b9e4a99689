// A whole dense network, or a stack of them, forward and backward towards its input in one go: for small networks and batches,
// where starting one kernel after another takes longer than their work.
//
//   a_0 = x,   a_l = act_l(W_l a_(l-1) + b_l)  for l = 1 .. layers,   logits = a_layers
//   grad = W_1^T (act_1' * W_2^T (... W_layers^T g)),   g the gradient at the logits: of the loss (loss_grad.h), or given
//
// A row of this operation is a tile of examples and a group of members. Everything between x and the gradient lies in the
// team's memory: a_l until the gradient at it takes its place. Weights are read in the order in which they lie, once for the
// tile each way. The members of a group follow one another and add up their gradients; the caller adds up the groups'. So an
// example's numbers depend neither on the batch nor on the tile.
#pragma once

#include "core/tensor_view.h"
#include "ops/activation.h"
#include "ops/loss_grad.h"

namespace sparring {

constexpr int kMostLayers = 8;
constexpr int64_t kTileBytes = 49152;  // of memory for a tile: what every CUDA device has

template <class Real>
struct DenseLayer {
  const Real* weight;  // (members, width, width of the layer before)
  const Real* bias;    // (members, width); null: none
  int64_t width;
  Activation activation;
  Real slope;  // of leaky_relu
};

template <class Real>
struct DenseNetwork {
  int64_t rows, n;  // tiles * groups, and the products a tile takes
  int64_t batch, tile, members, groups, inputs, layers;
  DenseLayer<Real> layer[kMostLayers];
  const Real* x;  // (batch, inputs)
  // the gradient at the logits: given, (members, batch, classes), or of a loss, for one member
  const Real* given;
  LossKind loss;
  const int64_t *labels, *targets;  // targets: null for none
  Real* value;                      // of the loss, (batch)
  Real* logits;                     // (members, batch, classes); null: not wanted
  Real* grad;                       // (groups, batch, inputs); null: forward only
};

namespace SPARRING_ISA_NAMESPACE {

/// out = W a for a tile of T examples. A part of the team takes J rows of W, so that J + T loads serve J T products.
template <class Team, class Tile, class Real>
SPARRING_FN void matrix_product(Team team, Tile, const Real* weight, int64_t width_in, const Real* a, int64_t width, Real* out) {
  constexpr int T = Tile::examples, J = Tile::rows;
  team.split((width + J - 1) / J, [=](auto part, int64_t group) {
    const int64_t first = group * J, last = width - 1;
    part.template sums<J * T, Real>(
        width_in,
        [=](int64_t i, int s) {
          const int64_t j = first + s / T;
          return weight[(j < last ? j : last) * width_in + i] * a[s % T * width_in + i];
        },
        [=](int s, Real sum) {
          if (first + s / T <= last) out[s % T * width + first + s / T] = sum;
        });
  });
}

/// keep(t, i, (W^T g)_ti) for a tile of T examples.
template <class Team, class Tile, class Real, class Keep>
SPARRING_FN void transposed_product(Team team, Tile, const Real* weight, int64_t width_in, const Real* g, int64_t width,
                                    Keep keep) {
  constexpr int T = Tile::examples;
  team.each(width_in, [=](int64_t i) {
    Real sum[T] = {};
    for (int64_t j = 0; j < width; ++j) {
      const Real w = weight[j * width_in + i];
      for (int t = 0; t < T; ++t) sum[t] += w * g[t * width + j];
    }
    for (int t = 0; t < T; ++t) keep(t, i, sum[t]);
  });
}

/// A number of examples that is known when compiling, and how many rows of weights then go together.
template <int T, int J>
struct Tile {
  static constexpr int examples = T, rows = J;
};

/// Calls f with the Tile of so many examples. Only products are compiled for each.
template <class F>
SPARRING_FN void with_tile(int64_t examples, F f) {
  if (examples == 8)
    f(Tile<8, 4>{});
  else if (examples == 4)
    f(Tile<4, 8>{});
  else
    f(Tile<1, 8>{});
}

/// One member on a tile whose inputs lie at the beginning of `memory`; its first example is `begin`, `count` of them exist.
template <class Team, class Real>
SPARRING_FN void member_on_tile(Team team, const DenseNetwork<Real>& net, int64_t m, int64_t begin, int64_t count, Real* memory,
                                Real* grad, bool add) {
  const int64_t tile = net.tile;
  int64_t width = net.inputs;
  Real* a = memory;
  for (int64_t l = 0; l < net.layers; ++l) {
    const DenseLayer<Real> layer = net.layer[l];
    const Real* const weight = layer.weight + m * layer.width * width;
    const Real* const bias = layer.bias == nullptr ? nullptr : layer.bias + m * layer.width;
    Real* const out = a + tile * width;
    with_tile(tile, [=](auto size) { matrix_product(team, size, weight, width, a, layer.width, out); });
    with_activation(layer.activation, [=](auto activate) {
      team.each_in_lines(0, tile, layer.width, [=](int64_t t, int64_t j) {
        Real* const z = out + t * layer.width + j;
        *z = activate.value(bias == nullptr ? *z : *z + bias[j], layer.slope);
      });
    });
    team.sync();
    a = out;
    width = layer.width;
  }

  const int64_t at = (m * net.batch + begin) * width;
  if (net.logits != nullptr) team.each(count * width, [=](int64_t i) { net.logits[at + i] = a[i]; });
  if (grad == nullptr) return team.sync();

  Real* g = a + tile * width;
  if (net.given != nullptr) {
    team.each(tile * width, [=](int64_t i) { g[i] = i < count * width ? net.given[at + i] : Real(0); });
    team.sync();
  } else {
    team.each(tile * width, [=](int64_t i) { g[i] = not_a_number<Real>(); });
    team.sync();
    team.split(count, [=, &net](auto part, int64_t t) {
      const bool targeted = net.targets != nullptr;
      const int64_t label = net.labels[begin + t], wanted = targeted ? net.targets[begin + t] : label;
      Real value = not_a_number<Real>();
      if ((label >= 0) & (label < width) & (wanted >= 0) & (wanted < width)) {
        const Goal<Real> goal = {label, wanted, targeted, targeted ? Real(1) : Real(-1)};
        with_loss(net.loss,
                  [=, &value](auto loss) { value = loss.with_grad(part, width, a + t * width, goal, Real(1), g + t * width); });
      }
      part.each(1, [=, &net](int64_t) { net.value[begin + t] = value; });
    });
  }

  for (int64_t l = net.layers - 1; l > 0; --l) {
    const DenseLayer<Real> before = net.layer[l - 1];
    const Real* const weight = net.layer[l].weight + m * width * before.width;
    Real* const below = a - tile * before.width;
    with_activation(before.activation, [=](auto activate) {
      team.each(tile * before.width, [=](int64_t i) { below[i] = activate.backward(Real(1), below[i], before.slope); });
    });
    team.sync();
    with_tile(tile, [=](auto size) {
      transposed_product(team, size, weight, before.width, g, width,
                         [=](int t, int64_t i, Real sum) { below[t * before.width + i] *= sum; });
    });
    team.sync();
    g = a = below;
    width = before.width;
  }
  const Real* const weight = net.layer[0].weight + m * width * net.inputs;
  with_tile(tile, [=, &net](auto size) {
    transposed_product(team, size, weight, net.inputs, g, width, [=, &net](int t, int64_t i, Real sum) {
      Real* const entry = grad + t * net.inputs + i;
      if (t < count) *entry = add ? *entry + sum : sum;
    });
  });
  team.sync();
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const DenseNetwork<Real>& net, int64_t row, Real* memory) {
  const int64_t tile = row / net.groups, group = row - tile * net.groups, begin = tile * net.tile;
  const int64_t left = net.batch - begin, count = left < net.tile ? left : net.tile, inputs = net.inputs;
  const Real* const x = net.x + begin * inputs;
  team.each(net.tile * inputs, [=](int64_t i) { memory[i] = i < count * inputs ? x[i] : Real(0); });
  team.sync();
  Real* const grad = net.grad == nullptr ? nullptr : net.grad + (group * net.batch + begin) * inputs;
  const int64_t first = group * net.members / net.groups, end = (group + 1) * net.members / net.groups;
  for (int64_t m = first; m < end; ++m) member_on_tile(team, net, m, begin, count, memory, grad, m > first);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
