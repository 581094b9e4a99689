"""Sparring's attacks in torchattacks' dress: ``PGD(model, eps=8/255, alpha=2/255, steps=10)(images, labels)``.

Names, arguments and defaults are those of torchattacks 3.5. What differs is said in each class, and for all of them:
the best point of an example is returned, not the last one; random starts come from a generator of the attack's own,
seeded with 0, and neither torch's random state nor the model is touched; tensors are not moved between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.adapters import only, refuse
from sparring.adapters._fab import fab_within
from sparring.adapters.autoattack import AutoAttack as Ensemble
from sparring.attacks._model import held_still, preprocessed
from sparring.attacks._norms import norm_name

TargetMap = Callable[[Tensor, Tensor], Tensor]


class Attack:
    """What torchattacks' classes share. `seed` is of the random starts."""

    can_target = True

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(seed)
        self.normalization_used: dict[str, list[float]] | None = None
        self.attack_mode = "default"
        self._targets_of: TargetMap | None = None

    @property
    def targeted(self) -> bool:
        return self._targets_of is not None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (B, C, H, W) of images in [0, 1], or normalised if `set_normalization_used` was called."""
        targets = None if self._targets_of is None else self._targets_of(images, labels)
        normalization = self.normalization_used
        if normalization is None:
            return self._run(images, labels, targets, None)
        mean, std = (images.new_tensor(normalization[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        # Undoing the normalisation may end a rounding error outside [0, 1].
        return (self._run((images * std + mean).clamp(0, 1), labels, targets, normalization) - mean) / std

    def _run(
        self, images: Tensor, labels: Tensor, targets: Tensor | None, preprocessing: dict[str, list[float]] | None
    ) -> Tensor:
        attack, settings = self._settings(images)
        adv: Tensor = attack(self.model, images, labels, targets=targets, preprocessing=preprocessing, **settings)
        return adv

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The attack of `sparring.attacks`, and its arguments."""
        raise NotImplementedError

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Images are given, and returned, as ``(x - mean) / std`` with x in [0, 1]; eps stays in the units of x."""
        self.normalization_used = {"mean": [float(m) for m in mean], "std": [float(s) for s in std]}

    def get_mode(self) -> str:
        return self.attack_mode

    def set_mode_default(self) -> None:
        """Away from the labels."""
        self.attack_mode, self._targets_of = "default", None

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """The labels given are the classes to reach."""
        self._set_targeted("targeted(label)", lambda images, labels: labels)

    def set_mode_targeted_by_function(self, target_map_function: TargetMap, quiet: bool = False) -> None:
        """The classes to reach are ``target_map_function(images, labels)``."""
        self._set_targeted("targeted(custom)", target_map_function)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """The classes to reach are drawn from all but the label."""
        self._set_targeted("targeted(random)", self._random_targets)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """The classes to reach are the `kth_min`-th least likely ones but the label."""
        if kth_min < 1:
            raise ValueError(f"kth_min must be at least 1; got {kth_min}")

        def least_likely(images: Tensor, labels: Tensor) -> Tensor:
            logits = self._logits(images).scatter(1, labels[:, None], math.inf)
            return logits.kthvalue(kth_min, dim=1).indices

        self._set_targeted("targeted(least-likely)", least_likely)

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Models are attacked in eval mode."""
        for name, value in (("model_training", model_training), ("batchnorm_training", batchnorm_training)):
            only("torchattacks", name, value, False, "models are attacked in eval mode")
        only("torchattacks", "dropout_training", dropout_training, False, "models are attacked in eval mode")

    def _set_targeted(self, mode: str, targets_of: TargetMap) -> None:
        if not self.can_target:
            raise ValueError(f"{type(self).__name__} cannot be targeted, as in torchattacks")
        self.attack_mode, self._targets_of = mode, targets_of

    def _logits(self, images: Tensor) -> Tensor:
        with held_still(self.model), torch.no_grad():
            logits: Tensor = self.model(images)
        return logits

    def _random_targets(self, images: Tensor, labels: Tensor) -> Tensor:
        others = self._logits(images[:1]).shape[1] - 1
        drawn = torch.randint(others, labels.shape, generator=self.generator).to(labels)
        return drawn + (drawn >= labels)


class FGSM(Attack):
    """`sparring.attacks.fgsm` in Linf."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255) -> None:
        super().__init__(model)
        self.eps = eps

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        return attacks.fgsm, {"eps": self.eps}


class _PGD(Attack):
    """`sparring.attacks.pgd`; `alpha` is in the units of `eps`, where Sparring's `step_size` is a share of it."""

    norm = math.inf

    def __init__(self, model: nn.Module, eps: float, alpha: float, steps: int, random_start: bool) -> None:
        super().__init__(model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        return attacks.pgd, {
            "eps": self.eps, "norm": self.norm, "steps": self.steps, "generator": self.generator,
            "step_size": self.alpha / self.eps if self.eps > 0 else 1.0, "random_start": self.random_start,
        }  # fmt: skip


class PGD(_PGD):
    """PGD in Linf."""

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, random_start: bool = True
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)


class PGDL2(_PGD):
    """PGD in L2. Its random starts fill the ball evenly."""

    norm = 2

    def __init__(
        self, model: nn.Module, eps: float = 1.0, alpha: float = 0.2, steps: int = 10, random_start: bool = True,
        eps_for_division: float = 1e-10,
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, random_start)


class BIM(_PGD):
    """PGD in Linf from the image itself; with ``steps=0`` the paper's number of steps."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        super().__init__(model, eps, alpha, steps or int(min(eps * 255 + 4, 1.25 * eps * 255)), random_start=False)


class EOTPGD(_PGD):
    """PGD in Linf along the mean of the gradients of `eot_iter` draws of a random model."""

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, eot_iter: int = 2,
        random_start: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, random_start)
        self.eot_iter = eot_iter

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        attack, settings = super()._settings(images)
        return attack, settings | {"eot": self.eot_iter}


class FFGSM(_PGD):
    """One step of PGD in Linf from a random start."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 10 / 255) -> None:
        super().__init__(model, eps, alpha, 1, random_start=True)


class APGD(Attack):
    """`sparring.attacks.apgd`; "L1" is accepted as well."""

    can_target = False

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 8 / 255, steps: int = 10, n_restarts: int = 1,
        seed: int = 0, loss: str = "ce", eot_iter: int = 1, rho: float = 0.75, verbose: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, seed)
        self.norm, self.eps, self.steps, self.n_restarts = norm, eps, steps, n_restarts
        self.loss, self.eot_iter, self.rho, self.target_classes = loss, eot_iter, rho, None

    target_classes: int | None

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        return attacks.apgd, {
            "eps": self.eps, "norm": self.norm, "steps": self.steps, "restarts": self.n_restarts, "loss": self.loss,
            "rho": self.rho, "target_classes": self.target_classes, "eot": self.eot_iter, "generator": self.generator,
        }  # fmt: skip


class APGDT(APGD):
    """APGD on the targeted difference of logits ratio, towards each class but the label."""

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 8 / 255, steps: int = 10, n_restarts: int = 1,
        seed: int = 0, eot_iter: int = 1, rho: float = 0.75, verbose: bool = False, n_classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__(model, norm, eps, steps, n_restarts, seed, "dlr", eot_iter, rho, verbose)
        self.target_classes = n_classes - 1


class FAB(Attack):
    """`sparring.attacks.fab`: the nearest points that fool, where they are within `eps`; elsewhere the images.

    It starts at the images: further restarts aim at one likely class after another. "L1" is accepted as well.
    """

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float | None = 8 / 255, steps: int = 10, n_restarts: int = 1,
        alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9, verbose: bool = False, seed: int = 0,
        multi_targeted: bool = False, n_classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__(model, seed)
        for name, value, accepted in (("alpha_max", alpha_max, 0.1), ("eta", eta, 1.05), ("beta", beta, 0.9)):
            only("torchattacks", name, value, accepted, "it is as in the paper")
        self.norm, self.eps, self.steps, self.n_restarts = norm, eps, steps, n_restarts
        self.multi_targeted, self.n_classes = multi_targeted, n_classes
        if eps is None:
            self.eps = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}[norm_name(norm)]

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        return fab_within, {
            "eps": self.eps, "norm": self.norm, "steps": self.steps, "restarts": self.n_restarts,
            "target_classes": self.n_classes - 1 if self.multi_targeted else None,
        }  # fmt: skip


class Square(Attack):
    """`sparring.attacks.square`, whose windows have a schedule of their own. "L1" is accepted as well."""

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 8 / 255, n_queries: int = 5000, n_restarts: int = 1,
        p_init: float = 0.8, loss: str = "margin", resc_schedule: bool = True, seed: int = 0, verbose: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, seed)
        only("torchattacks", "resc_schedule", resc_schedule, True, "the windows' schedule follows from n_queries")
        self.norm, self.eps, self.n_queries, self.n_restarts = norm, eps, n_queries, n_restarts
        self.p_init, self.loss = p_init, loss

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        return attacks.square, {
            "eps": self.eps, "norm": self.norm, "queries": self.n_queries, "restarts": self.n_restarts,
            "p_init": self.p_init, "loss": self.loss, "generator": self.generator,
        }  # fmt: skip


class AutoAttack(Attack):
    """:class:`sparring.adapters.autoattack.AutoAttack`: "standard", "plus" or "rand", each attack on what is left.

    With AutoAttack's own 100 steps, where torchattacks takes 10; its targeted attacks aim at `n_classes` - 1 classes.
    The images are returned where no attack fools within `eps`. "L1" is accepted as well.
    """

    can_target = False

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 8 / 255, version: str = "standard",
        n_classes: int = 10, seed: int | None = None, verbose: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, seed or 0)
        self.norm, self.eps, self.version, self.n_classes = norm, eps, version, n_classes
        self.seed, self.verbose = seed, verbose
        self._ensemble(model)  # errors for bad arguments now

    def _ensemble(self, model: nn.Module) -> Ensemble:
        ensemble = Ensemble(model, self.norm, self.eps, self.seed, self.verbose, version=self.version)
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = self.n_classes - 1
        return ensemble

    def _run(
        self, images: Tensor, labels: Tensor, targets: Tensor | None, preprocessing: dict[str, list[float]] | None
    ) -> Tensor:
        whole = preprocessed(self.model, preprocessing, images)
        adv = self._ensemble(whole).run_standard_evaluation(images, labels, bs=max(1, len(images)))
        assert isinstance(adv, Tensor)
        return adv


class OnePixel(Attack):
    """`sparring.attacks.differential_evolution`; `inf_batch` is not needed: one image's population goes at a time."""

    def __init__(
        self, model: nn.Module, pixels: int = 1, steps: int = 10, popsize: int = 10, inf_batch: int = 128
    ) -> None:
        super().__init__(model)
        self.pixels, self.steps, self.popsize = pixels, steps, popsize

    def _settings(self, images: Tensor) -> tuple[Callable[..., Any], dict[str, Any]]:
        genes = self.pixels * (2 + images.shape[1])
        return attacks.differential_evolution, {
            "pixels": self.pixels, "population": max(1, self.popsize // genes) * genes, "steps": self.steps,
            "strategy": "best1bin", "mutation": (0.5, 1.0), "recombination": 1.0, "generator": self.generator,
        }  # fmt: skip


INSTEAD = {
    "CW": "minimal(norm=2)",
    "DeepFool": "fab(norm=2)",
    "EADEN": "minimal(norm=1)",
    "EADL1": "minimal(norm=1)",
    "JSMA": "minimal(norm=0)",
    "Pixle": "sparse_rs(norm='pixels')",
    "SparseFool": "minimal(norm='pixels')",
}


def __getattr__(name: str) -> NoReturn:
    known = [
        n for n, value in globals().items() if isinstance(value, type) and issubclass(value, Attack) and n[0] != "_"
    ]
    refuse("torchattacks", name, [n for n in known if n != "Attack"], INSTEAD)
