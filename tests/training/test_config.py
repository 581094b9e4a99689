from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from sparring.intriguing import Plan
from sparring.training import PRESETS, FitConfig, RetrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labelling", "real"),
        ("network", "new"),
        ("method", "sgd"),
        ("optimizer", "lion"),
        ("mode", "batch"),
        ("schedule", "linear"),
        ("augment", "flip"),
        ("loss", "mse"),
        ("penalty", "output"),
        ("anneal", "yes"),
        ("anneal", True),
        ("lam_final", 1.0),
        ("lam_step", 5),
        ("lr_step", -1),
        ("pool_lr", 0.0),
        ("generate_every", 0),
        ("final_factor", 0),
        ("other_images", -1),
        ("weight_decay", -1.0),
        ("start", "white"),
        ("generations", 0),
        ("epochs", 0),
        ("images", 2.5),
        ("fresh", 0),
        ("steps", True),
        ("batch_size", -1),
        ("pretrain_epochs", 0),
        ("seed", -1),
        ("keep", 1.5),
        ("p_min", float("nan")),
        ("other_p_min", 1.5),
        ("mask_fraction", 1.0),
        ("fooling_share", 1.0),
        ("lam", -0.1),
        ("lr", 0.0),
        ("lr_decay", 1.1),
        ("attack_lr", float("inf")),
        ("s_max", 0),
        ("s_max", 1.5),
    ],
)
def test_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        RetrainConfig(**{field: value})


def test_replace_ignores_none() -> None:
    config = RetrainConfig(steps=7)
    assert config.replace(steps=None, seed=3) == RetrainConfig(steps=7, seed=3)


@pytest.mark.parametrize(("s_max", "limit"), [(30, 30), (0.25, 196), (0.0001, 1)])
def test_sparsity_limit_is_a_count_or_a_share(s_max: float, limit: int) -> None:
    assert RetrainConfig(s_max=s_max).sparsity_limit(784) == limit


def test_every_field_is_documented() -> None:
    names = {field.name for field in dataclasses.fields(RetrainConfig)}
    assert RetrainConfig.__doc__ is not None
    described = {name.strip() for line in RetrainConfig.__doc__.split("\n") if " : " in line
                 for name in line.split(" : ")[0].split(",")}  # fmt: skip
    assert names == described


def test_presets() -> None:
    assert set(PRESETS) == {
        "default", "quick", "full-sparse", "full-non-sparse", "full-cifar", "fresh-each-generation",
    }  # fmt: skip
    assert PRESETS["default"] == RetrainConfig()


def test_settings_survive_json() -> None:
    config = RetrainConfig(penalty={"input": 1.0, "relu1": 0.5}, lam=2.0, s_max=0.1)
    assert RetrainConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_settings_of_a_later_version_are_refused() -> None:
    settings = dataclasses.asdict(RetrainConfig())
    with pytest.raises(ValueError, match="have unknown colour: it is of another version"):
        RetrainConfig.from_json({**settings, "colour": 1})


@pytest.mark.parametrize("kind", [RetrainConfig, FitConfig, Plan])
def test_settings_of_an_earlier_version_get_defaults_for_what_is_new(kind: Any) -> None:
    """Each field in turn is one that the earlier version did not know."""
    for field in dataclasses.fields(kind):
        changed = {"epochs": 3, "seed": 5, field.name: None}
        settings = {key: value for key, value in changed.items() if key != field.name}
        assert kind.from_json(settings) == kind(**settings)
    with pytest.raises(ValueError, match="the run's settings have unknown colour, sound: it is of another version"):
        kind.from_json({"sound": 1, "colour": 1})
    with pytest.raises(ValueError, match="the run's settings are a list: wanted is an object"):
        kind.from_json([])


@pytest.mark.parametrize("kind", [RetrainConfig, FitConfig])
def test_settings_of_another_kind_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="value of the wrong kind"):
        kind.from_json({"lr": "fast"})


def test_annealing_needs_a_weight_to_halve() -> None:
    with pytest.raises(ValueError, match=r"anneal halves lam, but lam is 1\.0 for method 'l1'"):
        RetrainConfig(anneal=True, lam=1.0, method="l1")
    RetrainConfig(anneal=True, lam=1.0, method="l1", penalty="hidden")
