"""Sparring's attacks in AutoAttack's dress: ``AutoAttack(model, norm="L1", eps=12, version="standard")``.

The versions "standard", "plus" and "rand" hold the attacks of the same names, run by Sparring's own APGD, FAB and
Square with AutoAttack's numbers of steps, restarts, classes and queries. What differs:

- in L1 APGD goes from outside in (:data:`sparring.attacks.INWARD`), which is stronger than the large-eps schedule that
  AutoAttack's standard version switches on; ``use_largereps = True`` brings back the latter, False does without either;
- every projection is exact, in L1 too, and no budget is overrun;
- FAB has no random starts; further restarts aim at one likely class after another;
- Square's windows have a schedule of their own (see :func:`sparring.attacks.square`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.adapters import only, refuse
from sparring.adapters._fab import fab_within
from sparring.attacks._model import held_still
from sparring.attacks._norms import NORMED, check_works, norm_name

VERSIONS: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The attacks of each version, in the order in which they run."""
KNOWN = VERSIONS["plus"]
CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}


class _Settings:
    """An attack's settings, free to be changed; a misspelt one, or one that would not be heeded, is refused."""

    def __setattr__(self, name: str, value: Any) -> None:
        names = type(self).__dataclass_fields__  # type: ignore[attr-defined]
        if name not in names:
            raise AttributeError(f"{type(self).__name__} has no setting {name!r} here; it has {', '.join(names)}")
        super().__setattr__(name, value)


@dataclass
class APGD(_Settings):
    """Settings of ``adversary.apgd``: of 'apgd-ce' and 'apgd-dlr'.

    `use_largereps` None is the schedule of :func:`sparring.attacks.apgd`, INWARD in L1 and none in Linf and L2; True is
    LARGE_EPS, in every norm; False none.
    """

    n_restarts: int = 5
    n_iter: int = 100
    rho: float = 0.75
    eot_iter: int = 1
    use_largereps: bool | None = None


@dataclass
class APGDTargeted(APGD):
    """Settings of ``adversary.apgd_targeted``: of 'apgd-t'."""

    n_restarts: int = 1
    n_target_classes: int = 9


@dataclass
class FAB(_Settings):
    """Settings of ``adversary.fab``: of 'fab' and 'fab-t'; the latter, as in AutoAttack, has one restart."""

    n_restarts: int = 5
    n_iter: int = 100
    n_target_classes: int = 9


@dataclass
class Square(_Settings):
    """Settings of ``adversary.square``."""

    n_queries: int = 5000
    n_restarts: int = 1
    p_init: float = 0.8
    loss: str = "margin"


class AutoAttack:
    """AutoAttack's class; see the module. `seed` None means 0; models are attacked where they and the data are."""

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 0.3, seed: int | None = None, verbose: bool = True,
        attacks_to_run: Sequence[str] = (), version: str = "standard", is_tf_model: bool = False,
        device: torch.device | str | None = None, log_path: str | Path | None = None,
    ) -> None:  # fmt: skip
        only("AutoAttack", "is_tf_model", is_tf_model, False, "models are torch's")
        check_works(norm_name(norm), NORMED)
        self.model, self.norm, self.epsilon, self.seed, self.verbose = model, norm, eps, seed or 0, verbose
        self.attacks_to_run: list[str] = list(attacks_to_run)
        self.version, self.device, self.log_path = version, device, log_path
        self.apgd, self.apgd_targeted, self.fab, self.square = APGD(), APGDTargeted(), FAB(), Square()
        if version != "custom":
            if self.attacks_to_run:
                raise ValueError(f"attacks_to_run needs version='custom'; version {version!r} has attacks of its own")
            self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Choose the attacks and settings of 'standard', 'plus' or 'rand'."""
        if version not in VERSIONS:
            names = ", ".join(map(repr, VERSIONS))
            raise ValueError(f"version must be one of {names}, or 'custom' with attacks_to_run; got {version!r}")
        self.version, self.attacks_to_run = version, list(VERSIONS[version])
        if version == "rand":
            self.apgd.n_restarts, self.apgd.eot_iter = 1, 20
            return
        in_l1 = version == "standard" and norm_name(self.norm) == "L1"
        self.apgd.n_restarts = 5 if in_l1 or version == "plus" else 1
        self.apgd_targeted.n_restarts, self.apgd_targeted.n_target_classes = 1, 5 if in_l1 else 9
        self.fab.n_restarts, self.fab.n_target_classes = 5 if version == "plus" else 1, 9
        self.square.n_queries = 5000

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False, state_path: None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the attacks one after the other, each on what the model still gets right.

        Parameters
        ----------
        x_orig, y_orig
            Images (N, ...) in [0, 1] and labels (N,).
        bs
            Batch size.
        return_labels
            Also return the model's classes for the images returned.

        Returns
        -------
        x_adv
            Like `x_orig`; unchanged where the model errs from the start or no attack succeeded.
        """
        only("AutoAttack", "state_path", state_path, None, "evaluations are not resumed")
        unknown = [attack for attack in self.attacks_to_run if attack not in KNOWN]
        if unknown or not self.attacks_to_run:
            raise ValueError(f"attacks_to_run must be a choice of {', '.join(KNOWN)}; got {self.attacks_to_run}")
        with torch.no_grad(), held_still(self.model):
            self._log(f"using {self.version} version including {', '.join(self.attacks_to_run)}")
            logits = self._logits(x_orig, bs)
            self._check_classes(logits.shape[1])
            x_adv, y_adv = x_orig.clone(), logits.argmax(1)
            self._log(f"initial accuracy: {_share(y_adv == y_orig)}")
            begin = time.perf_counter()
            for name in self.attacks_to_run:
                robust = (y_adv == y_orig).nonzero()[:, 0]
                if len(robust) == 0:
                    break
                x, y = x_orig[robust], y_orig[robust]
                adv = self._run(name, self._moved(x), self._moved(y), bs, logits.shape[1]).to(x.device)
                classes = self._logits(adv, bs).argmax(1)
                fooled = classes != y
                x_adv[robust[fooled]], y_adv[robust[fooled]] = adv[fooled], classes[fooled]
                after = f"(total time {time.perf_counter() - begin:.1f} s)"
                self._log(f"robust accuracy after {name.upper()}: {_share(y_adv == y_orig)} {after}")
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run every attack on all images: a result of `run_standard_evaluation` for each."""
        chosen, found = self.attacks_to_run, {}
        try:
            for name in chosen:
                self.attacks_to_run = [name]
                found[name] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
        finally:
            self.attacks_to_run = chosen
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of the images that the model gets right."""
        with torch.no_grad(), held_still(self.model):
            return float((self._logits(x_orig, bs).argmax(1) == y_orig).double().mean())

    def _run(self, name: str, x: Tensor, y: Tensor, bs: int, classes: int) -> Tensor:
        """What the attack of this name makes of the images; those that it cannot fool within eps may be returned."""
        common: dict[str, Any] = {"eps": self.epsilon, "norm": self.norm, "batch_size": bs}
        generator = torch.Generator().manual_seed(self.seed)
        if name == "fab":
            return fab_within(self.model, x, y, steps=self.fab.n_iter, restarts=self.fab.n_restarts, **common)
        if name == "fab-t":
            aims = self.fab.n_target_classes
            return fab_within(self.model, x, y, steps=self.fab.n_iter, target_classes=aims, **common)
        if name == "square":
            square = self.square
            adv = attacks.square(
                self.model, x, y, queries=square.n_queries, restarts=square.n_restarts, p_init=square.p_init,
                loss=square.loss, generator=generator, **common,
            )  # fmt: skip
        else:
            targeted = self.apgd_targeted
            apgd = targeted if name == "apgd-t" else self.apgd
            adv = attacks.apgd(
                self.model, x, y, steps=apgd.n_iter, rho=apgd.rho, restarts=apgd.n_restarts, eot=apgd.eot_iter,
                loss="ce" if name == "apgd-ce" else "dlr",
                target_classes=min(targeted.n_target_classes, classes - 1) if name == "apgd-t" else None,
                schedule={None: "auto", False: None, True: attacks.LARGE_EPS}[apgd.use_largereps],
                early_stop=True, generator=generator, **common,
            )  # fmt: skip
        assert isinstance(adv, Tensor)
        return adv

    def _check_classes(self, classes: int) -> None:
        """ValueError before the first attack, if a later one could not run."""
        short = [name for name in self.attacks_to_run if classes < CLASSES_NEEDED.get(name, 0)]
        if short:
            fine = ", ".join(name for name in KNOWN if classes >= CLASSES_NEEDED.get(name, 0))
            raise ValueError(
                f"{short[0]} needs {CLASSES_NEEDED[short[0]]} classes at least, and the model has {classes}: pass "
                f"version='custom' and attacks_to_run, a choice of {fine}"
            )

    def _logits(self, x: Tensor, bs: int) -> Tensor:
        return torch.cat([self.model(self._moved(part)).to(x.device) for part in torch.split(x, bs)])

    def _moved(self, x: Tensor) -> Tensor:
        return x if self.device is None else x.to(self.device)

    def _log(self, line: str) -> None:
        if self.verbose:
            print(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a") as file:
                file.write(line + "\n")


def _share(right: Tensor) -> str:
    return f"{float(right.double().mean()):.2%}"


def __getattr__(name: str) -> NoReturn:
    refuse("AutoAttack", name, ["AutoAttack"])
