// Max-pooling of relu(z + bias), or of z + bias itself, over windows of an image, and its backward pass.
//
//   out[oy, ox, c]   = max over (ky, kx) of act(z[y, x, c] + bias[c]),  y = oy stride_h - pad_h + ky, x = ox stride_w - pad_w + kx,
//                      windows cut off at the image's borders
//   index[oy, ox, c] = ky kernel_w + kx of the first entry that is the largest, the last NaN if there is one; kNoEntry where ReLU let
//                      nothing through, so that the backward pass needs neither z nor out
//   grad_z[y, x, c]  = sum of grad[oy, ox, c] over the windows whose index says (y, x), in the order of the windows
//
// Equal to the bit to torch's relu and max_pool2d and their derivatives: ReLU changes which entry is the largest only
// where none lets anything through. Windows of at most 255 entries, each with one inside the image at least; no dilation.
//
// Images are stored as (planes, height, width, lanes): channels-last images are planes of `lanes` = C channels, images of
// the form (B, C, H, W) are B C planes with lanes = 1. A row of this operation is one line of windows, going back one line of the image.
#pragma once

#include "core/portable.h"
#include "core/tensor_view.h"
#include "ops/sliding.h"

namespace sparring {

constexpr uint8_t kNoEntry = 255;  // windows have at most so many entries

struct Pooling {
  int64_t channels, lanes;  // lanes: C or 1
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

template <class Real>
struct ReluPool {
  int64_t rows, n;  // planes * out_height lines of out_width * lanes
  Pooling p;
  bool relu;
  const Real *z, *bias;  // bias: one a channel; null: 0
  Real* out;
  uint8_t* index;
};

template <class Real>
struct ReluPoolBackward {
  int64_t rows, n;  // planes * height lines of width * lanes
  Pooling p;
  const Real* grad;
  const uint8_t* index;
  Real* grad_z;
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ReluPool<Real>& a, int64_t row, int64_t /*slot*/) {
  const Pooling p = a.p;
  const int64_t plane = row / p.out_height, top = (row - plane * p.out_height) * p.stride_h - p.pad_h;
  const int64_t across = p.lanes * p.stride_w;
  const Real* const bias = a.bias == nullptr ? nullptr : a.bias + plane % (p.channels / p.lanes) * p.lanes;
  Real* const out = a.out + row * a.n;
  uint8_t* const index = a.index + row * a.n;

  team.each_in_lines(0, p.out_width, p.lanes, [=](int64_t o, int64_t i) {
    out[o * p.lanes + i] = 0;
    index[o * p.lanes + i] = kNoEntry;
  });
  // one entry of all windows after the other: a loop that vectorises whatever the window
  for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
    const int64_t y = top + ky;
    if (y < 0 || y >= p.height) continue;
    for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
      const Range windows = inside(p.out_width, p.stride_w, kx - p.pad_w, p.width);
      const Real* const z = a.z + ((plane * p.height + y) * p.width + kx - p.pad_w) * p.lanes;
      const uint8_t here = uint8_t(ky * p.kernel_w + kx);
      const auto take = [=](int64_t to, Real value) {
        const Real best = out[to];
        const uint8_t of_best = index[to];
        const bool better = (value > best) | (value != value) | (of_best == kNoEntry);
        out[to] = better ? value : best;
        index[to] = better ? here : of_best;
      };
      if (bias == nullptr) {
        team.each_in_lines(windows.begin, windows.end, p.lanes,
                           [=](int64_t o, int64_t i) { take(o * p.lanes + i, z[o * across + i]); });
      } else {
        team.each_in_lines(windows.begin, windows.end, p.lanes,
                           [=](int64_t o, int64_t i) { take(o * p.lanes + i, z[o * across + i] + bias[i]); });
      }
    }
  }
  if (!a.relu) return;
  team.each_in_lines(0, p.out_width, p.lanes, [=](int64_t o, int64_t i) {
    const int64_t to = o * p.lanes + i;
    const Real best = out[to];
    const uint8_t of_best = index[to];
    out[to] = best <= 0 ? Real(0) : best;
    index[to] = best <= 0 ? kNoEntry : of_best;
  });
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ReluPoolBackward<Real>& a, int64_t row, int64_t /*slot*/) {
  const Pooling p = a.p;
  const int64_t plane = row / p.height, y = row - plane * p.height;
  Real* const to = a.grad_z + row * a.n;
  for_each_phase(p.width, p.stride_w, [=](Phase phase) {
    team.each_in_lines(0, phase.count, p.lanes,
                       [=](int64_t j, int64_t i) { to[(phase.first + j * p.stride_w) * p.lanes + i] = 0; });
    for (int64_t ky = p.kernel_h - 1; ky >= 0; --ky) {
      const int64_t oy = window_over(y + p.pad_h - ky, p.stride_h, p.out_height);
      if (oy < 0) continue;
      for (int64_t kx = p.kernel_w - 1; kx >= 0; --kx) {
        const Range lines = lines_under(phase, p.pad_w - kx, p.stride_w, p.out_width);
        const int64_t from = (plane * p.out_height + oy) * p.out_width + (phase.first + p.pad_w - kx) / p.stride_w;
        const Real* const grad = a.grad + from * p.lanes;
        const uint8_t* const index = a.index + from * p.lanes;
        const uint8_t here = uint8_t(ky * p.kernel_w + kx);
        team.each_in_lines(lines.begin, lines.end, p.lanes, [=](int64_t j, int64_t i) {
          const int64_t entry = j * p.lanes + i;
          to[(phase.first + j * p.stride_w) * p.lanes + i] += index[entry] == here ? grad[entry] : Real(0);
        });
      }
    }
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
