"""Attacks. Gradient attacks stay close to given inputs; `recover` makes fooling images from nothing.

What the gradient attacks share:

Parameters
----------
model
    An `nn.Module` from inputs (B, ...) to logits (B, K), or what `sparring.lower` made of one. It is in eval mode
    meanwhile, and left exactly as it was, `param.grad` and BatchNorm's statistics included.
inputs, labels
    float32 or float64 (B, ...) in the bounds (a millionth of the larger one outside is tolerated), and integer (B,), on
    the model's device.
eps
    Radius of the ball, in the units of the inputs: a number or one per example (B,).
norm
    inf, 2, 1 or "Linf", "L2", "L1"; for `sparse_rs` and `sparse_pgd` 0, "L0" (how many entries differ) or "pixels" (how
    many positions, all channels of one counting as one), where eps is a whole number.
targets
    Integer (B,): the classes to reach. None: any class but the label.
loss
    What is raised: "ce", "margin", "dlr", "prob" (see `sparring.losses`), or a function of logits and classes.
bounds
    Smallest and largest value of an entry.
preprocessing
    A module, or ``{"mean": ..., "std": ...}`` of the channels, between the inputs and the model. Bounds and eps stay
    in the units in front of it.
eot
    For a model that is random: the gradient at a point, and its loss, are the mean over so many draws of the model
    (expectation over transformation, Athalye et al. 2018), and the point counts as fooling meanwhile where the mean of
    the probabilities does. `success` is what one fresh draw says of the returned point. A random model draws from
    torch's global generator, which is neither seeded nor set back: seed it for the same result again.
backward
    For a model whose gradient is hidden (it rounds, detaches, compresses): a module, or a function, from inputs to
    logits (B, K), whose gradient is followed instead, of the loss of its own logits. What counts, the loss and whether
    a point fools, is the answer of `model`. It stands behind the same `preprocessing`, and a module is held still too.
    See also `StraightThrough`.
steps
    Gradient steps (of each restart).
restarts, random_start
    How often to start, and whether from random points; the best point is kept example by example.
early_stop
    Whether an example is done once it is fooled. If not, its loss is raised to the end: stronger, when the point is to
    be used against another model, and slower. Done examples leave the batch; with `keep_finished` they stay, so that
    the rounding of the model's arithmetic does not depend on when others finish.
batch_size
    At most so many examples at a time.
generator
    Draws the random starts; None: one with seed 0. The attack never touches torch's global random state.
return_result
    False: return the adversarial inputs alone. True: an `AttackResult`.

Attacks of the smallest perturbation have no `eps`: they look for the nearest point that fools the model. `minimal` runs
the best for a norm; `alma`, `ddn`, `pdpgd`, `fab`, `lbfgs` and `sigma_zero` are single ones. Every returned point is in
the bounds and within `eps` when measured in float64. No example depends on another one, but for the rounding of the
model's own arithmetic.
"""

from sparring.attacks._evolve import Evolution, evolve
from sparring.attacks._result import AttackResult, GradientMaskingWarning
from sparring.attacks.apgd import INWARD, LARGE_EPS, apgd
from sparring.attacks.evolution import differential_evolution, evolve_images
from sparring.attacks.fgsm import fgm, fgsm
from sparring.attacks.lbfgs import lbfgs
from sparring.attacks.minimum_norm import alma, ddn, fab, minimal, pdpgd, sigma_zero
from sparring.attacks.noise import gaussian_noise, uniform_noise
from sparring.attacks.pgd import pgd, slide
from sparring.attacks.recovery import Method, Recovery, recover
from sparring.attacks.sparse_pgd import sparse_pgd
from sparring.attacks.sparse_rs import sparse_rs
from sparring.attacks.square import square
from sparring.attacks.straight_through import Differentiable, StraightThrough

__all__ = [
    "INWARD",
    "LARGE_EPS",
    "AttackResult",
    "Differentiable",
    "Evolution",
    "GradientMaskingWarning",
    "Method",
    "Recovery",
    "StraightThrough",
    "alma",
    "apgd",
    "ddn",
    "differential_evolution",
    "evolve",
    "evolve_images",
    "fab",
    "fgm",
    "fgsm",
    "gaussian_noise",
    "lbfgs",
    "minimal",
    "pdpgd",
    "pgd",
    "recover",
    "sigma_zero",
    "slide",
    "sparse_pgd",
    "sparse_rs",
    "square",
    "uniform_noise",
]
