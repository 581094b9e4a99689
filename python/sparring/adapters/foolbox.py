"""Sparring's attacks in Foolbox' dress: ``raw, clipped, is_adv = LinfPGD()(fmodel, images, labels, epsilons=[...])``.

``from sparring.adapters import foolbox as fb`` stands in for ``import foolbox as fb``: ``fb.PyTorchModel``,
``fb.attacks.LinfPGD``, ``fb.Misclassification``, ``fb.accuracy``. Names, arguments and defaults are those of Foolbox
3.3, the models and criteria of Foolbox itself are accepted too, and so are EagerPy tensors around torch's.

What differs: the best point of an example is returned, not the last one; it is within epsilon without clipping, so
that `raw` and `clipped` are the same; random starts come from a generator with seed 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sparring import attacks as _attacks
from sparring.adapters import only, refuse
from sparring.attacks._model import held_still, preprocessed


class PyTorchModel:
    """A network with its bounds and preprocessing, as in Foolbox; it is moved only to a `device` that is given."""

    def __init__(
        self, model: nn.Module, bounds: tuple[float, float], device: Any = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be an nn.Module, not {type(model).__name__}")
        self.model = model if device is None else model.to(device)
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.preprocessing = _mean_and_std(preprocessing or {})

    def __call__(self, inputs: Any) -> Any:
        """Logits (B, K) of inputs (B, ...) in the bounds, in eval mode."""
        images, restore = _plain(inputs)
        whole = self.model if self.preprocessing is None else preprocessed(self.model, self.preprocessing, images)
        with held_still(self.model), torch.set_grad_enabled(images.requires_grad):
            return restore(whole(images))


class Misclassification:
    """Away from the `labels` (B,)."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels


class TargetedMisclassification:
    """Towards the `target_classes` (B,)."""

    def __init__(self, target_classes: Any) -> None:
        self.target_classes = target_classes


def accuracy(fmodel: Any, inputs: Any, labels: Any) -> float:
    """Share of the inputs whose most likely class is the label."""
    images, classes = _plain(inputs)[0], _plain(labels)[0]
    with torch.no_grad():
        return float((fmodel(images).argmax(-1) == classes).double().mean())


class Attack:
    """What the attacks of fixed epsilon share."""

    def __init__(self) -> None:
        self.times = 1
        self.generator = torch.Generator().manual_seed(0)

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: float | Iterable[float], **options: Any
    ) -> tuple[Any, Any, Any]:
        """Attack with each epsilon.

        Parameters
        ----------
        model
            A `PyTorchModel` of this module, or Foolbox' (whose forward pass then cannot be lowered).
        inputs
            (B, ...) in the model's bounds, and `epsilons` in their units.
        criterion
            Labels (B,), `Misclassification` or `TargetedMisclassification`.

        Returns
        -------
        raw, clipped, is_adv
            Images like `inputs`, twice the same, and bool (B,); for several epsilons, lists of images and (E, B).
        """
        if options:
            raise TypeError(f"{', '.join(sorted(options))}: not accepted; Sparring's attacks take no starting points")
        images, restore = _plain(inputs)
        labels, targets = _classes(criterion)
        module, common = _network(model)
        common |= {"targets": targets, "return_result": True}
        several = isinstance(epsilons, Iterable)
        results = []
        for epsilon in epsilons if isinstance(epsilons, Iterable) else [epsilons]:
            if epsilon is None:
                raise ValueError("epsilons must be numbers: these attacks do not look for the smallest perturbation")
            attack, settings = self._settings(float(epsilon))
            results.append(attack(module, images, labels, eps=float(epsilon), **settings, **common))
        adv = [restore(result.adv) for result in results]
        success = torch.stack([result.success for result in results])
        return (adv, list(adv), restore(success)) if several else (adv[0], adv[0], restore(success[0]))

    def repeat(self, times: int) -> Attack:
        """The same, started so often; the best point of each example is kept."""
        if times < 1:
            raise ValueError(f"times must be at least 1; got {times}")
        other: Attack = type(self).__new__(type(self))
        vars(other).update(vars(self), times=self.times * times)
        return other

    def _settings(self, eps: float) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The attack of `sparring.attacks`, and its arguments besides eps."""
        raise NotImplementedError


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


FGSM, FGM = LinfFastGradientAttack, L2FastGradientAttack
PGD = LinfPGD = LinfProjectedGradientDescentAttack
L2PGD, L1PGD = L2ProjectedGradientDescentAttack, L1ProjectedGradientDescentAttack

attacks = sys.modules[__name__]  # for fb.attacks.LinfPGD


class _Callable(nn.Module):
    """Foolbox' own model, whose module cannot be reached."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.forward = model


def _network(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    if isinstance(model, PyTorchModel):
        return model.model, {"bounds": model.bounds, "preprocessing": model.preprocessing}
    if isinstance(model, nn.Module) or not hasattr(model, "bounds"):
        raise TypeError(f"model must be a PyTorchModel, which knows its bounds; got {type(model).__name__}")
    return _Callable(model), {"bounds": tuple(model.bounds), "preprocessing": None}


def _mean_and_std(preprocessing: Mapping[str, Any]) -> dict[str, Any] | None:
    unknown = {*preprocessing} - {"mean", "std", "axis", "flip_axis"}
    if unknown:
        raise ValueError(f"preprocessing has unknown keys: {', '.join(sorted(unknown))}")
    only("Foolbox", "preprocessing['flip_axis']", preprocessing.get("flip_axis"), None, "put the flip into the model")
    found = {name: preprocessing[name] for name in ("mean", "std") if preprocessing.get(name) is not None}
    if any(torch.as_tensor(value).dim() > 0 for value in found.values()):
        only("Foolbox", "preprocessing['axis']", preprocessing.get("axis"), -3, "channels come first")
    return found or None


def _classes(criterion: Any) -> tuple[Tensor, Tensor | None]:
    """Labels and targets; where there are only targets, they stand for the labels, which PGD does not look at then."""
    if hasattr(criterion, "target_classes"):
        targets = _plain(criterion.target_classes)[0]
        return targets, targets
    labels = _plain(getattr(criterion, "labels", criterion))[0]
    if not isinstance(labels, Tensor):
        raise TypeError(f"criterion must be labels, Misclassification or TargetedMisclassification; got {criterion!r}")
    return labels, None


def _plain(tensor: Any) -> tuple[Any, Any]:
    """A torch tensor, and what makes its result the kind that came: EagerPy's have their tensor in `raw`."""
    return (tensor.raw, type(tensor)) if hasattr(tensor, "raw") else (tensor, lambda result: result)


def __getattr__(name: str) -> NoReturn:
    known = [
        n for n, value in globals().items() if isinstance(value, type) and issubclass(value, Attack) and n[0] != "_"
    ]
    refuse("Foolbox", name, [*known, "PyTorchModel", "Misclassification", "TargetedMisclassification"])
