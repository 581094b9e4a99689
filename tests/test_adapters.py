"""The adapters give what Sparring's attacks give, at the arguments that the other library's mean."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.adapters import autoattack, foolbox, torchattacks

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network of colour images that its own classes are known for: two layers, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


def quick(adversary: autoattack.AutoAttack) -> autoattack.AutoAttack:
    """With few steps and queries; what the version sets stays."""
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 8
    adversary.square.n_queries = 30
    return adversary


def quick_version(set_version: Any) -> Any:
    def chosen(adversary: autoattack.AutoAttack, version: str) -> None:
        set_version(adversary, version)
        quick(adversary)

    return chosen


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- torchattacks ---------------------------------------------------------------------------------------------------

EPS = 8 / 255
EQUIVALENTS: dict[str, tuple[Any, dict[str, Any], Any, dict[str, Any]]] = {
    "FGSM": (torchattacks.FGSM, {}, attacks.fgsm, {"eps": EPS}),
    "PGD": (torchattacks.PGD, {}, attacks.pgd, {"eps": EPS, "step_size": 0.25, "steps": 10}),
    "PGD, no random start": (
        torchattacks.PGD, {"eps": 0.1, "alpha": 0.02, "random_start": False},
        attacks.pgd, {"eps": 0.1, "step_size": 0.2, "steps": 10, "random_start": False},
    ),
    "PGDL2": (torchattacks.PGDL2, {}, attacks.pgd, {"eps": 1.0, "norm": 2, "step_size": 0.2, "steps": 10}),
    "BIM": (torchattacks.BIM, {}, attacks.pgd, {"eps": EPS, "step_size": 0.25, "steps": 10, "random_start": False}),
    "BIM, its own steps": (
        torchattacks.BIM, {"steps": 0},
        attacks.pgd, {"eps": EPS, "step_size": 0.25, "steps": 10, "random_start": False},
    ),
    "FFGSM": (torchattacks.FFGSM, {}, attacks.pgd, {"eps": EPS, "step_size": 1.25, "steps": 1}),
    "APGD": (torchattacks.APGD, {"norm": "L2", "eps": 0.5}, attacks.apgd, {"eps": 0.5, "norm": 2, "steps": 10}),
    "APGDT": (
        torchattacks.APGDT, {"eps": 0.05, "n_classes": 6},
        attacks.apgd, {"eps": 0.05, "steps": 10, "loss": "dlr", "target_classes": 5},
    ),
    "APGD, averaged": (torchattacks.APGD, {"eot_iter": 3}, attacks.apgd, {"eps": EPS, "steps": 10, "eot": 3}),
    "APGD in L1": (torchattacks.APGD, {"norm": "L1", "eps": 2.0}, attacks.apgd, {"norm": 1, "eps": 2.0, "steps": 10}),
    "EOTPGD": (torchattacks.EOTPGD, {}, attacks.pgd, {"eps": EPS, "step_size": 0.25, "steps": 10, "eot": 2}),
    "Square": (
        torchattacks.Square, {"n_queries": 40, "eps": 0.1, "n_restarts": 2, "p_init": 0.5, "loss": "ce"},
        attacks.square, {"queries": 40, "eps": 0.1, "restarts": 2, "p_init": 0.5, "loss": "ce"},
    ),
    "Square in L2": (
        torchattacks.Square, {"n_queries": 40, "norm": "L2", "eps": 0.5},
        attacks.square, {"queries": 40, "norm": 2, "eps": 0.5},
    ),
    "OnePixel": (
        torchattacks.OnePixel, {"popsize": 20, "steps": 4}, attacks.differential_evolution,
        {"population": 20, "steps": 4, "strategy": "best1bin", "mutation": (0.5, 1.0), "recombination": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_torchattacks(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    theirs, arguments, ours, options = EQUIVALENTS[name]
    expected = ours(network, images, labels, **options)
    adv = theirs(network, **arguments)(images, labels)
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-7)
    assert not torch.equal(adv, images)


def test_torchattacks_with_normalised_images(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    # Without random starts, which follow from the last bit of an image.
    atk = torchattacks.PGD(network, eps=0.05, alpha=0.01, steps=5, random_start=False)
    atk.set_normalization_used(mean=MEAN, std=STD)
    adv = atk((images - mean) / std, labels) * std + mean
    expected = attacks.pgd(
        network,
        images,
        labels,
        eps=0.05,
        step_size=0.2,
        steps=5,
        random_start=False,
        preprocessing={"mean": MEAN, "std": STD},
    )
    assert isinstance(expected, Tensor)
    assert ((adv - expected).abs() < 1e-5).double().mean() > 0.98  # un-normalising rounds, and a sign may flip
    assert (adv - images).abs().max() <= 0.05 + 1e-6


def test_torchattacks_targets(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    targets = (labels + 1) % 6
    expected = attacks.fgsm(network, images, targets, eps=0.3, targets=targets)
    atk = torchattacks.FGSM(network, eps=0.3)
    atk.set_mode_targeted_by_label()
    assert torch.equal(atk(images, targets), expected)
    assert atk.targeted
    atk.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 6)
    assert torch.equal(atk(images, labels), expected)
    atk.set_mode_targeted_least_likely(1)
    with torch.no_grad():
        least = network(images).argmin(1)
    assert torch.equal(atk(images, labels), attacks.fgsm(network, images, labels, eps=0.3, targets=least))
    atk.set_mode_targeted_random()
    assert atk(images, labels).shape == images.shape
    assert (atk._random_targets(images, labels) != labels).all()
    atk.set_mode_default()
    assert atk.get_mode() == "default"
    assert torch.equal(atk(images, labels), attacks.fgsm(network, images, labels, eps=0.3))


def test_torchattacks_starts_anew_at_every_call(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    atk = torchattacks.PGD(network, eps=0.3, steps=1, alpha=1e-6)
    first = atk(images, labels)
    assert not torch.equal(atk(images, labels), first)
    assert torch.equal(torchattacks.PGD(network, eps=0.3, steps=1, alpha=1e-6)(images, labels), first)


def test_torchattacks_eps_zero_changes_nothing(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    assert torch.equal(torchattacks.PGD(network, eps=0)(images, labels), images)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_torchattacks_fab_keeps_to_eps(norm: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    eps = {"Linf": 0.015, "L2": 0.1, "L1": 0.5}[norm]
    fooled = {}
    for n_restarts in (1, 6):
        adv = torchattacks.FAB(network, norm=norm, eps=eps, n_restarts=n_restarts)(images, labels)
        nearest = attacks.fab(network, images, labels, norm=norm, steps=10, return_result=True)
        assert isinstance(nearest, attacks.AttackResult)
        near = nearest.distance <= eps
        assert 0 < near.sum() < 16
        assert torch.equal(adv[near], nearest.adv[near])
        moved = (adv != images).flatten(1).any(1)
        with torch.no_grad():
            assert torch.equal(network(adv).argmax(1) != labels, moved)
        assert n_restarts > 1 or torch.equal(moved, near)
        assert (near <= moved).all()
        fooled[n_restarts] = moved
    every = torchattacks.FAB(network, norm=norm, eps=eps, multi_targeted=True, n_classes=6)(images, labels)
    assert torch.equal((every != images).flatten(1).any(1) | near, fooled[6])  # the same five classes aimed at
    defaults = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}
    assert torchattacks.FAB(network, norm=norm, eps=None).eps == defaults[norm]


def test_torchattacks_fab_and_square_reach_targets(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    targets = (labels + 1) % 6
    for atk in (
        torchattacks.FAB(network, norm="L2", eps=5.0, steps=20),
        torchattacks.Square(network, norm="Linf", eps=0.3, n_queries=200),
    ):
        atk.set_mode_targeted_by_label()
        with torch.no_grad():
            assert (network(atk(images, targets)).argmax(1) == targets).double().mean() > 0.8


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_torchattacks_autoattack(
    version: str, network: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = autoattack.AutoAttack(network, "L2", 0.1, version=version, verbose=False)
    monkeypatch.setattr(autoattack.AutoAttack, "set_version", quick_version(autoattack.AutoAttack.set_version))
    atk = torchattacks.AutoAttack(network, norm="L2", eps=0.1, version=version, n_classes=6)
    assert atk._ensemble(network).attacks_to_run == ours.attacks_to_run
    assert atk._ensemble(network).apgd_targeted.n_target_classes == 5
    adv = atk(images, labels)
    expected = autoattack.AutoAttack(network, "L2", 0.1, version=version, verbose=False).run_standard_evaluation(
        images, labels
    )
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-7)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        classes = network((images - mean) / std).argmax(1)
    atk.set_normalization_used(mean=MEAN, std=STD)
    adv = atk((images - mean) / std, classes) * std + mean
    moved = (adv - images).flatten(1).norm(dim=1)
    assert 0.01 < moved.max() <= 0.1 + 1e-5
    with torch.no_grad():
        assert (network((adv - mean) / std).argmax(1) != classes)[moved > 0.01].all()


# --- Foolbox --------------------------------------------------------------------------------------------------------

FOOLBOX: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "LinfPGD": (foolbox.LinfPGD(), attacks.pgd, {"steps": 40, "step_size": 1 / 30}),
    "L2PGD": (foolbox.L2PGD(steps=5), attacks.pgd, {"norm": 2, "steps": 5, "step_size": 0.025}),
    "L1PGD": (foolbox.L1PGD(steps=5), attacks.pgd, {"norm": 1, "steps": 5, "step_size": 0.025}),
    "LinfBasicIterative": (
        foolbox.LinfBasicIterativeAttack(abs_stepsize=0.1), attacks.pgd,
        {"steps": 10, "step_size": 0.2, "random_start": False},
    ),
    "SLIDE": (
        foolbox.SparseL1DescentAttack(quantile=0.9), attacks.slide,
        {"quantile": 0.9, "step_size": 0.2, "steps": 10},
    ),
    "FGSM": (foolbox.FGSM(), attacks.fgsm, {}),
    "FGM": (foolbox.FGM(), attacks.fgm, {}),
    "noise": (foolbox.attacks.L2AdditiveGaussianNoiseAttack(), attacks.gaussian_noise, {}),
    "repeated noise": (
        foolbox.LinfRepeatedAdditiveUniformNoiseAttack(repeats=7), attacks.uniform_noise, {"repeats": 7},
    ),
    "repeated PGD": (foolbox.LinfPGD(steps=3).repeat(4), attacks.pgd, {"steps": 3, "step_size": 1 / 30, "restarts": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOOLBOX)
def test_foolbox(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    theirs, ours, options = FOOLBOX[name]
    fmodel = foolbox.PyTorchModel(network, bounds=(0, 1), preprocessing={"mean": MEAN, "std": STD, "axis": -3})
    expected = ours(
        network, images, labels, eps=0.5, preprocessing={"mean": MEAN, "std": STD}, return_result=True, **options
    )
    theirs.generator.manual_seed(0)
    raw, clipped, is_adv = theirs(fmodel, images, labels, epsilons=0.5)
    assert torch.equal(raw, expected.adv)
    assert torch.equal(clipped, expected.adv)
    assert torch.equal(is_adv, expected.success)


def test_foolbox_with_several_epsilons_and_targets(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    fmodel = foolbox.PyTorchModel(network, bounds=(0, 1))
    targets = (labels + 1) % 6
    criterion = foolbox.TargetedMisclassification(targets)
    raw, clipped, is_adv = foolbox.FGSM()(fmodel, images, criterion, epsilons=[0.0, 0.1, 0.3])
    assert len(raw) == len(clipped) == 3
    assert is_adv.shape == (3, 16)
    for adv, success, eps in zip(raw, is_adv, (0.0, 0.1, 0.3), strict=True):
        assert torch.equal(adv, attacks.fgsm(network, images, labels, eps=eps, targets=targets))
        with torch.no_grad():
            assert torch.equal(success, network(adv).argmax(1) == targets)
    assert foolbox.accuracy(fmodel, images, labels) == 1
    untargeted = foolbox.FGSM()(fmodel, images, foolbox.Misclassification(labels), epsilons=0.1)
    assert torch.equal(untargeted[0], attacks.fgsm(network, images, labels, eps=0.1))


MINIMAL: dict[str, tuple[Any, Any, dict[str, Any], list[float]]] = {
    "DDN": (foolbox.attacks.DDNAttack(steps=30), attacks.ddn, {"norm": 2, "steps": 30}, [0.05, 0.1]),
    "FMN in L2": (foolbox.L2FMNAttack(), attacks.ddn, {"norm": 2, "steps": 100}, [0.05, 0.1]),
    "FMN in L1": (foolbox.L1FMNAttack(steps=30), attacks.ddn, {"norm": 1, "steps": 30}, [0.2, 0.5]),
    "FMN in Linf": (foolbox.LInfFMNAttack(steps=30), attacks.ddn, {"norm": "Linf", "steps": 30}, [0.01, 0.02]),
    "FMN in L0": (foolbox.L0FMNAttack(steps=30), attacks.sigma_zero, {"norm": 0, "steps": 30}, [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", MINIMAL)
def test_foolbox_smallest_perturbations(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    theirs, ours, options, sizes = MINIMAL[name]
    preprocessing = {"mean": MEAN, "std": STD}
    fmodel = foolbox.PyTorchModel(network, bounds=(0, 1), preprocessing={**preprocessing, "axis": -3})
    labels = fmodel(images).argmax(1)
    labels[0] = (labels[0] + 1) % 6  # wrong as it is
    expected = ours(network, images, labels, preprocessing=preprocessing, return_result=True, **options)
    raw, clipped, is_adv = theirs(fmodel, images, labels, epsilons=None)
    assert torch.equal(raw, expected.adv)
    assert torch.equal(clipped, expected.adv)
    assert torch.equal(is_adv, expected.success)
    assert torch.equal(raw[0], images[0])
    raws, clips, is_adv = theirs.repeat(2)(fmodel, images, labels, epsilons=[sizes[0], None, sizes[1]])
    assert [type(raws), type(clips), is_adv.shape] == [list, list, (3, 16)]
    assert all(torch.equal(raw, expected.adv) for raw in raws)
    assert torch.equal(clips[1], expected.adv)
    order = float({"Linf": math.inf}.get(options["norm"], options["norm"]))
    for clip, fools, size in zip(clips[::2], is_adv[::2], sizes, strict=True):
        away = torch.linalg.vector_norm((clip.double() - images.double()).flatten(1), order, dim=1)
        assert (away <= size).all()
        assert ((clip >= 0) & (clip <= 1)).all()
        near = expected.distance <= size
        assert 0 < near.sum() < 16
        assert torch.equal(clip[near], expected.adv[near])
        assert torch.equal(fools, fmodel(clip).argmax(1) != labels)
        assert (near & expected.success <= fools).all()
    one = theirs(fmodel, images, labels, epsilons=sizes[1])
    assert torch.equal(one[1], clips[2])
    assert torch.equal(one[2], is_adv[2])


def test_foolbox_smallest_perturbations_towards_targets(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    fmodel = foolbox.PyTorchModel(network, bounds=(0, 1))
    targets = (labels + 1) % 6
    criterion = foolbox.TargetedMisclassification(targets)
    for attack in (foolbox.DDNAttack(), foolbox.L1FMNAttack()):
        raw, clipped, is_adv = attack(fmodel, images, criterion, epsilons=[None, 0.3])
        assert is_adv[0].double().mean() > 0.9
        for points, success in zip((raw[0], clipped[1]), is_adv, strict=True):
            assert torch.equal(fmodel(points).argmax(1) == targets, success)


def test_foolbox_takes_models_and_tensors_of_the_same_shape(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """What Foolbox' own models and EagerPy's tensors have in common with these."""

    class Eager:
        def __init__(self, raw: Tensor) -> None:
            self.raw = raw

    class Model:
        bounds = (0.0, 1.0)

        def __call__(self, x: Tensor) -> Tensor:
            logits: Tensor = network(x)
            return logits

    raw, _, is_adv = foolbox.LinfPGD(steps=5)(Model(), Eager(images), Eager(labels), epsilons=0.1)
    assert isinstance(raw, Eager)
    assert isinstance(is_adv, Eager)
    expected = attacks.pgd(network, images, labels, eps=0.1, steps=5, step_size=1 / 30)
    torch.testing.assert_close(raw.raw, expected, rtol=0, atol=1e-6)


def test_foolbox_bounds(network: nn.Module, labels: Tensor) -> None:
    wide = torch.rand(16, 3, 4, 4, generator=generator()) * 255
    fmodel = foolbox.PyTorchModel(network, bounds=(0, 255), preprocessing={"mean": 0.0, "std": 255.0})
    raw, _, _ = foolbox.LinfPGD(steps=3)(fmodel, wide, labels, epsilons=20.0)
    assert 10 < (raw - wide).abs().max() <= 20
    assert ((raw >= 0) & (raw <= 255)).all()
    torch.testing.assert_close(fmodel(wide), network(wide / 255))


# --- AutoAttack -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_autoattack(norm: str, network: nn.Module, images: Tensor, labels: Tensor, capsys: Any) -> None:
    eps = {"Linf": 0.05, "L2": 0.3, "L1": 1.5}[norm]
    wrong = labels.clone()
    wrong[0] = (wrong[0] + 1) % 6  # the model errs on it: to be left alone
    adversary = autoattack.AutoAttack(
        network, norm=norm, eps=eps, version="custom", attacks_to_run=["apgd-ce", "apgd-t"]
    )
    adversary.apgd.n_restarts, adversary.apgd.n_iter = 2, 15
    adversary.apgd_targeted.n_target_classes, adversary.apgd_targeted.n_iter = 3, 15
    adv, classes = adversary.run_standard_evaluation(images, wrong, bs=7, return_labels=True)
    assert torch.equal(adv[0], images[0])
    with torch.no_grad():
        assert torch.equal(network(adv).argmax(1), classes)
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    assert (torch.linalg.vector_norm((adv - images).double().flatten(1), order, dim=1) <= eps).all()
    ours = attacks.apgd(network, images[1:], wrong[1:], eps=eps, norm=norm, steps=15, restarts=2, return_result=True)
    assert isinstance(ours, attacks.AttackResult)
    fooled = (classes != wrong)[1:]
    assert fooled.sum() >= ours.success.sum() > 0
    assert torch.equal(adv[1:][~fooled], images[1:][~fooled])
    out = capsys.readouterr().out
    assert "initial accuracy: 93.75%" in out
    assert f"{float((classes == wrong).double().mean()):.2%}" in out
    each = adversary.run_standard_evaluation_individual(images, wrong)
    assert each.keys() == {"apgd-ce", "apgd-t"}
    assert adversary.clean_accuracy(images, wrong) == 15 / 16


VERSIONS = {
    "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "rand": ["apgd-ce", "apgd-dlr"],
}


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", VERSIONS)
def test_autoattack_versions(version: str, norm: str, network: nn.Module) -> None:
    adversary = autoattack.AutoAttack(network, norm=norm, version=version, verbose=False)
    assert adversary.attacks_to_run == VERSIONS[version]
    assert adversary.version == version
    in_l1 = version == "standard" and norm == "L1"
    assert adversary.apgd.n_restarts == (5 if in_l1 or version == "plus" else 1)
    assert adversary.apgd.eot_iter == (20 if version == "rand" else 1)
    assert adversary.apgd.n_iter == adversary.apgd_targeted.n_iter == adversary.fab.n_iter == 100
    if version != "rand":
        assert adversary.apgd_targeted.n_target_classes == (5 if in_l1 else 9)
        assert adversary.apgd_targeted.n_restarts == 1
        assert adversary.fab.n_restarts == (5 if version == "plus" else 1)
        assert adversary.fab.n_target_classes == 9
        assert adversary.square.n_queries == 5000


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_autoattack_standard_leaves_no_more_than_any_of_its_attacks(
    norm: str, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    eps = {"Linf": 0.02, "L2": 0.12, "L1": 0.6}[norm]
    for version in ("standard", "plus"):
        adversary = quick(autoattack.AutoAttack(network, norm=norm, eps=eps, version=version, verbose=False))
        adv, classes = adversary.run_standard_evaluation(images, labels, bs=9, return_labels=True)
        left = classes == labels
        assert 0 < left.sum() < 16
        order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
        assert (torch.linalg.vector_norm((adv - images).double().flatten(1), order, dim=1) <= eps).all()
        assert torch.equal(adv[left], images[left])
        each = adversary.run_standard_evaluation_individual(images, labels, return_labels=True)
        assert [*each] == adversary.attacks_to_run == VERSIONS[version]
        for _, alone in each.values():
            assert (left <= (alone == labels)).all()  # image for image


def test_autoattack_passes_settings_on(
    network: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[dict[str, Any]]] = {"apgd": [], "fab": [], "square": []}

    def nothing_found(name: str) -> Any:
        def attack(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
            asked[name].append(options)
            if not options.get("return_result"):
                return x
            zero = torch.zeros(len(x), dtype=torch.float64)
            return attacks.AttackResult(x, zero.bool(), zero, zero, zero.long(), zero.bool())

        return attack

    for name in asked:
        monkeypatch.setattr(attacks, name, nothing_found(name))
    adversary = autoattack.AutoAttack(network, norm="L1", eps=3, version="plus", seed=5, verbose=False)
    adversary.apgd.n_restarts, adversary.apgd.n_iter, adversary.apgd.eot_iter, adversary.apgd.rho = 2, 11, 3, 0.5
    adversary.apgd_targeted.n_target_classes, adversary.apgd_targeted.use_largereps = 2, True
    adversary.fab.n_restarts, adversary.fab.n_iter, adversary.fab.n_target_classes = 4, 12, 7
    adversary.square.n_queries, adversary.square.n_restarts = 13, 2
    adversary.square.p_init, adversary.square.loss = 0.3, "ce"
    adv = adversary.run_standard_evaluation(images, labels, bs=7)
    assert torch.equal(adv, images)
    ce, dlr, targeted = asked["apgd"]
    for options in (ce, dlr):
        assert [options[key] for key in ("restarts", "steps", "eot", "rho")] == [2, 11, 3, 0.5]
        assert options["target_classes"] is None
        assert options["schedule"] == "auto"  # from outside in, in L1
    assert [ce["loss"], dlr["loss"], targeted["loss"]] == ["ce", "dlr", "dlr"]
    assert [targeted[key] for key in ("target_classes", "restarts", "steps", "eot")] == [2, 1, 100, 1]
    assert targeted["schedule"] == attacks.LARGE_EPS
    first, aimed, fab_t = asked["fab"]
    assert [options["target_classes"] for options in (first, aimed, fab_t)] == [None, 3, 7]
    assert {options["steps"] for options in asked["fab"]} == {12}
    (square,) = asked["square"]
    assert [square[key] for key in ("queries", "restarts", "p_init", "loss")] == [13, 2, 0.3, "ce"]
    for options in (ce, targeted, first, square):
        assert options["norm"] == "L1"
        assert options["batch_size"] == 7
    assert ce["eps"] == square["eps"] == 3
    assert ce["generator"].initial_seed() == square["generator"].initial_seed() == 5
    adversary.apgd.use_largereps = False
    adversary.apgd_targeted.n_target_classes = 9
    adversary.run_standard_evaluation(images, labels)
    assert asked["apgd"][3]["schedule"] is None
    assert asked["apgd"][5]["target_classes"] == 5  # of six classes


def test_autoattack_rand_averages_over_a_random_model(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Noisy(nn.Module):
        asked = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor) -> Tensor:
            Noisy.asked += len(x)
            out: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        adversary = autoattack.AutoAttack(Noisy(), eps=0.1, version="rand", verbose=False)
        adversary.apgd.n_iter, adversary.apgd.eot_iter = 4, 6
        adversary.attacks_to_run = ["apgd-ce"]
        adv, classes = adversary.run_standard_evaluation(images, labels, return_labels=True)
    assert Noisy.asked >= 6 * (classes == labels).sum() * 4
    assert (classes != labels).any()
    assert ((adv != images).flatten(1).any(1) <= (classes != labels)).all()  # what counts is the draw that is returned


def test_autoattack_errors(network: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"version must be one of 'standard', 'plus', 'rand', or 'custom'.*'best'"):
        autoattack.AutoAttack(network, version="best")
    with pytest.raises(ValueError, match="attacks_to_run needs version='custom'"):
        autoattack.AutoAttack(network, attacks_to_run=["square"])
    with pytest.raises(ValueError, match="norm is 'L0', but this attack works in Linf, L2, L1"):
        autoattack.AutoAttack(network, norm="L0")
    with pytest.raises(ValueError, match="attacks_to_run must be a choice of apgd-ce, apgd-dlr, fab, square, apgd-t"):
        autoattack.AutoAttack(network, version="custom", attacks_to_run=["fgsm"]).run_standard_evaluation(
            images, labels
        )
    adversary = autoattack.AutoAttack(network, verbose=False)
    with pytest.raises(AttributeError, match="Square has no setting 'n_iter' here; it has n_queries"):
        adversary.square.n_iter = 3
    adversary.fab.n_restarts = 0
    adversary.attacks_to_run = ["fab"]
    with pytest.raises(ValueError, match="n_restarts must be an integer of at least 1"):
        adversary.run_standard_evaluation(images, labels)
    three = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    log = tmp_path / "log.txt"
    few = autoattack.AutoAttack(three, eps=0.01, log_path=log, verbose=False)
    with pytest.raises(ValueError, match="apgd-t needs 4 classes at least, and the model has 3: pass version='custom'"):
        few.run_standard_evaluation(images, labels % 3)
    few.version, few.attacks_to_run = "custom", ["apgd-ce", "apgd-dlr", "fab-t"]
    quick(few).run_standard_evaluation(images, labels % 3)
    assert "using custom version including apgd-ce, apgd-dlr, fab-t" in log.read_text()


# --- What does not map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"), [("torchattacks", "DeepFool"), ("foolbox", "EADAttack"), ("autoattack", "FABAttack")]
)
def test_what_is_missing_is_named(module: str, name: str) -> None:
    with pytest.raises(ImportError, match=f"{name} has no counterpart in Sparring; what has: .*A"):
        getattr(importlib.import_module(f"sparring.adapters.{module}"), name)
    assert not hasattr(importlib.import_module(f"sparring.adapters.{module}"), "something")


@pytest.mark.parametrize("module", [torchattacks, foolbox])
def test_what_is_missing_has_its_advice(module: Any) -> None:
    for name, call in module.INSTEAD.items():
        with pytest.raises(ImportError) as caught:
            getattr(module, name)
        assert str(caught.value).endswith(f"for its purpose there is sparring.attacks.{call}")
        assert hasattr(attacks, call.partition("(")[0])


def test_what_differs_is_refused(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    fmodel = foolbox.PyTorchModel(network, bounds=(0, 1))
    with pytest.raises(ValueError, match="resc_schedule=False"):
        torchattacks.Square(network, resc_schedule=False)
    with pytest.raises(ValueError, match="alpha_max"):
        torchattacks.FAB(network, alpha_max=0.2)
    with pytest.raises(ValueError, match="n_restarts=3 has no counterpart where FAB is aimed at classes"):
        torchattacks.FAB(network, multi_targeted=True, n_restarts=3)(images, labels)
    with pytest.raises(ValueError, match="version must be one of 'standard', 'plus', 'rand'"):
        torchattacks.AutoAttack(network, version="strong")
    with pytest.raises(ValueError, match="AutoAttack cannot be targeted"):
        torchattacks.AutoAttack(network).set_mode_targeted_by_label()
    with pytest.raises(ValueError, match=r"init_epsilon=0.5.*gradient"):
        foolbox.DDNAttack(init_epsilon=0.5)
    with pytest.raises(ValueError, match=r"max_stepsize=0.1.*pace of its own"):
        foolbox.LInfFMNAttack(max_stepsize=0.1)
    with pytest.raises(ValueError, match=r"eps is 1\.5; accepted in L0: whole numbers"):
        foolbox.L0FMNAttack(steps=5)(fmodel, images, labels, epsilons=1.5)
    with pytest.raises(ValueError, match="eps must be at least 0"):
        foolbox.DDNAttack(steps=5)(fmodel, images, labels, epsilons=[-1.0])
    with pytest.raises(ValueError, match="epsilons is empty"):
        foolbox.DDNAttack(steps=5)(fmodel, images, labels, epsilons=[])
    with pytest.raises(ValueError, match="APGD cannot be targeted"):
        torchattacks.APGD(network).set_mode_targeted_by_label()
    with pytest.raises(ValueError, match="eval mode"):
        torchattacks.PGD(network).set_model_training_mode(model_training=True)
    with pytest.raises(ValueError, match="kth_min"):
        torchattacks.PGD(network).set_mode_targeted_least_likely(0)
    with pytest.raises(ValueError, match="random_start=True"):
        foolbox.FGSM(random_start=True)
    with pytest.raises(ValueError, match="smallest perturbation"):
        foolbox.LinfPGD()(fmodel, images, labels, epsilons=[None])
    with pytest.raises(TypeError, match="starting_points"):
        foolbox.LinfPGD()(fmodel, images, labels, epsilons=0.1, starting_points=images)
    with pytest.raises(TypeError, match="PyTorchModel"):
        foolbox.LinfPGD()(network, images, labels, epsilons=0.1)
    with pytest.raises(ValueError, match="flip_axis"):
        foolbox.PyTorchModel(network, bounds=(0, 1), preprocessing={"flip_axis": -3})
    with pytest.raises(ValueError, match="axis"):
        foolbox.PyTorchModel(network, bounds=(0, 1), preprocessing={"mean": MEAN})
    with pytest.raises(ValueError, match="times must be at least 1"):
        foolbox.LinfPGD().repeat(0)
