// A round of random search over few places, for many images at once: what becomes of the points that were tried, and the next ones.
//
// A row is an image of channels * places numbers, channel first; its places lie in a grid of planes, lines and columns. At most k
// places of it differ from x, those of its set, and there each channel is at a face of the box. Of each image so many `trials` are
// asked about at once; given the loss at each, and whether the model is fooled there:
//
//   judge    The best trial - one that fools before any other, then of highest loss, then the first - becomes `best`, and its set
//            the set, if it fools where best does not, or is alike in that and of no lower loss. The first best is any trial.
//   propose  For each trial as many places of the set as share * k, rounded down, but at least one, are drawn; they go back to x,
//            and as many outside of the set join it: with probability `local` the neighbour of one in the set, in some direction of
//            the grid, else any place, in either case the next one free from there. In these every channel goes to a face of the
//            box, with a probability that grows as the square of the way there. Where no place is free, those drawn change their
//            faces alone.
//
// Croce, Andriushchenko, Singh, Flammarion & Hein 2022, "Sparse-RS: a versatile framework for query-efficient sparse black-box
// adversarial attacks"; there one trial is asked about at a time, places are drawn anywhere and faces evenly, and only a gain is
// moved to.
//
// Random numbers follow from the row's seed, the query's number and the trial's. Rows that are done (with `stop`, once fooled) stay
// as they are.
#pragma once

#include "core/counter_random.h"
#include "core/portable.h"
#include "core/tensor_view.h"

namespace sparring {

/// Places in planes of lines of so many columns.
struct Grid {
  int64_t planes, lines, columns;
};

template <class Real>
struct SparseSearch {
  int64_t rows, n;  // n: the places that a set may have; the work is of that size
  int64_t channels, trials;
  Grid grid;
  Rows<const Real> x;
  Rows<Real> trial, best;    // trial: (rows * trials, channels * places)
  const Real* loss;          // (rows, trials): at the trials, and
  const uint8_t* fooled;     // whether the model is fooled there; null: nothing is judged
  bool begins, proposes;     // begins: there is no set yet, and one trial
  const int64_t *k, *seeds;  // k: at most n, and at most all places
  double* best_loss;
  uint8_t* best_fooled;
  int64_t* used;                        // the query that fooled first
  int32_t *chosen, *leaving, *joining;  // (rows, n) the set; (rows, trials, n) what a trial has not of it, and has instead
  int32_t* swaps;                       // (rows): how many these are
  Rows<uint8_t> member;                 // of every place: whether it is in the set
  int64_t query;                        // queries before this call
  double share, local;
  bool stop;
  Real lo, hi;
};

namespace SPARRING_ISA_NAMESPACE {

/// The set of one row, and the points that belong to it.
template <class Real>
struct SparseSet {
  int64_t channels, places, k;
  const Real* x;
  int32_t* chosen;
  uint8_t* member;

  SPARRING_FN void copy(Real* to, const Real* from, int64_t place) const {
    for (int64_t c = 0; c < channels; ++c) to[c * places + place] = from[c * places + place];
  }

  SPARRING_FN int64_t next_free(int64_t place) const {
    while (member[place] != 0) place = place + 1 < places ? place + 1 : 0;
    return place;
  }

  /// Exchanges the first `swaps` of the set for others, drawn from all of it.
  SPARRING_FN void shuffle(int64_t swaps, Draws& draws) const {
    for (int64_t j = 0; j < swaps; ++j) {
      const int64_t other = j + draws.below(k - j);
      const int32_t drawn = chosen[other];
      chosen[other] = chosen[j];
      chosen[j] = drawn;
    }
  }

  SPARRING_FN void paint(Real* point, int64_t place, Real lo, Real hi, Draws& draws) const {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = c * places + place;
      const double up = double(hi) - double(x[i]), down = double(x[i]) - double(lo);
      point[i] = draws.uniform() * (up * up + down * down) < up * up ? hi : lo;
    }
  }
};

SPARRING_FN int64_t one_step(int64_t from, int64_t length, Draws& draws) {
  if (length == 1) return from;
  const int64_t to = from + draws.below(3) - 1;
  return to < 0 || to >= length ? from : to;
}

/// A place beside another one, in any direction in which the grid goes on, or that place itself.
SPARRING_FN int64_t beside(int64_t place, Grid grid, Draws& draws) {
  const int64_t column = one_step(place % grid.columns, grid.columns, draws);
  const int64_t line = one_step(place / grid.columns % grid.lines, grid.lines, draws);
  const int64_t plane = one_step(place / (grid.columns * grid.lines), grid.planes, draws);
  return (plane * grid.lines + line) * grid.columns + column;
}

/// What a row's trials, asked about, make of `best` and of the set; all of them go back to best.
template <class Real>
SPARRING_FN void judge(const SparseSearch<Real>& a, int64_t row, const SparseSet<Real>& set) {
  const int64_t first = row * a.trials, swaps = a.swaps[row];
  const bool before = a.best_fooled[row] != 0;
  int64_t winner = 0;
  bool fooled = false;
  for (int64_t t = 0; t < a.trials; ++t) {
    const bool here = a.fooled[first + t] != 0;
    if (here && !fooled && !before) a.used[row] = a.query - a.trials + t + 1;
    if (here != fooled ? here : a.loss[first + t] > a.loss[first + winner]) winner = t;
    fooled = fooled || here;
  }
  const double loss = double(a.loss[first + winner]);
  const bool moves = fooled != before ? fooled : loss >= a.best_loss[row];
  Real* const best = a.best[row];
  const int32_t *const leaving = a.leaving + (first + winner) * a.n, *const joining = a.joining + (first + winner) * a.n;
  if (moves) {
    a.best_loss[row] = loss;
    a.best_fooled[row] = uint8_t(fooled);
    for (int64_t j = 0; j < swaps; ++j) {
      set.member[leaving[j]] = 0;
      set.copy(best, a.trial[first + winner], leaving[j]);
    }
    int64_t next = 0;
    for (int64_t j = 0; j < swaps; ++j) {
      set.member[joining[j]] = 1;
      set.copy(best, a.trial[first + winner], joining[j]);
    }
    for (int64_t i = 0; i < set.k && next < swaps; ++i)
      if (set.member[set.chosen[i]] == 0) set.chosen[i] = joining[next++];
  }
  for (int64_t t = 0; t < a.trials; ++t) {
    Real* const trial = a.trial[first + t];
    for (int64_t j = 0; j < swaps; ++j) {
      set.copy(trial, best, a.leaving[(first + t) * a.n + j]);
      set.copy(trial, best, a.joining[(first + t) * a.n + j]);
      if (moves) {
        set.copy(trial, best, leaving[j]);
        set.copy(trial, best, joining[j]);
      }
    }
  }
}

/// The next trials of a row, which are as best is.
template <class Real>
SPARRING_FN void propose(const SparseSearch<Real>& a, int64_t row, const SparseSet<Real>& set) {
  int64_t swaps = int64_t(a.share * double(set.k));
  swaps = a.begins || swaps > set.k ? set.k : swaps < 1 && set.k > 0 ? 1 : swaps;
  a.swaps[row] = int32_t(swaps);
  const int64_t free = a.begins ? set.places : set.places - set.k;
  for (int64_t t = 0; t < a.trials; ++t) {
    Draws draws(a.seeds[row], a.query + t);
    Real* const trial = a.trial[row * a.trials + t];
    int32_t *const leaving = a.leaving + (row * a.trials + t) * a.n, *const joining = a.joining + (row * a.trials + t) * a.n;
    if (!a.begins) set.shuffle(swaps, draws);
    for (int64_t j = 0; j < swaps; ++j) {
      leaving[j] = set.chosen[j];
      if (!a.begins) set.copy(trial, set.x, leaving[j]);
    }
    for (int64_t j = 0; j < swaps; ++j) {
      int64_t place = leaving[j];
      if (j < free) {
        const bool near = draws.uniform() < a.local;
        place = set.next_free(near && !a.begins ? beside(set.chosen[draws.below(set.k)], a.grid, draws) : draws.below(set.places));
      }
      if (a.begins) leaving[j] = set.chosen[j] = int32_t(place);
      joining[j] = int32_t(place);
      set.member[place] = 1;
      set.paint(trial, place, a.lo, a.hi, draws);
    }
    if (!a.begins)
      for (int64_t j = 0; j < swaps && j < free; ++j) set.member[joining[j]] = 0;
  }
}

/// What one lane does: a few places are changed, one after the other.
template <class Real>
SPARRING_FN void search_row(const SparseSearch<Real>& a, int64_t row) {
  const SparseSet<Real> set = {
      a.channels, a.grid.planes * a.grid.lines * a.grid.columns, a.k[row], a.x[row], a.chosen + row * a.n, a.member[row]};
  const auto done = [&] { return a.stop && a.best_fooled[row] != 0; };
  if (a.fooled != nullptr && !done()) judge(a, row, set);
  if (a.proposes && !done()) propose(a, row, set);
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const SparseSearch<Real>& a, int64_t row, int64_t /*slot*/) {
  team.each(1, [=](int64_t) { search_row(a, row); });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
