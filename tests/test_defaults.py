"""What a program sets for all of torch changes nothing: default device and dtype, grad mode, inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring import attacks as A

X = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5


def mlp(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


class Unknown(nn.Module):
    """Left to autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.f = mlp(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x).square().cumsum(1)


MODELS = {
    "mlp": mlp(0),
    "ensemble": sp.Ensemble([mlp(0), mlp(1)]).eval(),
    "stacked": sp.StackedEnsemble([mlp(0), mlp(1)]).eval(),
    "autograd": Unknown().eval(),
}

CALLS: dict[str, Callable[[nn.Module], Any]] = {
    **{
        attack.__name__: partial(lambda attack, model: attack(model, X, LABELS, eps=0.1, return_result=True), attack)
        for attack in (A.fgsm, A.fgm, A.pgd, A.uniform_noise, A.gaussian_noise)
    },
    "apgd": lambda model: sp.attacks.apgd(model, X, LABELS, eps=1.0, norm=1, steps=5, return_result=True),
    "slide": lambda model: sp.attacks.slide(model, X, LABELS, eps=1.0, steps=5, return_result=True),
    "lbfgs": lambda model: sp.attacks.lbfgs(model, X, LABELS, steps=20, targets="random", return_result=True),
    "evolution": lambda model: sp.attacks.differential_evolution(
        model, X, LABELS, population=8, steps=3, return_result=True
    ),
    "preprocessing": lambda model: sp.attacks.pgd(
        model, X, LABELS, eps=torch.full((6,), 0.1, device="cpu", dtype=torch.float32), return_result=True,
        preprocessing={"mean": 0.5, "std": 0.2},
    ),
    "recover": lambda model: sp.attacks.recover(model, targets=[0, 1], shape=(20,), steps=10, method="l1"),
    "evolve images": lambda model: sp.attacks.evolve_images(
        model, targets=[0, 1], shape=(20,), pixels=3, population=6, steps=3
    ),
    "jacobian": lambda model: sp.jacobian(model, X),
    "input_grad": lambda model: sp.input_grad(model, X, LABELS, "margin"),
    "bf16": lambda model: sp.input_grad(model, X, LABELS, precision="bf16"),
    "evaluate": lambda model: sp.evaluate(model, X, LABELS, ["noise", "fgsm", "pgd"], eps=0.1).robust,
}  # fmt: skip


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "device": lambda: torch.device("meta"),
    "dtype": default_dtype,
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
}


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    fields = result._asdict() if hasattr(result, "_asdict") else vars(result)
    return [value for value in fields.values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_set_for_all_of_torch(call: str, model: str) -> None:
    right = tensors(CALLS[call](MODELS[model]))
    for name, setting in SETTINGS.items():
        with setting():
            found = tensors(CALLS[call](MODELS[model]))
        for one, other in zip(found, right, strict=True):
            assert (one.dtype, one.device, one.requires_grad) == (other.dtype, other.device, False), name
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6, equal_nan=True, msg=name)
