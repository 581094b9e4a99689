"""Flags of models are as they were: of every kind of module, for several threads, and where an attack fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.attacks._model import held_still, keep_still
from sparring.gradients.home import Home, home_of

X = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5))


def flags(model: nn.Module) -> list[Any]:
    return [getattr(m, "training", None) for m in model.modules()] + [p.requires_grad for p in model.parameters()]


class Switches(nn.Module):
    """Folds its scale into its weight in eval mode, as some networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.scale = mlp(), 2.0

    def train(self, mode: bool = True) -> Switches:
        if mode != self.training:
            with torch.no_grad():
                self.f[3].weight.mul_(1 / self.scale if mode else self.scale)
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(x)
        return y * self.scale if self.training else y


def frozen() -> nn.Module:
    frozen: nn.Module = torch.jit.freeze(torch.jit.script(mlp().eval()))
    return frozen


def exported() -> nn.Module:
    return torch.export.export(mlp().eval(), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()


def quantised() -> nn.Module:
    return sp.Ensemble([torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear}) for _ in range(2)])


def parameterless() -> nn.Module:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :5] - x[:, 5:10]

    return Fixed()


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(5))


def partly_frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    model[2].eval()
    return model


def shared() -> nn.Module:
    layer = nn.Linear(20, 20)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(20, 5))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": mlp,
    "partly frozen": partly_frozen,
    "shared": shared,
    "with a train of its own": Switches,
    "TorchScript": lambda: torch.jit.script(mlp()),  # type: ignore[dict-item]
    "TorchScript, frozen": frozen,
    "exported": exported,
    "quantised": quantised,
    "without parameters": parameterless,
    "made in inference mode": in_inference_mode,
    "lazy": lazy,
    "ensemble": lambda: sp.Ensemble([mlp(), mlp()]),
    "stacked": lambda: sp.StackedEnsemble([mlp(), mlp()]),
    "buffers in float64": lambda: nn.Sequential(nn.BatchNorm1d(20, affine=False).double(), Cast(), mlp()),
}


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_module_is_attacked_and_left_as_it_was(name: str) -> None:
    model = MODELS[name]()
    if name != "buffers in float64":
        before = flags(model)
        adv = sp.attacks.pgd(model, X, LABELS, eps=0.1, steps=3)
        assert adv.shape == X.shape
        assert flags(model) == before
        assert sp.evaluate(model, X, LABELS, ["fgsm"], eps=0.1).rows[0].error is None
        assert flags(model) == before
        assert all(p.grad is None for p in model.parameters())
    else:
        assert home_of(model) == Home(torch.device("cpu"), torch.float32)


def test_a_network_that_folds_its_weights_is_asked_to() -> None:
    model = Switches()
    weight = model.f[3].weight.clone()
    with held_still(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model.f[3].weight, 2 * weight)
    assert all(module.training for module in model.modules())
    assert torch.equal(model.f[3].weight, weight)


def test_flags_come_back_when_the_last_of_several_lets_go() -> None:
    model = mlp()
    before = flags(model)
    one, other = held_still(model), held_still(model[0], model[2])
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not model[0].training
    assert not model[2].training
    assert model.training
    assert model[3].weight.requires_grad
    assert not model[0].weight.requires_grad
    other.__exit__(None, None, None)
    assert flags(model) == before


def test_flags_come_back_where_the_model_fails() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp()

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of order")

    model = Fails()
    before = flags(model)
    with pytest.raises(RuntimeError, match="out of order"):
        sp.attacks.pgd(model, X, LABELS, eps=0.1)
    assert flags(model) == before


def test_a_preprocessing_module_is_held_still_too() -> None:
    noise = nn.Sequential(nn.Dropout(0.5))
    model = mlp().eval()
    adv = sp.attacks.fgsm(model, X, LABELS, eps=0.1, preprocessing=noise)
    assert torch.equal(adv, sp.attacks.fgsm(model, X, LABELS, eps=0.1))
    assert noise.training
    assert noise[0].training


def test_threads_on_one_model_leave_it_as_it_was() -> None:
    model = partly_frozen().train()
    before = flags(model)
    right = sp.attacks.pgd(model, X, LABELS, eps=0.1, steps=3)
    answers: list[Tensor] = []
    for _ in range(5):
        threads = [
            threading.Thread(target=lambda: answers.append(sp.attacks.pgd(model, X, LABELS, eps=0.1, steps=3)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert flags(model) == before
    assert len(answers) == 20
    for answer in answers:
        torch.testing.assert_close(answer, right)


def test_what_code_switches_on_meanwhile_is_switched_off_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[0].bias.requires_grad_(False)
    other = nn.Linear(2, 2)
    with held_still(model):
        model.train()
        model[0].requires_grad_(True)
        keep_still(model)
        keep_still(other)
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert other.training
        assert other.weight.requires_grad
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, True]
