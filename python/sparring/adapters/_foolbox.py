"""Foolbox' models, criteria and tensors: what its attacks are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparring.adapters import only
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
        images, restore = plain(inputs)
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
    images, classes = plain(inputs)[0], plain(labels)[0]
    with torch.no_grad():
        return float((fmodel(images).argmax(-1) == classes).double().mean())


class _Callable(nn.Module):
    """Foolbox' own model, whose module cannot be reached."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.forward = model


def network(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The module of a model, and its bounds and preprocessing as attacks want them."""
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


def classes_of(criterion: Any) -> tuple[Tensor, Tensor | None]:
    """Labels and targets; where there are only targets, they stand for the labels, which no attack looks at then."""
    if hasattr(criterion, "target_classes"):
        targets = plain(criterion.target_classes)[0]
        return targets, targets
    labels = plain(getattr(criterion, "labels", criterion))[0]
    if not isinstance(labels, Tensor):
        raise TypeError(f"criterion must be labels, Misclassification or TargetedMisclassification; got {criterion!r}")
    return labels, None


def plain(tensor: Any) -> tuple[Any, Any]:
    """A torch tensor, and what makes its result the kind that came: EagerPy's have their tensor in `raw`."""
    return (tensor.raw, type(tensor)) if hasattr(tensor, "raw") else (tensor, lambda result: result)
