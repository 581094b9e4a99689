// From the gradient at a convolution's columns to the gradient at its input: the sum over all windows that an entry lies under.
//
//   out[b, c, y, x] = sum over (ky, kx) of columns[b, c, ky, kx, oy, ox],   oy stride_h - pad_h + ky dilation_h = y, likewise ox
//
// The columns are the product of the output's gradient with the weights, (kernel_h kernel_w C_in x C_out) (C_out x positions), a
// matrix product of little waste where C_in is small; there the usual direct convolution fills vectors with C_in numbers alone.
// For every row, the terms are added in one order (ky, then kx, falling).
#pragma once

#include "core/portable.h"
#include "core/tensor_view.h"
#include "ops/sliding.h"

namespace sparring {

template <class Real>
struct Col2im {
  int64_t rows, n;  // B * C_in * height lines of width
  int64_t channels, height, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  const Real* columns;               // out_height out_width numbers next to each other for every (b, c, ky, kx), which is
  int64_t image_stride, tap_stride;  // image_stride b + tap_stride ((ky kernel_w + kx) C_in + c) numbers into it
  Real* out;
};

namespace SPARRING_ISA_NAMESPACE {

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const Col2im<Real>& a, int64_t row, int64_t /*slot*/) {
  const int64_t plane = row / a.height, y = row - plane * a.height, image = plane / a.channels,
                channel = plane - image * a.channels;
  const Real* const columns = a.columns + image * a.image_stride + channel * a.tap_stride;
  Real* const out = a.out + row * a.n;
  for_each_phase(a.n, a.stride_w, [=](Phase phase) {
    Real* const to = out + phase.first;
    team.each_in_lines(0, phase.count, 1, [=](int64_t j, int64_t) { to[j * a.stride_w] = 0; });
    for (int64_t ky = a.kernel_h - 1; ky >= 0; --ky) {
      const int64_t oy = window_over(y + a.pad_h - ky * a.dilation_h, a.stride_h, a.out_height);
      if (oy < 0) continue;
      for (int64_t kx = a.kernel_w - 1; kx >= 0; --kx) {
        const int64_t offset = a.pad_w - kx * a.dilation_w;
        const Range lines = lines_under(phase, offset, a.stride_w, a.out_width);
        const Real* const from =
            columns + (ky * a.kernel_w + kx) * a.channels * a.tap_stride + oy * a.out_width + (phase.first + offset) / a.stride_w;
        if (a.stride_w == 1)  // vectors are loaded whole
          team.each_in_lines(lines.begin, lines.end, 1, [=](int64_t j, int64_t) { to[j] += from[j]; });
        else
          team.each_in_lines(lines.begin, lines.end, 1, [=](int64_t j, int64_t) { to[j * a.stride_w] += from[j]; });
      }
    }
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
