// For every example, the loss that an attack ascends and its gradient towards the logits of a network, or of all networks of an
// ensemble; and the ensemble's own logits.
//
// With logits u, label y, target t, softmax p, and u1 >= u2 >= ... the sorted logits, the loss is
//
//            without target                                 with target
//   ce       -log p_y                                       log p_t
//   prob     -p_y                                           p_t
//   margin   max of u_j over j != y, minus u_y              u_t minus the max of u_j over j != t
//   dlr      (max of u_j over j != y - u_y) / (u1 - u3)     (u_t - u_y) / (u1 - (u3 + u4) / 2)     denominators + 1e-12
//
// (margin: Carlini & Wagner 2017; dlr: Croce & Hein 2020). Among equal logits the lowest index counts as the larger one, and it
// alone receives the gradient. An ensemble of members m with logits z_m, softmax q_m and weights w_m that sum to 1 is
//
//   probs    u = log sum w_m q_m              logits    u = sum w_m z_m
//   loss     the loss is sum w_m loss(z_m); u = sum w_m log q_m is for show
//
// What training the weights needs is d loss / d log w_m, the weights being free: for probs sum_j (d loss / d u_j) r_mj with the member's
// share r_mj = w_m q_mj / e^(u_j) (for ce -r_my), for logits w_m z_m . (d loss / d u), for loss w_m loss(z_m).
//
// One member is its own ensemble, with u = z. Nothing is lost to rounding where a network is certain: losses near 0, and gradients
// such as p_y - 1, are sums of the other classes' shares, and mixtures are formed from logarithms, so that a class whose
// probability underflows still has its gradient. NaN or +inf among the logits makes the losses ce and prob, and their gradients,
// NaN; a label or target that is no class makes everything of its row NaN.
#pragma once

#include "core/elementary.h"
#include "core/tensor_view.h"
#include "team/results.h"

namespace sparring {

enum class LossKind : int { ce, margin, dlr, prob };
enum class Combine : int { probs, logits, loss };

/// Rows of several members: row r of member m.
template <class T>
struct MemberRows {
  T* data;
  int64_t member_stride, row_stride;

  SPARRING_ANYWHERE T* at(int64_t member, int64_t row) const { return data + member * member_stride + row * row_stride; }
};

template <class Real>
struct LossGrad {
  static constexpr int64_t kEntryWork = 32;  // exponentials, and many rows too short to fill a vector
  int64_t rows, n;                           // n = members * classes
  int64_t members, classes;
  MemberRows<const Real> logits;
  const double* weights;  // one a member; of no account for one member
  const int64_t* labels;
  const int64_t* targets;  // null: none
  LossKind loss;
  Combine combine;
  Real* value;            // the losses, one a row
  MemberRows<Real> grad;  // must not overlap the logits
  Rows<Real> combined;    // u; null: not wanted, for one member or Combine::loss
  Rows<Real> shares;      // d loss / d log w_m; null: not wanted
};

namespace SPARRING_ISA_NAMESPACE {

/// Unsigned integers in the order of the numbers; NaN comes last.
template <class Real>
SPARRING_FN typename Float<Real>::Bits ordered(Real a) {
  constexpr auto sign = typename Float<Real>::Bits(1) << (8 * sizeof(Real) - 1);
  const auto b = bits(a);
  const auto key = b & sign ? ~b : b | sign;
  return a == a ? key : ~typename Float<Real>::Bits(0);
}

template <class Real>
SPARRING_FN Real from_ordered(typename Float<Real>::Bits key) {
  constexpr auto sign = typename Float<Real>::Bits(1) << (8 * sizeof(Real) - 1);
  return from_bits<Real>(key & sign ? key ^ sign : ~key);
}

/// Where the largest of u is, the lowest index among equals, leaving out two or three places.
template <class Team, class Real>
SPARRING_FN int64_t largest_but(Team team, int64_t n, const Real* u, int64_t a, int64_t b = -1, int64_t c = -1) {
  using Bits = typename Float<Real>::Bits;
  const auto key = [=](int64_t k) { return (k == a) | (k == b) | (k == c) ? Bits(0) : ordered(u[k]); };
  const auto top = team.max(n, key);
  return n - int64_t(team.max(n, [=](int64_t k) { return key(k) == top ? Bits(n - k) : Bits(0); }));
}

/// f(team, n, row, out), on a CPU with a copy of a row that is short, filled up with classes of probability 0.
template <class Team, class Real, class F>
SPARRING_FN auto padded(Team team, int64_t n, const Real* row, Real* out, F f) {
  using Short = typename Team::Short;
  constexpr int length = Short::length;
  if constexpr (length > 0) {
    if (n <= length) {
      Real whole[length], result[length];
      for (int k = 0; k < length; ++k) whole[k] = -Real(__builtin_inf());
      __builtin_memcpy(whole, row, uint64_t(n) * sizeof(Real));
      const auto value = f(Short{}, int64_t(length), static_cast<const Real*>(whole), static_cast<Real*>(result));
      __builtin_memcpy(out, result, uint64_t(n) * sizeof(Real));
      return value;
    }
  }
  return f(team, n, row, out);
}

/// What a row is to become.
template <class Real>
struct Goal {
  int64_t label, wanted;  // wanted: the target, or the label if there is none
  bool targeted;
  Real sign;  // of the wanted class's score in the loss
};

/// The softmax of u about one class, as terms that do not cancel: p_k = e^(u_k - top) / total, others / total = 1 - p.
template <class Real>
struct Softmax {
  Real top, rest, total, of_class, others;
};

/// keep(k, e) is called with every e = e^(u_k - top).
template <class Team, class Real, class Keep>
SPARRING_FN Softmax<Real> softmax(Team team, int64_t n, const Real* u, int64_t at, Keep keep) {
  const Real top = from_ordered<Real>(team.max(n, [=](int64_t k) { return ordered(u[k]); }));
  const auto sums = team.sum2(n, [=](int64_t k) {
    const Real below = u[k] - top, e = exp(below), is_top = choose(below == 0, Real(1), Real(0));
    keep(k, e);
    return Pair<Real>{e - is_top, is_top};
  });
  Softmax<Real> s;
  s.top = top;
  s.rest = Real(sums.first + (sums.second - 1));
  s.total = 1 + s.rest;
  s.of_class = exp(u[at] - top);
  s.others = u[at] == top ? s.rest : 1 + (s.rest - s.of_class);
  return s;
}

struct KeepNothing {
  template <class Real>
  SPARRING_FN void operator()(int64_t, Real) const {}
};

/// A loss at u, and its derivative as shares of a few classes: dL = sum by_j d u_at_j, or of d log p_at_j for the losses of p.
template <class Real, int count_>
struct Slope {
  static constexpr int count = count_;
  Real value;
  int64_t at[count];
  Real by[count];

  /// What there is for class k, and for all others.
  SPARRING_FN Pair<Real> shares(int64_t k) const {
    Pair<Real> sum = {0, 0};
    for (int j = 0; j < count; ++j) {
      sum.first += k == at[j] ? by[j] : Real(0);
      sum.second += k == at[j] ? Real(0) : by[j];
    }
    return sum;
  }
};

/// ce and prob.
struct SoftmaxLoss {
  bool of_logarithm;

  template <class Real>
  SPARRING_FN Slope<Real, 1> slope(const Softmax<Real>& p, const Real* u, Goal<Real> goal) const {
    const Real signed_p = goal.sign * (p.of_class / p.total), log_p = (u[goal.wanted] - p.top) - log1p(p.rest);
    return {of_logarithm ? goal.sign * log_p : signed_p, {goal.wanted}, {of_logarithm ? goal.sign : signed_p}};
  }

  template <class Team, class Real>
  SPARRING_FN Slope<Real, 1> slope(Team team, int64_t n, const Real* u, Goal<Real> goal) const {
    return slope(softmax(team, n, u, goal.wanted, KeepNothing{}), u, goal);
  }

  /// The loss of the logits u; grad = scale times its gradient.
  template <class Team, class Real>
  SPARRING_FN Real with_grad(Team team, int64_t n, const Real* u, Goal<Real> goal, Real scale, Real* grad) const {
    const int64_t wanted = goal.wanted;
    const auto p = softmax(team, n, u, wanted, [=](int64_t k, Real e) { grad[k] = e; });
    const auto s = slope(p, u, goal);
    const Real by = scale * s.by[0] / p.total;
    team.each(n, [=](int64_t k) { grad[k] = k == wanted ? by * p.others : -by * grad[k]; });
    return s.value;
  }
};

/// margin and dlr.
struct RankedLoss {
  bool is_ratio;

  template <class Team, class Real>
  SPARRING_FN Slope<Real, 5> slope(Team team, int64_t n, const Real* u, Goal<Real> goal) const {
    if (!is_ratio) {
      const int64_t wanted = goal.wanted, other = largest_but(team, n, u, wanted);
      return {goal.sign * (u[wanted] - u[other]), {wanted, other, wanted, wanted, wanted}, {goal.sign, -goal.sign, 0, 0, 0}};
    }
    const int64_t first = largest_but(team, n, u, -1), second = largest_but(team, n, u, first);
    const int64_t third = largest_but(team, n, u, first, second);
    const int64_t fourth = goal.targeted ? largest_but(team, n, u, first, second, third) : third;
    const int64_t other = goal.targeted ? goal.wanted : first == goal.label ? second : first;
    const Real spread = ((u[first] - u[third]) + (u[first] - u[fourth])) / 2 + Real(1e-12);
    const Real value = (u[other] - u[goal.label]) / spread, by = 1 / spread, by_low = value / spread / 2;
    return {value, {other, goal.label, first, third, fourth}, {by, -by, -2 * by_low, by_low, by_low}};
  }

  /// The loss of the logits u; grad = scale times its gradient.
  template <class Team, class Real>
  SPARRING_FN Real with_grad(Team team, int64_t n, const Real* u, Goal<Real> goal, Real scale, Real* grad) const {
    const auto s = slope(team, n, u, goal);
    team.each(n, [=](int64_t k) { grad[k] = scale * s.shares(k).first; });
    return s.value;
  }
};

/// Calls f with the loss; the two of a kind share their code, which is long.
template <class F>
SPARRING_FN void with_loss(LossKind kind, F f) {
  if (kind == LossKind::ce || kind == LossKind::prob)
    f(SoftmaxLoss{kind == LossKind::ce});
  else
    f(RankedLoss{kind == LossKind::dlr});
}

/// A member's gradient in a mixture of probabilities, from its log q, in whose place it may be written. With u = log mixture,
/// d u_j = r_j d log q_j where r_j = w q_j / e^(u_j) is the member's share in class j, and d log q_j = d z_j - sum q_k d z_k.
/// Returns d loss / d log w.
template <class Team, class Real, int count>
SPARRING_FN Real member_grad(Team team, int64_t n, const Real* u, Slope<Real, count> s, Real weight, const Real* log_q,
                             Real* grad) {
  for (int j = 0; j < count; ++j) s.by[j] *= weight > 0 ? weight * exp(log_q[s.at[j]] - u[s.at[j]]) : Real(0);
  team.sync();  // all have read
  const Real half = Real(0.5);
  const Real minor = Real(team.sum(n, [=](int64_t k) {
    const Real q = exp(log_q[k]);
    grad[k] = q;
    return choose(q > half, Real(0), q);
  }));
  team.each(n, [=](int64_t k) {
    const Real q = grad[k], others = q > half ? minor : 1 - q;  // at most one class has more than half
    const auto by = s.shares(k);
    grad[k] = by.first * others - by.second * q;
  });
  Real share = 0;
  for (int j = 0; j < count; ++j) share += s.by[j];
  return share;
}

/// One row of the arguments.
template <class Real>
struct LossRow {
  const LossGrad<Real>& a;
  int64_t row;

  SPARRING_FN const Real* logits(int64_t m) const { return a.logits.at(m, row); }
  SPARRING_FN Real* grad(int64_t m) const { return a.grad.at(m, row); }
  SPARRING_FN Real weight(int64_t m) const { return Real(a.weights[m]); }

  /// Puts down d loss / d log w_m where it is wanted.
  template <class Team>
  SPARRING_FN void share(Team team, int64_t m, Real value) const {
    Real* const shares = a.shares[row];
    if (shares != nullptr) team.each(1, [=](int64_t) { shares[m] = value; });
  }
};

/// Puts log q of every member where its gradient will be.
template <class Team, class Real>
SPARRING_FN void log_softmax(Team team, LossRow<Real> r) {
  const int64_t n = r.a.classes;
  team.split(r.a.members, [=](auto part, int64_t m) {
    padded(part, n, r.logits(m), r.grad(m), [=](auto lanes, int64_t count, const Real* z, Real* log_q) {
      const auto p = softmax(lanes, count, z, 0, KeepNothing{});
      const Real log_total = log1p(p.rest);
      lanes.each(count, [=](int64_t k) { log_q[k] = (z[k] - p.top) - log_total; });
      return log_total;
    });
  });
}

/// u_k = sum_m w_m v_mk.
template <class Team, class Real>
SPARRING_FN void weighted_mean(Team team, LossRow<Real> r, MemberRows<const Real> values, Real* u) {
  const double* const weights = r.a.weights;
  const int64_t members = r.a.members, stride = values.member_stride;
  const Real* const first = values.at(0, r.row);
  team.each(r.a.classes, [=](int64_t k) {
    Real mean = 0;
    for (int64_t m = 0; m < members; ++m) mean += Real(weights[m]) * first[m * stride + k];
    u[k] = mean;
  });
  team.sync();
}

/// log_mixture on a CPU for `count` classes from `begin` on, side by side.
template <class Short, class Real>
SPARRING_FN void log_mixture_of(LossRow<Real> r, int64_t begin, int64_t count, Real* u) {
  const Short lanes;
  constexpr int width = Short::length;
  Real top[width], sum[width], log_q[width];
  lanes.each(width, [&](int64_t i) {
    top[i] = log_q[i] = -Real(__builtin_inf());
    sum[i] = 0;
  });
  const auto each_member = [&](auto f) {
    for (int64_t m = 0; m < r.a.members; ++m) {
      const Real weight = r.weight(m);
      if (!(weight > 0)) continue;
      __builtin_memcpy(log_q, r.grad(m) + begin, uint64_t(count) * sizeof(Real));
      lanes.each(width, [&](int64_t i) { f(i, weight); });
    }
  };
  each_member([&](int64_t i, Real) { top[i] = larger(log_q[i], top[i]); });
  lanes.each(width, [&](int64_t i) { top[i] = choose(top[i] < -Float<Real>::largest, Real(0), top[i]); });
  each_member([&](int64_t i, Real weight) { sum[i] += weight * exp(log_q[i] - top[i]); });
  lanes.each(width, [&](int64_t i) { top[i] += log(sum[i]); });
  __builtin_memcpy(u + begin, top, uint64_t(count) * sizeof(Real));
}

/// u_k = log sum_m w_m e^(log q_mk), about the largest of them; log q is where the gradient will be.
template <class Team, class Real>
SPARRING_FN void log_mixture(Team team, LossRow<Real> r, Real* u) {
  const int64_t members = r.a.members, classes = r.a.classes;
  using Short = typename Team::Short;
  constexpr int64_t width = Short::length;
  if constexpr (width > 0) {
    for (int64_t k = 0; k < classes; k += width) log_mixture_of<Short>(r, k, classes - k < width ? classes - k : width, u);
  } else {
    team.split(classes, [=](auto part, int64_t k) {
      const auto log_q = [=](int64_t m) { return choose(r.weight(m) > 0, r.grad(m)[k], -Real(__builtin_inf())); };
      const Real top = from_ordered<Real>(part.max(members, [=](int64_t m) { return ordered(log_q(m)); }));
      const Real base = choose(top < -Float<Real>::largest, Real(0), top);
      const Real sum = Real(part.sum(members, [=](int64_t m) { return r.weight(m) * exp(log_q(m) - base); }));
      part.each(1, [=](int64_t) { u[k] = base + log(sum); });
    });
  }
}

/// The loss of one network, or of a member; grad = scale times its gradient.
template <class Loss, class Team, class Real>
SPARRING_FN Real loss_of(Loss loss, Team team, int64_t n, const Real* logits, Goal<Real> goal, Real scale, Real* grad) {
  return padded(team, n, logits, grad, [=](auto lanes, int64_t count, const Real* u, Real* out) {
    return loss.with_grad(lanes, count, u, goal, scale, out);
  });
}

template <class Loss, class Team, class Real>
SPARRING_FN Real loss_grad(Loss loss, Team team, LossRow<Real> r, Goal<Real> goal, Real* u) {
  const int64_t n = r.a.classes, members = r.a.members;
  if (members == 1) return loss_of(loss, team, n, r.logits(0), goal, Real(1), r.grad(0));
  switch (r.a.combine) {
    case Combine::probs: {
      log_softmax(team, r);
      log_mixture(team, r, u);
      const auto s = loss.slope(team, n, u, goal);
      team.split(members, [=](auto part, int64_t m) {
        const Real share = padded(part, n, r.grad(m), r.grad(m), [=](auto lanes, int64_t count, const Real* log_q, Real* grad) {
          return member_grad(lanes, count, u, s, r.weight(m), log_q, grad);
        });
        r.share(part, m, share);
      });
      return s.value;
    }
    case Combine::logits: {
      weighted_mean(team, r, r.a.logits, u);
      const Real value = loss_of(loss, team, n, u, goal, Real(1), r.grad(0));
      team.sync();
      if (r.a.shares[r.row] != nullptr) {
        team.split(members, [=](auto part, int64_t m) {
          const Real* const z = r.logits(m);
          const Real* const g = r.grad(0);
          r.share(part, m, r.weight(m) * Real(part.sum(n, [=](int64_t k) { return g[k] * z[k]; })));
        });
        team.sync();
      }
      team.split(members - 1, [=](auto part, int64_t m) {
        part.each(n, [=](int64_t k) { r.grad(m + 1)[k] = r.weight(m + 1) * r.grad(0)[k]; });
      });
      team.each(n, [=](int64_t k) { r.grad(0)[k] *= r.weight(0); });
      return value;
    }
    case Combine::loss: {
      if (u != nullptr) {
        log_softmax(team, r);
        weighted_mean(team, r, MemberRows<const Real>{r.a.grad.data, r.a.grad.member_stride, r.a.grad.row_stride}, u);
      }
      return Real(team.split_sum(members, [=](auto part, int64_t m) {
        const Real weight = r.weight(m);
        const Real value = weight * loss_of(loss, part, n, r.logits(m), goal, weight, r.grad(m));
        r.share(part, m, value);
        return double(value);
      }));
    }
  }
  return not_a_number<Real>();
}

template <class Team, class Real>
SPARRING_FN void run_row(Team team, const LossGrad<Real>& a, int64_t row, int64_t /*slot*/) {
  const LossRow<Real> r = {a, row};
  const bool targeted = a.targets != nullptr;
  const int64_t label = a.labels[row], wanted = targeted ? a.targets[row] : label;
  Real* const u = a.combined[row];
  Real* const value = a.value + row;
  if ((label < 0) | (label >= a.classes) | (wanted < 0) | (wanted >= a.classes)) {
    const Real nan = not_a_number<Real>();
    team.each(1, [=](int64_t) { *value = nan; });
    for (int64_t m = 0; m < a.members; ++m) team.each(a.classes, [=](int64_t k) { r.grad(m)[k] = nan; });
    if (u != nullptr) team.each(a.classes, [=](int64_t k) { u[k] = nan; });
    for (int64_t m = 0; m < a.members; ++m) r.share(team, m, nan);
    return;
  }
  const Goal<Real> goal = {label, wanted, targeted, targeted ? Real(1) : Real(-1)};
  with_loss(a.loss, [=](auto loss) {
    const Real result = loss_grad(loss, team, r, goal, u);
    team.each(1, [=](int64_t) { *value = result; });
  });
}

}  // namespace SPARRING_ISA_NAMESPACE
}  // namespace sparring
