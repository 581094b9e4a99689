"""All of the experiments, stage after stage; what a stage found is kept, and a stopped run goes on with the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparring import losses, networks
from sparring._progress import Progress
from sparring.analysis.smoothness import smoothness
from sparring.analysis.units import Directions, units
from sparring.data import Dataset
from sparring.intriguing import paper, tables
from sparring.intriguing.recipes import RECIPES, Recipe, TrainingError, train, with_dropout
from sparring.training.config import from_json
from sparring.training.loop import Journal, Record
from sparring.training.state import check_format

FORMAT = "sparring intriguing 2"
FGS_ARMS: dict[str, Recipe] = {
    "plain": Recipe("mlp-300-100", lr=1e-3),
    "weight decay": Recipe("mlp-300-100", lr=1e-3, weight_decay=1e-4),
    "dropout": Recipe("mlp-300-100", lr=1e-3, dropout=0.5),
    "FGS": Recipe("mlp-300-100", lr=1e-3, alpha=0.5),
    "FGS, dropout": Recipe("mlp-300-100", lr=1e-3, alpha=0.5, dropout=0.5),
}
SHOWN = 8
"""Images of each network, and units of each layer, that are kept to be looked at."""
RADII = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
LAYERS = ("sigmoid1", "sigmoid2")


@dataclass(frozen=True)
class Plan:
    """How large the experiments are.

    Attributes
    ----------
    images : so many test images are distorted for each network.
    train_images : images to train on; 0: all.
    epochs : at most so many, in place of a recipe's more.
    units : units and directions that are compared in each layer.
    draws : random perturbations of each image.
    seed : every random number follows from it.
    """

    images: int = 1000
    train_images: int = 0
    epochs: int = 100
    units: int = 100
    draws: int = 20
    seed: int = 0

    def replace(self, **changes: int | None) -> Plan:
        """A copy with some fields changed; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def from_json(cls, settings: object) -> Plan:
        """The plan that a run was made with; see `sparring.training.config.from_json`."""
        return from_json(cls, settings)

    @classmethod
    def quick(cls, seed: int = 0) -> Plan:
        """A minute or two on two cores."""
        return cls(images=200, train_images=20_000, epochs=6, units=100, draws=5, seed=seed)


@dataclass
class Findings:
    """What the stages done so far found: numbers as JSON, tensors by name, and why stages are left out."""

    numbers: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a stage works with."""

    train: Dataset
    test: Dataset
    plan: Plan
    findings: Findings

    @property
    def images(self) -> Tensor:
        return self.test.images[: self.plan.images]

    @property
    def labels(self) -> Tensor:
        return self.test.labels[: self.plan.images]

    def network(self, name: str) -> nn.Module:
        """A network that a stage before trained."""
        if f"train {name}" in self.findings.left_out:
            raise ValueError(f"there is no network {name}")
        recipe = {**RECIPES, **FGS_ARMS}[name]
        model = with_dropout(networks.build(recipe.network, self.train.input_shape, self.train.classes), recipe.dropout)
        prefix = f"network/{name}/"
        saved = self.findings.tensors.items()
        model.load_state_dict({key.removeprefix(prefix): value for key, value in saved if key.startswith(prefix)})
        return model.to(self.train.images.device).eval()


Stage = Callable[[Setting], None]


def conduct(
    train: Dataset,
    test: Dataset,
    plan: Plan | None = None,
    *,
    run: Journal | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Findings:
    """Conduct all experiments, or those that a stopped run has left to do.

    Parameters
    ----------
    train, test
        MNIST, or other images of one size; on one device.
    plan
        How large they are; by default `Plan()`.
    run
        Keeps what each stage found, and gives it back; without one nothing is kept.
    on_progress
        Called before each stage.
    on_record
        Called with the record of each stage.

    Returns
    -------
    Findings
        A stage that cannot be computed, such as that of images which none of the networks has right, is left out: why
        is in its record and in `Findings.left_out`.
    """
    plan = plan if plan is not None else Plan()
    if not 1 <= plan.images <= len(test):
        raise ValueError(f"plan.images must be in 1 ... {len(test)}, the test images at hand; got {plan.images}")
    if plan.train_images:
        draws = torch.Generator().manual_seed(plan.seed)
        train = train.subset(min(plan.train_images, len(train)), draws)
    findings, done = Findings(), 0
    checkpoint = run.restore() if run is not None else None
    if checkpoint is not None:
        check_format(checkpoint.state, FORMAT)
        state = checkpoint.state
        findings = Findings(state["numbers"], checkpoint.tensors, state.get("left_out", {}))
        done = state["done"]
    setting = Setting(train, test, plan, findings)
    stages = [*STAGES.items()]
    for number, (name, stage) in enumerate(stages):
        if number < done:
            continue
        if on_progress is not None:
            on_progress(Progress(number, len(stages), name))
        record: Record = {"kind": "stage", "epoch": number, "stage": name}
        before = dict(findings.tensors)
        try:
            stage(setting)
            record |= _figures(findings.numbers.get(name))
        except (ValueError, TrainingError) as error:  # such as no image that a hardly trained network has right
            findings.tensors.clear()
            findings.tensors.update(before)
            record["left_out"] = findings.left_out[name] = str(error)
        if run is not None:
            run.log(record)
            state = {"numbers": findings.numbers, "left_out": findings.left_out, "done": number + 1}
            run.save(findings.tensors, {"format": FORMAT, **state})
        if on_record is not None:
            on_record(record)
    return findings


def _figures(found: Any) -> dict[str, float]:
    """The numbers right at the top of what a stage found."""
    return {k: v for k, v in found.items() if isinstance(v, float)} if isinstance(found, dict) else {}


def _training(name: str, recipe: Recipe) -> Stage:
    def stage(setting: Setting) -> None:
        epochs = min(recipe.epochs, setting.plan.epochs)
        model = train(name, recipe, setting.train, setting.test, epochs=epochs, seed=setting.plan.seed)
        for key, value in model.state_dict().items():
            setting.findings.tensors[f"network/{name}/{key}"] = value.detach().cpu().clone()
        (test_error,) = tables.errors({name: model}, setting.test.images, setting.test.labels)
        (train_error,) = tables.errors({name: model}, setting.train.images, setting.train.labels)
        setting.findings.numbers[f"train {name}"] = {
            "test_error": test_error,
            "train_error": train_error,
            "epochs": epochs,
        }

    return stage


def _cross(title: str, names: dict[str, str], noise: tuple[float, ...], amplify: float | None) -> Stage:
    """Images distorted for each network (`names`: as the paper calls it, as the recipes do) shown to all of them."""

    def stage(setting: Setting) -> None:
        images, labels = setting.images, setting.labels
        models = {name: setting.network(recipe) for name, recipe in names.items()}
        found: dict[str, Any] = {
            "models": [*models], "clean": tables.errors(models, images, labels), "images": len(images),
            "errors": {}, "distortion": {}, "success": {}, "noise": {}, "amplified": {},
        }  # fmt: skip
        for name, model in models.items():
            made = tables.distort(model, images, labels, seed=setting.plan.seed)
            found["errors"][name] = tables.errors(models, made.images, labels)
            found["distortion"][name] = float(made.distortion.mean())
            found["success"][name] = made.success
            if amplify is not None:
                larger = tables.amplified(made.images, images, amplify)
                found["amplified"][name] = tables.errors(models, larger, labels)
            setting.findings.tensors[f"{title}/{name}"] = made.images[:SHOWN].cpu().clone()
            setting.findings.tensors[f"{title}/{name}/distortion"] = made.distortion.cpu()
        setting.findings.tensors["originals"] = images[:SHOWN].cpu().clone()
        setting.findings.tensors["labels"] = labels[:SHOWN].cpu().clone()
        for deviation in noise:
            found["noise"][str(deviation)] = tables.errors(models, tables.noisy(images, deviation), labels)
        setting.findings.numbers[title] = found

    return stage


def _smoothness(setting: Setting) -> None:
    model = setting.network("FC100-100-10")
    found = smoothness(
        model, setting.images, setting.labels, RADII, draws=setting.plan.draws,
        generator=torch.Generator().manual_seed(setting.plan.seed),
    )  # fmt: skip
    setting.findings.numbers["smoothness"] = {
        "radii": found.radii.tolist(), "random": found.random.tolist(), "random_worst": found.random_worst.tolist(),
        "optimised": found.optimised.tolist(), "draws": found.draws, "images": found.count,
        "median": float(found.distance.median()),
    }  # fmt: skip


def _fgs_training(setting: Setting) -> None:
    found: dict[str, Any] = {}
    for name in FGS_ARMS:
        model = setting.network(name)
        moved = tables.under_fgs(model, setting.test.images, setting.test.labels, paper.FGS_EPS)
        found[name] = {
            "clean": asdict(tables.mistakes(model, setting.test.images, setting.test.labels)),
            "fgs": asdict(tables.mistakes(model, moved, setting.test.labels)),
        }
    setting.findings.numbers["FGS training"] = found


def _rbf(setting: Setting) -> None:
    images, labels, found = setting.test.images, setting.test.labels, {}
    for name, loss in (("FC10(1e-4)", "ce"), ("RBF", losses.bernoulli)):
        model, independent = setting.network(name), name == "RBF"
        moved = partial(tables.under_fgs, model, images, labels, paper.FGS_EPS, loss)
        shown = {"clean": images, "fgs": moved(clipped=False), "fgs clipped": moved(clipped=True)}
        found[name] = {
            kind: asdict(tables.mistakes(model, these, labels, independent=independent))
            for kind, these in shown.items()
        }
    setting.findings.numbers["RBF"] = found


def _units(setting: Setting) -> None:
    model, found = setting.network("FC100-100-10"), dict[str, dict[str, Any]]()
    for layer in LAYERS:
        draws = torch.Generator().manual_seed(setting.plan.seed)
        seen = units(model, layer, setting.test.images, setting.test.labels, count=setting.plan.units, generator=draws)
        found[layer] = {"features": seen.features}
        for kind, these in (("units", seen.units), ("random", seen.random)):
            found[layer][kind] = _purity(these)
            setting.findings.tensors[f"units/{layer}/{kind}/top"] = setting.test.images[these.top[:SHOWN]].cpu()
            setting.findings.tensors[f"units/{layer}/{kind}/optimised"] = these.optimised[:SHOWN].cpu().clone()
    setting.findings.numbers["units"] = found


def _purity(these: Directions) -> dict[str, Any]:
    return {
        "purity": float(these.purity.mean()), "interval": [*these.interval()], "count": len(these.purity),
        "top": these.top.shape[1],
    }  # fmt: skip


def _stages() -> Iterator[tuple[str, Stage]]:
    for name, recipe in {**RECIPES, **FGS_ARMS}.items():
        yield f"train {name}", _training(name, recipe)
    yield "cross-model", _cross("cross-model", {name: name for name in paper.MODELS}, (0.1, 0.3), None)
    halves = dict(zip(paper.HALVES, ("FC100-100-10 (P1)", "FC123-456-10 (P1)", "FC100-100-10' (P2)"), strict=True))
    yield "cross-training-set", _cross("cross-training-set", halves, (0.06,), paper.AMPLIFIED)
    yield "smoothness", _smoothness
    yield "FGS training", _fgs_training
    yield "RBF", _rbf
    yield "units", _units


STAGES: dict[str, Stage] = dict(_stages())
"""By name, in order: every network is trained, then the tables are made."""
