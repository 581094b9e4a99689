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

/// The best entry of a window so far; in the order in which entries are taken, the first of equals stays.
template <class Real>
struct Best {
  Real value;
  uint8_t entry;

  SPARRING_FN Best or_better(Real other, int64_t here) const {
    const bool better = (other > value) | (other != other) | (entry == kNoEntry);
    return {better ? other : value, better ? uint8_t(here) : entry};
  }
  SPARRING_FN Best after_relu(bool relu) const {
    const bool dead = relu & (value <= 0);
    return {dead ? Real(0) : value, dead ? kNoEntry : entry};
  }
};

/// A line of windows; entry(ky, kx, o, i) is what stands there under window o.
template <class Team, class Real, class Entry>
SPARRING_FN void pool_line(Team team, const ReluPool<Real>& a, int64_t top, Real* out, uint8_t* index, Entry entry) {
  const Pooling p = a.p;
  const bool relu = a.relu;
  const auto keep = [=](int64_t to, Best<Real> best) {
    out[to] = best.value;
    index[to] = best.entry;
  };
  const bool whole =
      top >= 0 && top + p.kernel_h <= p.height && p.pad_w == 0 && (p.out_width - 1) * p.stride_w + p.kernel_w <= p.width;
  if (whole && p.kernel_h == 2 && p.kernel_w == 2) {  // the usual windows, in one pass: half the time
    return team.each_in_lines(0, p.out_width, p.lanes, [=](int64_t o, int64_t i) {
      const Best<Real> above = Best<Real>{entry(0, 0, o, i), 0}.or_better(entry(0, 1, o, i), 1);
      const Best<Real> best = above.or_better(entry(1, 0, o, i), 2).or_better(entry(1, 1, o, i), 3);
      keep(o * p.lanes + i, best.after_relu(relu));
    });
  }
  // else one entry of all windows after the other: loops that vectorise whatever the window
  team.each_in_lines(0, p.out_width, p.lanes, [=](int64_t o, int64_t i) { keep(o * p.lanes + i, {0, kNoEntry}); });
  for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
    if (top + ky < 0 || top + ky >= p.height) continue;
    for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
      const Range windows = inside(p.out_width, p.stride_w, kx - p.pad_w, p.width);
      team.each_in_lines(windows.begin, windows.end, p.lanes, [=](int64_t o, int64_t i) {
        const int64_t to = o * p.lanes + i;
        keep(to, Best<Real>{out[to], index[to]}.or_better(entry(ky, kx, o, i), ky * p.kernel_w + kx));
      });
    }
  }
  team.each_in_lines(0, p.out_width, p.lanes, [=](int64_t o, int64_t i) {
    const int64_t to = o * p.lanes + i;
    keep(to, Best<Real>{out[to], index[to]}.after_relu(relu));
  });
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ReluPool<Real>& a, int64_t row, int64_t /*slot*/) {
  const Pooling p = a.p;
  const int64_t plane = row / p.out_height, top = (row - plane * p.out_height) * p.stride_h - p.pad_h;
  const int64_t line = p.width * p.lanes, across = p.lanes * p.stride_w;
  const Real* const z = a.z + (plane * p.height + top) * line - p.pad_w * p.lanes;
  const auto entry = [=](int64_t ky, int64_t kx, int64_t o, int64_t i) { return z[ky * line + kx * p.lanes + o * across + i]; };
  Real* const out = a.out + row * a.n;
  uint8_t* const index = a.index + row * a.n;
  if (a.bias == nullptr) return pool_line(team, a, top, out, index, entry);
  const Real* const bias = a.bias + plane % (p.channels / p.lanes) * p.lanes;
  pool_line(team, a, top, out, index, [=](int64_t ky, int64_t kx, int64_t o, int64_t i) { return entry(ky, kx, o, i) + bias[i]; });
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ReluPoolBackward<Real>& a, int64_t row, int64_t /*slot*/) {
  const Pooling p = a.p;
  const int64_t plane = row / p.height, y = row - plane * p.height;
  Real* const to = a.grad_z + row * a.n;
  for_each_phase(p.width, p.stride_w, [=](Phase phase) {
    const auto at = [=](int64_t j, int64_t i) { return (phase.first + j * p.stride_w) * p.lanes + i; };
    bool written = false;
    const auto clear = [=] { team.each_in_lines(0, phase.count, p.lanes, [=](int64_t j, int64_t i) { to[at(j, i)] = 0; }); };
    for (int64_t ky = p.kernel_h - 1; ky >= 0; --ky) {
      const int64_t oy = window_over(y + p.pad_h - ky, p.stride_h, p.out_height);
      if (oy < 0) continue;
      for (int64_t kx = p.kernel_w - 1; kx >= 0; --kx) {
        const Range lines = lines_under(phase, p.pad_w - kx, p.stride_w, p.out_width);
        if (lines.begin >= lines.end) continue;
        const int64_t from = (plane * p.out_height + oy) * p.out_width + (phase.first + p.pad_w - kx) / p.stride_w;
        const Real* const grad = a.grad + from * p.lanes;
        const uint8_t* const index = a.index + from * p.lanes;
        const uint8_t here = uint8_t(ky * p.kernel_w + kx);
        const auto share = [=](int64_t j, int64_t i) {
          const int64_t entry = j * p.lanes + i;
          return index[entry] == here ? grad[entry] : Real(0);
        };
        if (!written && lines.begin == 0 && lines.end == phase.count) {
          team.each_in_lines(0, phase.count, p.lanes, [=](int64_t j, int64_t i) { to[at(j, i)] = share(j, i); });
        } else {
          if (!written) clear();
          team.each_in_lines(lines.begin, lines.end, p.lanes, [=](int64_t j, int64_t i) { to[at(j, i)] += share(j, i); });
        }
        written = true;
      }
    }
    if (!written) clear();
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
