// Nearest point of the L1 ball cut by the box.
//
// For one row of n numbers: out = the v nearest to delta (in the Euclidean norm) with |v|_1 <= eps and lo <= x + v <= hi,
//
//   v_i = sign(delta_i) clip(m_i - t, 0, room_i),   m_i = |delta_i|,   room_i = the way from x_i to the face delta_i points at,
//
// with t = 0 if that fits into the ball, else t > 0 such that sum |v_i| = eps (Croce & Hein 2021, "Mind the box: L1-APGD for
// sparse adversarial attacks on image classifiers", appendix A; they sort the 2n break points, this code sorts nothing).
//
// Promises: the exact sum of |v_i| is at most eps, with room for whatever order of additions in float64 one checks it in;
// x + v leaves the box by no rounding; n = 1, eps = 0, eps = inf, infinite bounds, |delta| / eps from 1e-20 to 1e20.
// A row with NaN or inf in x or delta comes back as NaN throughout and is reported in bad_row.
// x outside the box counts as having no room on that side. out may be delta.
#pragma once

#include "core/portable.h"
#include "core/tensor_view.h"
#include "ops/l1_threshold.h"
#include "team/results.h"

namespace sparring {

template <class Real>
struct ProjectL1Box {
  int64_t rows, n;
  Rows<const Real> delta, x;
  PerRow<double> eps;  // >= 0
  Real lo, hi;
  Rows<Real> out;
  int64_t* bad_row;  // the lowest row with NaN or inf is written here if it is below what stands there
};

namespace SPARRING_ISA_NAMESPACE {

template <class Real>
struct Few;  // team/few.h, included where the team copies

template <class Real>
SPARRING_FN Real kept_of(Real x, Real d, Box<Real> box, Threshold<Real> t) {
  const Real v = t.kept(magnitude(d), box.room_inside(x, d));
  return d < 0 ? Real(0) - v : v;
}

/// A threshold that is probably too low, from the survey of `share` of a row.
template <class Real>
SPARRING_FN Real low_guess(Survey<double> part, double share, double eps) {
  const Real guess = Real(0.85 * Start<Real>{0, part.sum / share, part.count / share}.step(eps));
  return guess > 0 ? guess : Real(0);
}

/// Surveys a row, and on the way copies out the entries above a threshold that is probably too low, going by what came before.
template <class Team, class Real, class Look>
SPARRING_FN Survey<double> survey_and_copy(Team team, int64_t n, Look look, Entries<Real> entries, double eps, Few<Real>& few) {
  Survey<double> whole = {0, 0, 0};
  for (int64_t begin = 0; begin < n; begin += team.kBlock) {
    const int64_t end = begin + team.kBlock < n ? begin + team.kBlock : n;
    const auto part = few.survey_and_add(team, begin, end, look, entries.x, entries.delta);
    whole = {whole.sum + part.sum, whole.count + part.count, larger(part.largest, whole.largest)};
    few.least = larger(low_guess<Real>(whole, double(end) / double(n), eps), few.least);
    if (begin == 0) {
      few.start(few.least);
      few.add(begin, end, entries.x, entries.delta);
    }
  }
  return whole;
}

/// Most entries end as 0. If those above few.least keep too much there, the others keep nothing, and all that is left to do passes
/// over a few numbers. Returns false, and writes nothing, where that does not hold.
template <class Team, class Real>
SPARRING_FN bool project_few(Team team, int64_t n, Few<Real>& few, Box<Real> box, Real largest, Window window, Real* out) {
  if (few.count <= 0) return false;
  const int64_t padded = few.pad_with_zeros();  // which keep nothing
  const Entries<Real> copied = {few.a, few.b, box};
  const Real low = few.least;
  const auto kept = team.sum2(padded, [=](int64_t i) {
    const Real over = copied.size(i) - low, here = larger(smaller(over, copied.room(i)), Real(0));
    return Pair<double>{double(here), here == over ? 1.0 : 0.0};
  });
  if (!(kept.first > window.most)) return false;
  const auto t = find_threshold(team, padded, copied, Start<Real>{low, kept.first, kept.second}, largest, window);
  Real* const v = few.b;
  team.each(padded, [=](int64_t i) { v[i] = kept_of(copied.x[i], v[i], box, t); });
  few.write_b(n, out);
  return true;
}

/// The projection of a row whose survey is `whole`. Returns false, and writes NaN, if an entry is not finite.
template <class Team, class Real>
SPARRING_FN bool project_surveyed(Team team, int64_t n, Entries<Real> entries, double eps, Window window, Survey<double> whole,
                                  [[maybe_unused]] Few<Real>* few, Real* out) {
  if (whole.sum != whole.sum) {
    team.each(n, [=](int64_t i) { out[i] = not_a_number<Real>(); });
    return false;
  }
  const Real largest = Real(whole.largest);
  Start<Real> start = {0, whole.sum, whole.count};
  if (magnitude(start.mass - window.most) <= 1e-4 * window.most)  // a sum in Real cannot tell
    start.mass = team.sum(n, [=](int64_t i) { return double(larger(smaller(entries.size(i), entries.room(i)), Real(0))); });
  Threshold<Real> t = {0, 0};
  if (eps <= 0) {
    t.anchor = largest;
  } else if (start.mass > window.most) {
    if constexpr (Team::copies) {
      if (few != nullptr && project_few(team, n, *few, entries.box, largest, window, out)) return true;
      if (few != nullptr && n > team.kBlock) {  // the row did not go on as it began
        few->start(low_guess<Real>(whole, 1, window.most));
        few->add(0, n, entries.x, entries.delta);
        if (project_few(team, n, *few, entries.box, largest, window, out)) return true;
      }
    }
    t = find_threshold(team, n, entries, start, largest, window);
  }
  team.each(n, [=](int64_t i) { out[i] = kept_of(entries.x[i], entries.delta[i], entries.box, t); });
  return true;
}

/// One row. Returns false, and writes NaN, if x or delta has an entry that is not finite. first(i) is called once for every entry,
/// before delta[i] is read, and returns it.
template <class Team, class Real, class First>
SPARRING_FN bool project_l1_box(Team team, int64_t n, const Real* x, First first, const Real* delta, double eps, Box<Real> box,
                                Real* out) {
  const auto look = [=](int64_t i) {
    const Real d = first(i), m = magnitude(d), kept = larger(smaller(m, box.room(x[i], d)), Real(0));
    return Survey<Real>{is_finite(d) & is_finite(x[i]) ? kept : not_a_number<Real>(), (m > 0) & (m == kept) ? Real(1) : Real(0), m};
  };
  // Sums of n terms in float64, in any order, err by at most n half units in the last place: stay that much below eps.
  const double most = n == 1 ? eps : eps * (1 - double(n + 2) * 0x1p-52);
  const double least = most - eps * (sizeof(Real) == 4 ? 0x1p-22 : double(n + 2) * 0x1p-51);
  const Window window = {least, most};
  const Entries<Real> entries = {x, delta, box};
  if constexpr (Team::copies) {
    if (Few<Real>::worth_it(n)) {
      Few<Real> few;
      const auto whole = survey_and_copy(team, n, look, entries, most, few);
      return project_surveyed(team, n, entries, eps, window, whole, &few, out);
    }
  }
  return project_surveyed(team, n, entries, eps, window, team.survey(n, look), static_cast<Few<Real>*>(nullptr), out);
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const ProjectL1Box<Real>& a, int64_t row, int64_t /*slot*/) {
  const Box<Real> box = {a.lo, a.hi};
  const Real* const delta = a.delta[row];
  const auto as_given = [=](int64_t i) { return delta[i]; };
  if (!project_l1_box(team, a.n, a.x[row], as_given, delta, a.eps[row], box, a.out[row])) team.report(a.bad_row, row);
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
