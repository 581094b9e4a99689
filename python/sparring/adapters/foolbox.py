"""Sparring's attacks in Foolbox' dress: ``raw, clipped, is_adv = LinfPGD()(fmodel, images, labels, epsilons=[...])``.

``from sparring.adapters import foolbox as fb`` stands in for ``import foolbox as fb``: ``fb.PyTorchModel``,
``fb.attacks.LinfPGD``, ``fb.Misclassification``, ``fb.accuracy``. Names, arguments and defaults are those of Foolbox
3.3, the models and criteria of Foolbox itself are accepted too, and so are EagerPy tensors around torch's.

What differs: the best point of an example is returned, not the last one. Points of attacks with a fixed epsilon are
within it without clipping, so that `raw` and `clipped` are the same; random starts come from a generator with seed 0.
Attacks of the smallest perturbation (`DDNAttack`, `L2FMNAttack`, ...) accept ``epsilons=None``, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sparring import attacks as _attacks
from sparring.adapters import _foolbox as given
from sparring.adapters import only, refuse
from sparring.attacks._model import answered, held_still, preprocessed
from sparring.attacks._norms import ball_of
from sparring.attacks._problem import eps_of

PyTorchModel, accuracy = given.PyTorchModel, given.accuracy
Misclassification, TargetedMisclassification = given.Misclassification, given.TargetedMisclassification

Found = tuple[Tensor, Tensor, Tensor]
"""Images (B, ...), the same within an epsilon, and whether these fool, bool (B,)."""


class Attack:
    """What all attacks share."""

    def __init__(self) -> None:
        self.times = 1
        self.generator = torch.Generator().manual_seed(0)

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: float | Iterable[float | None] | None,
        **options: Any,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """Attack with each epsilon.

        Parameters
        ----------
        model
            A `PyTorchModel` of this module, or Foolbox' (whose forward pass then cannot be lowered).
        inputs
            (B, ...) in the model's bounds, and `epsilons` in their units.
        criterion
            Labels (B,), `Misclassification` or `TargetedMisclassification`.
        epsilons
            A number or several. None, or None among them, is for attacks of the smallest perturbation: no limit.

        Returns
        -------
        raw, clipped, is_adv
            Images like `inputs`, the same within epsilon, and bool (B,), whether the model is fooled by the latter; for
            several epsilons, two lists of images and bool (E, B).
        """
        if options:
            raise TypeError(f"{', '.join(sorted(options))}: not accepted; Sparring's attacks take no starting points")
        images, restore = given.plain(inputs)
        labels, targets = given.classes_of(criterion)
        module, setting = given.network(model)
        several = isinstance(epsilons, Iterable)
        sizes = [None if size is None else float(size) for size in _listed(epsilons)]
        if not sizes:
            raise ValueError("epsilons is empty; accepted: a number, or several")
        found = self._found(module, images, labels, sizes, {**setting, "targets": targets})
        raw, clipped = [restore(one[0]) for one in found], [restore(one[1]) for one in found]
        success = torch.stack([one[2] for one in found])
        return (raw, clipped, restore(success)) if several else (raw[0], clipped[0], restore(success[0]))

    def repeat(self, times: int) -> Attack:
        """The same, started so often; the best point of each example is kept."""
        if times < 1:
            raise ValueError(f"times must be at least 1; got {times}")
        other: Attack = type(self).__new__(type(self))
        vars(other).update(vars(self), times=self.times * times)
        return other

    def _found(
        self, module: nn.Module, images: Tensor, labels: Tensor, epsilons: Sequence[float | None],
        options: dict[str, Any],
    ) -> list[Found]:  # fmt: skip
        """What was found for each epsilon."""
        results = []
        for epsilon in epsilons:
            if epsilon is None:
                raise ValueError("epsilons must be numbers: these attacks do not look for the smallest perturbation")
            attack, settings = self._settings(epsilon)
            result = attack(module, images, labels, eps=epsilon, return_result=True, **settings, **options)
            results.append((result.adv, result.adv, result.success))
        return results

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The attack of `sparring.attacks`, and its arguments besides eps."""
        raise NotImplementedError


def _listed(epsilons: float | Iterable[float | None] | None) -> list[float | None]:
    return [*epsilons] if isinstance(epsilons, Iterable) else [epsilons]


class _FastGradient(Attack):
    """`sparring.attacks.fgsm`."""

    norm = math.inf

    def __init__(self, *, random_start: bool = False) -> None:
        super().__init__()
        only("Foolbox", "random_start", random_start, False, "use PGD with one step")

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        return _attacks.fgsm, {"norm": self.norm}


class LinfFastGradientAttack(_FastGradient):
    """FGSM."""


class L2FastGradientAttack(_FastGradient):
    """FGM."""

    norm = 2


class _GradientDescent(Attack):
    """`sparring.attacks.pgd`: `rel_stepsize` is its `step_size`."""

    norm = math.inf

    def __init__(self, rel_stepsize: float, abs_stepsize: float | None, steps: int, random_start: bool) -> None:
        super().__init__()
        self.rel_stepsize, self.abs_stepsize = rel_stepsize, abs_stepsize
        self.steps, self.random_start = steps, random_start

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        absolute = self.abs_stepsize
        step_size = self.rel_stepsize if absolute is None else absolute / eps if eps > 0 else 1.0
        return _attacks.pgd, {
            "norm": self.norm, "steps": self.steps, "step_size": step_size, "random_start": self.random_start,
            "restarts": self.times, "generator": self.generator,
        }  # fmt: skip


class LinfProjectedGradientDescentAttack(_GradientDescent):
    """PGD in Linf."""

    def __init__(
        self, *, rel_stepsize: float = 0.01 / 0.3, abs_stepsize: float | None = None, steps: int = 40,
        random_start: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(rel_stepsize, abs_stepsize, steps, random_start)


class L2ProjectedGradientDescentAttack(_GradientDescent):
    """PGD in L2."""

    norm = 2

    def __init__(
        self, *, rel_stepsize: float = 0.025, abs_stepsize: float | None = None, steps: int = 50,
        random_start: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(rel_stepsize, abs_stepsize, steps, random_start)


class L1ProjectedGradientDescentAttack(L2ProjectedGradientDescentAttack):
    """PGD in L1, but stronger than Foolbox': steps on the steepest 1 % of the entries, and the projection is exact."""

    norm = 1


class LinfBasicIterativeAttack(_GradientDescent):
    """PGD in Linf, from the inputs themselves."""

    def __init__(
        self, *, rel_stepsize: float = 0.2, abs_stepsize: float | None = None, steps: int = 10,
        random_start: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(rel_stepsize, abs_stepsize, steps, random_start)


class L2BasicIterativeAttack(LinfBasicIterativeAttack):
    """PGD in L2, from the inputs themselves."""

    norm = 2


class SparseL1DescentAttack(_GradientDescent):
    """`sparring.attacks.slide`, whose projection is exact where Foolbox' ignores the bounds, then clips."""

    def __init__(
        self, *, quantile: float = 0.99, rel_stepsize: float = 0.2, abs_stepsize: float | None = None, steps: int = 10,
        random_start: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(rel_stepsize, abs_stepsize, steps, random_start)
        self.quantile = quantile

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        settings = super()._settings(eps)[1]
        del settings["norm"]
        return _attacks.slide, settings | {"quantile": self.quantile}


class L2AdditiveGaussianNoiseAttack(Attack):
    """`sparring.attacks.gaussian_noise`."""

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        return _attacks.gaussian_noise, {"norm": 2, "repeats": self.times, "generator": self.generator}


class LinfAdditiveUniformNoiseAttack(Attack):
    """`sparring.attacks.uniform_noise`."""

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        return _attacks.uniform_noise, {"norm": math.inf, "repeats": self.times, "generator": self.generator}


class L2RepeatedAdditiveGaussianNoiseAttack(L2AdditiveGaussianNoiseAttack):
    """The same, the worst of so many."""

    def __init__(self, *, repeats: int = 100, check_trivial: bool = True) -> None:
        super().__init__()
        self.times = repeats


class LinfRepeatedAdditiveUniformNoiseAttack(LinfAdditiveUniformNoiseAttack):
    """The same, the worst of so many."""

    def __init__(self, *, repeats: int = 100, check_trivial: bool = True) -> None:
        super().__init__()
        self.times = repeats


class _Minimization(Attack):
    """An attack of the smallest perturbation: one search, from which what is within each epsilon is read off.

    Where the nearest point that fools is farther than epsilon, `clipped` is its nearest point within. There is nothing
    random, so that `repeat` changes nothing.
    """

    norm: float
    search: Callable[..., Any] = staticmethod(_attacks.ddn)

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _found(
        self, module: nn.Module, images: Tensor, labels: Tensor, epsilons: Sequence[float | None],
        options: dict[str, Any],
    ) -> list[Found]:  # fmt: skip
        radii = [None if size is None else eps_of(size, images) for size in epsilons]
        found = self.search(
            module, images, labels, norm=self.norm, steps=self.steps, return_result=True, **options
        )  # fmt: skip
        targets, whole = options["targets"], preprocessed(module, options["preprocessing"], images)
        results = []
        for radius in radii:
            adv, success = found.adv, found.success
            if radius is not None:
                ball, far = ball_of(self.norm, images, radius, options["bounds"]), found.distance > radius
                adv = torch.where(ball.column(far), ball.exact_points(ball.project(adv - images)), adv)
                with held_still(whole), torch.no_grad():
                    predicted = answered(whole, adv).argmax(1)
                fooled = predicted != labels if targets is None else predicted == targets
                success = torch.where(far, fooled, success)
            results.append((found.adv, adv, success))
        return results


class DDNAttack(_Minimization):
    """`sparring.attacks.ddn` in L2; the first ball's radius follows from each example's gradient."""

    norm = 2

    def __init__(self, *, init_epsilon: float = 1.0, steps: int = 100, gamma: float = 0.05) -> None:
        super().__init__(steps)
        only("Foolbox", "init_epsilon", init_epsilon, 1.0, "each example's first radius follows from its gradient")
        only("Foolbox", "gamma", gamma, 0.05, "the ball shrinks and grows by a twentieth")


class L2FMNAttack(_Minimization):
    """Not FMN, but its forerunner in L2: `sparring.attacks.ddn`, whose ball shrinks and grows as well."""

    norm = 2.0

    def __init__(
        self, *, steps: int = 100, max_stepsize: float = 1.0, min_stepsize: float | None = None, gamma: float = 0.05,
        init_attack: None = None, binary_search_steps: int = 10,
    ) -> None:  # fmt: skip
        super().__init__(steps)
        why = "what runs instead has a pace of its own"
        only("Foolbox", "max_stepsize", max_stepsize, 1.0, why)
        only("Foolbox", "min_stepsize", min_stepsize, None, why)
        only("Foolbox", "gamma", gamma, 0.05, why)
        only("Foolbox", "init_attack", init_attack, None, "it starts from the inputs")


class L1FMNAttack(L2FMNAttack):
    """Not FMN, but `sparring.attacks.ddn` in L1: a ball that shrinks and grows as well, from outside in."""

    norm = 1


class LInfFMNAttack(L2FMNAttack):
    """Not FMN, but `sparring.attacks.ddn` in Linf: a ball that shrinks and grows as well, from outside in."""

    norm = math.inf


class L0FMNAttack(L2FMNAttack):
    """Not FMN, but another attack along gradients for the fewest entries: `sparring.attacks.sigma_zero`."""

    norm = 0
    search = staticmethod(_attacks.sigma_zero)


FGSM, FGM = LinfFastGradientAttack, L2FastGradientAttack
PGD = LinfPGD = LinfProjectedGradientDescentAttack
L2PGD, L1PGD = L2ProjectedGradientDescentAttack, L1ProjectedGradientDescentAttack

attacks = sys.modules[__name__]  # for fb.attacks.LinfPGD


INSTEAD = {
    "EADAttack": "minimal(norm=1)",
    "L2CarliniWagnerAttack": "minimal(norm=2)",
    "NewtonFoolAttack": "minimal(norm=2)",
    "L2DeepFoolAttack": "fab(norm=2)",
    "LinfDeepFoolAttack": "fab(norm=inf)",
    "L0BrendelBethgeAttack": "minimal(norm=0)",
    "L1BrendelBethgeAttack": "minimal(norm=1)",
    "L2BrendelBethgeAttack": "minimal(norm=2)",
    "LinfinityBrendelBethgeAttack": "minimal(norm=inf)",
    "GenAttack": "square(norm=inf)",
    "PointwiseAttack": "sparse_rs(norm=0)",
}


def __getattr__(name: str) -> NoReturn:
    known = [
        n for n, value in globals().items() if isinstance(value, type) and issubclass(value, Attack) and n[0] != "_"
    ]
    refuse("Foolbox", name, [*known, "PyTorchModel", "Misclassification", "TargetedMisclassification"], INSTEAD)
