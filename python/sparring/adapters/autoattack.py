"""Sparring's attacks in AutoAttack's dress: ``AutoAttack(model, norm="L1", eps=12, version="custom", ...)``.

AutoAttack's versions contain FAB and Square, which Sparring does not have: what would be weaker under the same name is
refused. What maps is ``version="custom"`` with 'apgd-ce', 'apgd-dlr' and 'apgd-t', in which Sparring's APGD follows
AutoAttack's, with an exact projection in L1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.adapters import only, refuse
from sparring.attacks._model import held_still

_KNOWN = ("apgd-ce", "apgd-dlr", "apgd-t")


@dataclass
class APGD:
    """Settings of ``adversary.apgd`` and ``adversary.apgd_targeted``, free to be changed."""

    n_restarts: int
    n_iter: int = 100
    rho: float = 0.75
    use_largereps: bool = False
    n_target_classes: int = 9


class AutoAttack:
    """AutoAttack's class; see the module. `seed` None means 0; models are attacked where they and the data are."""

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 0.3, seed: int | None = None, verbose: bool = True,
        attacks_to_run: Sequence[str] = (), version: str = "standard", is_tf_model: bool = False,
        device: torch.device | str | None = None, log_path: str | Path | None = None,
    ) -> None:  # fmt: skip
        only("AutoAttack", "is_tf_model", is_tf_model, False, "models are torch's")
        only(
            "AutoAttack", "version", version, "custom",
            "the versions run FAB, Square or expectation over transformations, which Sparring does not have "
            f"(pass version='custom' and attacks_to_run, a choice of {', '.join(_KNOWN)})",
        )  # fmt: skip
        self.model, self.norm, self.epsilon, self.seed, self.verbose = model, norm, eps, seed or 0, verbose
        self.attacks_to_run: list[str] = list(attacks_to_run)
        self.version, self.device, self.log_path = version, device, log_path
        self.apgd, self.apgd_targeted = APGD(n_restarts=5), APGD(n_restarts=1)

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
        unknown = [attack for attack in self.attacks_to_run if attack not in _KNOWN]
        if unknown or not self.attacks_to_run:
            raise ValueError(f"attacks_to_run must be a choice of {', '.join(_KNOWN)}; got {self.attacks_to_run}")
        with torch.no_grad(), held_still(self.model):
            x_adv, y_adv = x_orig.clone(), self._classes(x_orig, bs)
            self._log(f"initial accuracy: {_share(y_adv == y_orig)}")
            begin = time.perf_counter()
            for name in self.attacks_to_run:
                robust = (y_adv == y_orig).nonzero()[:, 0]
                if len(robust) == 0:
                    break
                x_adv[robust], y_adv[robust] = self._run(name, x_orig[robust], y_orig[robust], bs)
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
            return float((self._classes(x_orig, bs) == y_orig).double().mean())

    def _run(self, name: str, x: Tensor, y: Tensor, bs: int) -> tuple[Tensor, Tensor]:
        settings = self.apgd_targeted if name == "apgd-t" else self.apgd
        result = attacks.apgd(
            self.model, self._moved(x), self._moved(y), eps=self.epsilon, norm=self.norm, steps=settings.n_iter,
            rho=settings.rho, restarts=settings.n_restarts, loss="ce" if name == "apgd-ce" else "dlr",
            target_classes=settings.n_target_classes if name == "apgd-t" else None,
            schedule=attacks.LARGE_EPS if settings.use_largereps else None, early_stop=True, batch_size=bs,
            generator=torch.Generator().manual_seed(self.seed), return_result=True,
        )  # fmt: skip
        assert isinstance(result, attacks.AttackResult)
        fooled = result.success.to(x.device)
        adv = torch.where(fooled.reshape(-1, *(1,) * (x.dim() - 1)), result.adv.to(x.device), x)
        return adv, torch.where(fooled, self._classes(adv, bs), y)

    def _classes(self, x: Tensor, bs: int) -> Tensor:
        return torch.cat([self.model(self._moved(part)).argmax(1).to(x.device) for part in torch.split(x, bs)])

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
